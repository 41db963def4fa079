/** /v1/completions: https://platform.openai.com/docs/api-reference/completions */
import type { Hono } from "hono";
import {
  type Generation,
  type GenerationEvent,
  InvalidRequest,
  type Prompt,
  type RuntimeInterface,
  type TokenLogprob,
} from "../../runtime/types.ts";
import { readObject } from "../body.ts";
import type { Answer } from "../choices.ts";
import type { ServerContext } from "../context.ts";
import { joinRuns, LegacyLogprobs, TokenWriter } from "../logprobs.ts";
import { answer, type Dialect } from "../openai.ts";
import { completionPrompts, refuseUnsupported } from "../parameters.ts";
import { type CompletionBody, completionSchema, parse } from "../schemas.ts";
import type { Environment } from "../server.ts";

export function completionRoutes(app: Hono<Environment>, context: ServerContext): void {
  app.post("/v1/completions", async (c) => {
    const runtime = context.runtime();
    const fields = await readObject(c, context.options.maxBodyBytes);
    refuseUnsupported(fields);
    const body = parse(completionSchema, fields);
    const { echo, logprobs, max_tokens, prompt_logprobs } = body;
    if (max_tokens === 0 && echo !== true) {
      throw new InvalidRequest("max_tokens must be a positive integer where the prompt is not echoed", "max_tokens");
    }
    const prompts = completionPrompts(body.prompt, body.add_special_tokens);
    const echoes = echo === true ? prompts.map((prompt) => promptText(runtime, prompt)) : null;
    const echoed = echoes === null ? undefined : logprobs;
    return answer(c, context, runtime, {
      body,
      prompts,
      maxTokens: max_tokens,
      logprobs,
      promptLogprobs: echoed === undefined ? prompt_logprobs : Math.max(echoed, prompt_logprobs ?? 0),
      dialect: new CompletionDialect(runtime, body, echoes),
    });
  });
}

class CompletionDialect implements Dialect {
  readonly idPrefix = "cmpl-";
  readonly object = "text_completion";
  readonly chunkObject = "text_completion";
  /** What OpenAI documents for this route, and vLLM and SGLang keep. */
  readonly defaultMaxTokens = 16;
  readonly opening = null;
  readonly promptOn = "choice";
  private readonly n: number;
  readonly writer: TokenWriter;
  private readonly runs: LegacyLogprobs[] = [];

  /** @param echoes the prompts' texts, where they are to stand before the answers' */
  constructor(
    runtime: RuntimeInterface,
    private readonly body: CompletionBody,
    private readonly echoes: readonly string[] | null,
  ) {
    this.n = body.n ?? 1;
    this.writer = new TokenWriter(runtime, body.return_tokens_as_token_ids);
  }

  choice({ text }: Answer, _: Generation, index: number): object {
    return { text: this.echoed(index) + text };
  }

  delta({ text }: GenerationEvent, _: Generation, index: number, first: boolean): string {
    return `"text":${JSON.stringify(first ? this.echoed(index) + text : text)}`;
  }

  logprobs(logprobs: readonly TokenLogprob[], generation: Generation, index: number, first: boolean): object {
    const { logprobs: top = 0, skip_special_tokens = true } = this.body;
    this.runs[index] ??= new LegacyLogprobs(this.writer, top, skip_special_tokens);
    const legacy = this.runs[index];
    if (!first || this.echoes === null) return legacy.answer(logprobs);
    const prompt = legacy.prompt(generation.promptTokens, generation.promptLogprobs, this.echoed(index));
    return joinRuns(prompt, legacy.answer(logprobs));
  }

  reasoningTokens(): null {
    return null;
  }

  private echoed(index: number): string {
    return this.echoes?.[Math.floor(index / this.n)] ?? "";
  }
}

/** A prompt's text; none where the model has no tokenizer, whose answers have none either. */
function promptText(runtime: RuntimeInterface, prompt: Prompt): string {
  if ("text" in prompt) return prompt.text;
  return "tokens" in prompt && runtime.tokenText(0) !== null ? runtime.decode(prompt.tokens) : "";
}
