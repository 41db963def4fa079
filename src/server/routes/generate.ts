/** /generate, SGLang's native API: https://docs.sglang.io/basic_usage/native_api.html */
import type { Hono } from "hono";
import {
  type Generation,
  type GenerationEvent,
  InvalidRequest,
  type Prompt,
  type RuntimeInterface,
} from "../../runtime/types.ts";
import { readObject } from "../body.ts";
import { Answer, Choices } from "../choices.ts";
import type { ServerContext } from "../context.ts";
import { eventStream, type StreamFormat, streamHeaders } from "../event-stream.ts";
import { nativeLogprobs, TokenWriter } from "../logprobs.ts";
import { generationParameters, refuseUnsupported, textPrompts, tokenPrompts } from "../parameters.ts";
import { type GenerateBody, generateSchema, parse } from "../schemas.ts";
import type { Environment } from "../server.ts";

export function generateRoutes(app: Hono<Environment>, context: ServerContext): void {
  app.post("/generate", async (c) => {
    const runtime = context.runtime();
    const fields = await readObject(c, context.options.maxBodyBytes);
    refuseUnsupported(fields);
    const body = parse(generateSchema, fields);
    const sampling = body.sampling_params ?? {};
    refuseUnsupported((fields.sampling_params ?? {}) as Record<string, unknown>);
    const { prompts, batch } = promptsOf(body);
    const native = new NativeForm(runtime, body);
    const generation = {
      ...sampling,
      ...native.logprobs,
      seed: sampling.sampling_seed ?? sampling.seed,
      min_tokens: sampling.min_new_tokens,
      priority: body.priority,
    };
    const choices = await Choices.start(context, runtime, {
      id: body.rid ?? c.get("requestId"),
      prompts,
      n: sampling.n ?? 1,
      parameters: (limit, choice) => generationParameters(generation, limit, choice),
      maxTokens: sampling.max_new_tokens,
      includeStop: sampling.no_stop_trim,
      defaultMaxTokens: 128,
      signal: c.req.raw.signal,
    });
    c.set("choices", choices);
    const list = batch || choices.n > 1;
    if (body.stream === true) {
      const format = new Snapshots(choices, native, list);
      const stream = await eventStream(choices, format, context.options.stallTimeoutSeconds);
      return c.body(stream, 200, streamHeaders);
    }
    const answers = (await choices.collect()).map((answer, index) => native.result(choices, index, answer));
    return list ? c.json(answers) : c.json(answers[0]);
  });
}

/** The prompts, and whether they came as a list and are answered as one. */
function promptsOf({ text, input_ids }: GenerateBody): { prompts: Prompt[]; batch: boolean } {
  if (text !== undefined && input_ids !== undefined)
    throw new InvalidRequest("give text or input_ids, not both", "text");
  if (text !== undefined) return { prompts: textPrompts(text, "text"), batch: Array.isArray(text) };
  if (input_ids === undefined) throw new InvalidRequest("text is missing, or input_ids", "text");
  return { prompts: tokenPrompts(input_ids, "input_ids"), batch: Array.isArray((input_ids as unknown[])[0]) };
}

/** How answers are written, and what logprobs they need. */
class NativeForm {
  /** The most probable tokens to ask for beside each of the answer's and the prompt's. */
  readonly logprobs: { logprobs?: number; prompt_logprobs?: number } = {};
  private readonly writer: TokenWriter | null;
  private readonly top: number;
  private readonly start: number;

  constructor(runtime: RuntimeInterface, body: GenerateBody) {
    this.top = body.top_logprobs_num ?? 0;
    this.start = body.logprob_start_len ?? -1;
    this.writer = body.return_text_in_logprobs === true ? new TokenWriter(runtime) : null;
    if (body.return_logprob !== true) return;
    this.logprobs.logprobs = this.top;
    if (this.start >= 0) this.logprobs.prompt_logprobs = this.top;
  }

  result(choices: Choices, index: number, answer: Answer): object {
    const { text, tokens, finishReason, stopReason } = answer;
    const generation = choices.generations[index];
    return {
      text,
      output_ids: tokens,
      meta_info: {
        id: choices.generations.length > 1 ? `${choices.id}-${index}` : choices.id,
        finish_reason: finishReason === null ? null : finish(finishReason, tokens, stopReason),
        prompt_tokens: generation.promptTokens.length,
        completion_tokens: tokens.length,
        cached_tokens: generation.cachedTokens,
        ...(this.logprobs.logprobs !== undefined && this.logprobFields(generation, answer)),
      },
    };
  }

  private logprobFields({ promptTokens, promptLogprobs }: Generation, answer: Answer): object {
    const input = this.start < 0 ? [] : promptTokens.slice(this.start);
    // Row i is of token i + 1: the first one asked for has none, wherever it stands.
    const rows = input.map((_, index) => (index === 0 ? null : promptLogprobs[this.start + index - 1]));
    return {
      ...nativeLogprobs("input", this.writer, input, rows, this.top),
      ...nativeLogprobs("output", this.writer, answer.tokens, answer.logprobs, this.top),
    };
  }
}

function finish(type: string, tokens: readonly number[], stopReason: string | number | undefined): object {
  if (type === "length") return { type, length: tokens.length };
  // SGLang names what matched: the stop string or id, or the EOS id that came last.
  if (type === "stop") return { type, matched: stopReason ?? tokens.at(-1) ?? null };
  return { type, message: "the request was aborted" };
}

/** SGLang's stream: every event carries all that was generated so far. */
class Snapshots implements StreamFormat {
  private readonly answers: Answer[];

  constructor(
    private readonly choices: Choices,
    private readonly native: NativeForm,
    private readonly indexed: boolean,
  ) {
    this.answers = choices.generations.map(() => new Answer());
  }

  event(choice: number, event: GenerationEvent): string {
    const answer = this.answers[choice];
    answer.add(event);
    const snapshot = this.native.result(this.choices, choice, answer);
    return `data: ${JSON.stringify(this.indexed ? { ...snapshot, index: choice } : snapshot)}\n\n`;
  }

  close(): string {
    return "";
  }
}
