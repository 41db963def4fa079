/** The answers to one HTTP request: a generation for each choice of each prompt, started, collected and aborted as one. */
import {
  type Generation,
  type GenerationEvent,
  type GenerationParameters,
  InvalidRequest,
  type Prompt,
  type RuntimeInterface,
  type TokenLogprob,
} from "../runtime/types.ts";
import { promptOnly, withStop } from "./changed-generation.ts";
import type { RequestRecord, ServerContext } from "./context.ts";
import { HttpError } from "./errors.ts";
import type { Timing } from "./metrics.ts";

/** Logprobs held for one request until they are written, those of other probable tokens included: some 200 MB. */
const maxLogprobs = 2 ** 21;

export interface ChoicesRequest {
  /** What the answers are known by, in responses and to /abort_request. */
  id: string;
  prompts: readonly Prompt[];
  /** Answers to each prompt. */
  n: number;
  /** Parameters of one choice; `maxTokens` left out takes `defaultMaxTokens`. */
  parameters(maxTokens: number | undefined, choice: number): GenerationParameters;
  /** 0: nothing of an answer, only what is known of the prompt. */
  maxTokens: number | undefined;
  /** Answers have the stop string that ended them. */
  includeStop?: boolean;
  /** What an API that documents a default gives when nothing is asked, cut to what fits; null: all that fits. */
  defaultMaxTokens: number | null;
  signal: AbortSignal;
}

/** `usage` of OpenAI's API. A prompt counts once, however many answers it gets. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
}

/** All events of a generation as one. */
export class Answer {
  text = "";
  readonly tokens: number[] = [];
  readonly logprobs: TokenLogprob[] = [];
  finishReason: GenerationEvent["finishReason"] = null;
  stopReason: GenerationEvent["stopReason"];

  add(event: GenerationEvent): void {
    this.text += event.text;
    for (const token of event.tokens) this.tokens.push(token);
    for (const logprob of event.logprobs ?? []) this.logprobs.push(logprob);
    this.finishReason = event.finishReason;
    this.stopReason = event.stopReason;
  }
}

export class Choices {
  /** Choice j of prompt i is number i * n + j. */
  generations: readonly Generation[] = [];
  private timings: Timing[] = [];
  private readonly finishReasons: string[] = [];
  private readonly arrived = performance.now();
  private readonly settled = Promise.withResolvers<RequestRecord>();
  private hasEnded = false;
  private timedOut = false;
  private aborted = false;
  private heldLogprobs = 0;
  private timer: Timer | undefined;

  private constructor(
    readonly id: string,
    readonly n: number,
    private readonly context: ServerContext,
  ) {}

  /**
   * Queues every generation of the request, or none. The caller must call end().
   * @throws InvalidRequest, QueueFull
   */
  static async start(context: ServerContext, runtime: RuntimeInterface, request: ChoicesRequest): Promise<Choices> {
    const { maxChoices } = context.options;
    if (request.prompts.length * request.n > maxChoices) {
      const asked = `${request.prompts.length} prompts with n = ${request.n}`;
      throw new InvalidRequest(`a request may ask for at most ${maxChoices} answers, got ${asked}`, "n");
    }
    const choices = new Choices(request.id, request.n, context);
    context.enter(choices);
    choices.limitTime(context.options.requestTimeoutSeconds);
    const started = await Promise.allSettled(request.prompts.map((prompt) => startPrompt(runtime, prompt, request)));
    const failed = choices.timedOut ? { reason: timeout() } : started.find((result) => result.status === "rejected");
    choices.generations = started.flatMap((result) => (result.status === "fulfilled" ? result.value : []));
    const { arrived } = choices;
    choices.timings = choices.generations.map(() => ({ arrived, firstEvent: 0, lastEvent: 0 }));
    // An abort that came while prompts were tokenized found no generations.
    if (choices.aborted || failed !== undefined) choices.abort();
    if (failed === undefined) return choices;
    choices.end();
    throw failed.reason;
  }

  /** Waits for all answers, in the order of their numbers. */
  async collect(): Promise<Answer[]> {
    try {
      return await Promise.all(this.generations.map((_, choice) => this.collectAnswer(choice)));
    } catch (error) {
      this.abort();
      throw error;
    } finally {
      this.end();
    }
  }

  private async collectAnswer(choice: number): Promise<Answer> {
    const answer = new Answer();
    for await (const event of this.generations[choice]) {
      this.note(choice, event);
      this.hold(event.logprobs ?? []);
      answer.add(event);
    }
    return answer;
  }

  /**
   * Tells metrics and log of an event of choice number `choice` that is handed on.
   * @throws HttpError where the answer ends because its time is up
   * @throws InvalidRequest for more logprobs of prompts than fit
   */
  note(choice: number, event: GenerationEvent): void {
    if (this.timings[choice].firstEvent === 0) this.hold(this.generations[choice].promptLogprobs);
    this.context.metrics.event(this.generations[choice], event, this.timings[choice]);
    if (event.finishReason !== null) this.finishReasons[choice] = event.finishReason;
    if (event.finishReason === "abort" && this.timedOut) throw timeout();
  }

