/** The two OpenAI routes' common ground: envelopes, usage, and the chunks of their streams. */
import type { Context } from "hono";
import {
  type Generation,
  type GenerationEvent,
  InvalidRequest,
  type Prompt,
  type RuntimeInterface,
  type TokenLogprob,
} from "../runtime/types.ts";
import { type Answer, Choices, type Usage, usageOf } from "./choices.ts";
import type { ServerContext } from "./context.ts";
import { eventStream, type StreamFormat, streamHeaders } from "./event-stream.ts";
import { promptLogprobs, type TokenWriter } from "./logprobs.ts";
import { generationParameters } from "./parameters.ts";
import type { OpenAIFields } from "./schemas.ts";
import type { Environment } from "./server.ts";

/** How one of the routes writes one response. Strings are pieces of JSON. */
export interface Dialect {
  readonly idPrefix: string;
  readonly object: string;
  readonly chunkObject: string;
  readonly defaultMaxTokens: number | null;
  /** Writes the tokens of logprobs. */
  readonly writer: TokenWriter;
  /** The fields of a choice of a complete answer that carry its text. */
  choice(answer: Answer, generation: Generation, index: number): object;
  /** The fields of a streamed choice that carry text. */
  delta(event: GenerationEvent, generation: Generation, index: number, first: boolean): string;
  /** `logprobs` of an answer or of a part of it, where they are asked for. */
  logprobs(logprobs: readonly TokenLogprob[], generation: Generation, index: number, first: boolean): object;
  /** The chunk that opens a choice's stream: its choice field, or null for none. */
  readonly opening: string | null;
  /** vLLM's place of what concerns the prompt: on the response (chat) or on each choice (completions). */
  readonly promptOn: "response" | "choice";
  /** Tokens of chains of thought, of one choice or of all; null where there are none to tell apart. */
  reasoningTokens(choice?: number): number | null;
}

/** What one of the routes makes of a body. */
export interface OpenAIRequest {
  body: OpenAIFields;
  prompts: readonly Prompt[];
  maxTokens: number | undefined;
  /** How many of the most probable tokens beside each token; undefined: no logprobs. */
  logprobs: number | undefined;
  promptLogprobs: number | undefined;
  dialect: Dialect;
}

/** Starts the request's generations and answers with their end or their stream. */
export async function answer(
  c: Context<Environment>,
  context: ServerContext,
  runtime: RuntimeInterface,
  request: OpenAIRequest,
): Promise<Response> {
  const { body, dialect, logprobs } = request;
  const model = context.modelName(runtime, body.model);
  if (body.stream === true && body.prompt_logprobs !== undefined) {
    throw new InvalidRequest("prompt_logprobs cannot be streamed", "prompt_logprobs");
  }
  const fields = { ...body, logprobs, prompt_logprobs: request.promptLogprobs };
  const choices = await Choices.start(context, runtime, {
    id: `${dialect.idPrefix}${c.get("requestId")}`,
    prompts: request.prompts,
    n: body.n ?? 1,
    parameters: (limit, choice) => generationParameters(fields, limit, choice),
    maxTokens: request.maxTokens,
    includeStop: body.include_stop_str_in_output,
    defaultMaxTokens: dialect.defaultMaxTokens,
    signal: c.req.raw.signal,
  });
  c.set("choices", choices);
  const created = Math.floor(Date.now() / 1000);
  if (body.stream === true) {
    const format = new Chunks(choices, request, created, model);
    const stream = await eventStream(choices, format, context.options.stallTimeoutSeconds);
    return c.body(stream, 200, streamHeaders);
  }
  return c.json(complete(await choices.collect(), choices, request, created, model));
}

/** The body of a complete answer. */
function complete(
  answers: readonly Answer[],
  choices: Choices,
  { body, dialect, logprobs }: OpenAIRequest,
  created: number,
  model: string,
): object {
  const ofPrompt = (generation: Generation) => ({
    ...(body.return_token_ids === true && { prompt_token_ids: Array.from(generation.promptTokens) }),
    ...(body.prompt_logprobs !== undefined && {
      prompt_logprobs: promptLogprobs(dialect.writer, generation.promptLogprobs, body.prompt_logprobs),
    }),
  });
  return {
    id: choices.id,
    object: dialect.object,
    created,
    model,
    choices: answers.map((answer, index) => ({
      index,
      ...dialect.choice(answer, choices.generations[index], index),
      logprobs:
        logprobs === undefined ? null : dialect.logprobs(answer.logprobs, choices.generations[index], index, true),
      finish_reason: answer.finishReason,
      stop_reason: answer.stopReason ?? null,
      ...(body.return_token_ids === true && { token_ids: answer.tokens }),
      ...(dialect.promptOn === "choice" && ofPrompt(choices.generations[index])),
    })),
    usage: withReasoning(choices.usage(), dialect.reasoningTokens()),
    ...(dialect.promptOn === "response" && ofPrompt(choices.generations[0])),
  };
}