  /** Resolves when the request has ended, with what the log tells of it. */
  get ended(): Promise<RequestRecord> {
    return this.settled.promise;
  }

  usage(): Usage {
    const prompts = this.generations.filter((_, index) => index % this.n === 0);
    const promptTokens = prompts.reduce((sum, { promptTokens }) => sum + promptTokens.length, 0);
    const completionTokens = this.generations.reduce((sum, generation) => sum + generation.completionTokens, 0);
    const cachedTokens = prompts.reduce((sum, generation) => sum + generation.cachedTokens, 0);
    return usageOf(promptTokens, completionTokens, cachedTokens);
  }

  /** More logprobs wait for a reader than a request may hold. */
  get isOverfull(): boolean {
    return this.generations.reduce((sum, { gatheredLogprobs }) => sum + gatheredLogprobs, 0) > maxLogprobs;
  }

  abort(): void {
    this.aborted = true;
    for (const generation of this.generations) generation.abort();
  }

  /** Takes the request off the list of those under way. */
  end(): void {
    if (this.hasEnded) return;
    this.hasEnded = true;
    clearTimeout(this.timer);
    this.context.leave(this);
    if (this.generations.length > 0) this.context.metrics.requestEnded(this.generations);
    this.settled.resolve(this.record());
  }

  private hold(logprobs: readonly TokenLogprob[]): void {
    if (logprobs.length === 0) return;
    this.heldLogprobs += logprobs.length * (1 + logprobs[0].top.length);
    if (this.heldLogprobs <= maxLogprobs) return;
    throw new InvalidRequest(
      `a request may ask for at most ${maxLogprobs} logprobs, those of top tokens included`,
      "logprobs",
    );
  }

  private limitTime(seconds: number): void {
    if (seconds === 0) return;
    this.timer = setTimeout(() => {
      this.timedOut = true;
      this.abort();
    }, seconds * 1000);
  }

  private record(): RequestRecord {
    const { prompt_tokens, completion_tokens, prompt_tokens_details } = this.usage();
    const least = (times: number[]) => times.reduce((first, time) => Math.min(first, time || Infinity), Infinity);
    const started = least(this.generations.map(({ startedAt }) => startedAt));
    const first = least(this.timings.map(({ firstEvent }) => firstEvent));
    const last = Math.max(...this.timings.map(({ lastEvent }) => lastEvent));
    return {
      id: this.id,
      choices: this.generations.length,
      promptTokens: prompt_tokens,
      cachedTokens: prompt_tokens_details.cached_tokens,
      completionTokens: completion_tokens,
      // An answer whose reader leaves is aborted without an event that says so.
      finishReasons: this.generations.map((_, choice) => this.finishReasons[choice] ?? "abort"),
      queue: started === Infinity ? null : started - this.arrived,
      prefill: started === Infinity || first === Infinity ? null : first - started,
      decode: first === Infinity ? null : last - first,
    };
  }
}

function timeout(): HttpError {
  return new HttpError(503, "the request took longer than this server allows", { code: "request_timeout" });
}

export function usageOf(promptTokens: number, completionTokens: number, cachedTokens: number): Usage {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

async function encode(runtime: RuntimeInterface, prompt: Prompt): Promise<Prompt> {
  if ("tokens" in prompt) return prompt;
  const continues = !("messages" in prompt) || prompt.continueFinalMessage === true;
  return { tokens: await runtime.encode(prompt), continues };
}

async function startPrompt(runtime: RuntimeInterface, prompt: Prompt, request: ChoicesRequest): Promise<Generation[]> {
  let maxTokens = request.maxTokens === 0 ? 1 : request.maxTokens;
  const capped = maxTokens === undefined && request.defaultMaxTokens !== null;
  // One encoding serves all choices of a prompt.
  const encoded = capped || request.n > 1 ? await encode(runtime, prompt) : prompt;
  if (capped && "tokens" in encoded) {
    const room = runtime.info.maxContext - encoded.tokens.length;
    if (room > 0) maxTokens = Math.min(request.defaultMaxTokens as number, room);
  }
  const started = await Promise.allSettled(
    Array.from({ length: request.n }, (_, choice) =>
      runtime.generate(encoded, request.parameters(maxTokens, choice), request.signal),
    ),
  );
  const failed = started.find((result) => result.status === "rejected");
  const generations = started.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
  if (failed === undefined) {
    if (request.maxTokens === 0) return generations.map(promptOnly);
    return request.includeStop ? generations.map((generation) => withStop(generation, runtime)) : generations;
  }
  for (const generation of generations) generation.abort();
  throw failed.reason;
}