function withReasoning(usage: Usage, reasoning_tokens: number | null): object {
  return reasoning_tokens === null ? usage : { ...usage, completion_tokens_details: { reasoning_tokens } };
}

/** Writes chunks by hand: only the text goes through JSON.stringify, the rest of a chunk is the same every time. */
class Chunks implements StreamFormat {
  private readonly head: string;
  private readonly tail: string;
  private readonly generated: number[];
  private readonly includeUsage: boolean;
  private readonly continuousUsage: boolean;
  private readonly tokenIds: boolean;
  private readonly logprobs: boolean;
  private readonly dialect: Dialect;

  constructor(
    private readonly choices: Choices,
    { body, dialect, logprobs }: OpenAIRequest,
    created: number,
    model: string,
  ) {
    this.dialect = dialect;
    this.logprobs = logprobs !== undefined;
    this.includeUsage = body.stream_options?.include_usage === true;
    this.continuousUsage = this.includeUsage && body.stream_options?.continuous_usage_stats === true;
    this.tokenIds = body.return_token_ids === true;
    const envelope = JSON.stringify({ id: choices.id, object: dialect.chunkObject, created, model });
    this.head = `data: ${envelope.slice(0, -1)},"choices":[`;
    this.tail = this.includeUsage ? ',"usage":null}\n\n' : "}\n\n";
    this.generated = choices.generations.map(() => 0);
  }

  event(choice: number, event: GenerationEvent, first: boolean): string {
    const { tokens, finishReason, stopReason } = event;
    const { dialect } = this;
    const generation = this.choices.generations[choice];
    const opening = first ? this.opening(choice) : "";
    this.generated[choice] += tokens.length;
    let fields = dialect.delta(event, generation, choice, first);
    if (this.tokenIds) {
      fields += `,"token_ids":${JSON.stringify(tokens)}`;
      if (first && dialect.promptOn === "choice") fields += `,${this.promptTokens(choice)}`;
    }
    fields += this.logprobs
      ? `,"logprobs":${JSON.stringify(dialect.logprobs(event.logprobs ?? [], generation, choice, first))}`
      : ',"logprobs":null';
    const finish =
      finishReason === null
        ? '"finish_reason":null}]'
        : `"finish_reason":"${finishReason}","stop_reason":${JSON.stringify(stopReason ?? null)}}]`;
    return `${opening}${this.head}{"index":${choice},${fields},${finish}${this.end(choice)}`;
  }

  close(): string {
    if (!this.includeUsage) return "";
    return `${this.head}],"usage":${JSON.stringify(withReasoning(this.choices.usage(), this.dialect.reasoningTokens()))}}\n\n`;
  }

  private opening(choice: number): string {
    if (this.dialect.opening === null) return "";
    const tokens = this.tokenIds && this.dialect.promptOn === "response" ? `,${this.promptTokens(choice)}` : "";
    const opening = `{"index":${choice},${this.dialect.opening},"logprobs":null,"finish_reason":null}]${tokens}`;
    return `${this.head}${opening}${this.end(choice)}`;
  }

  private end(choice: number): string {
    return this.continuousUsage ? `,"usage":${JSON.stringify(this.usage(choice))}}\n\n` : this.tail;
  }

  private usage(choice: number): object {
    const { promptTokens, cachedTokens } = this.choices.generations[choice];
    const usage = usageOf(promptTokens.length, this.generated[choice], cachedTokens);
    return withReasoning(usage, this.dialect.reasoningTokens(choice));
  }

  private promptTokens(choice: number): string {
    return `"prompt_token_ids":${JSON.stringify(Array.from(this.choices.generations[choice].promptTokens))}`;
  }
}
