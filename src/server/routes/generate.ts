/** /generate, SGLang's native API: https://docs.sglang.io/basic_usage/native_api.html */
import type { Hono } from "hono";
import { type Generation, type GenerationEvent, InvalidRequest, type Prompt } from "../../runtime/types.ts";
import { readObject } from "../body.ts";
import { Answer, Choices } from "../choices.ts";
import type { ServerContext } from "../context.ts";
import { eventStream, type StreamFormat, streamHeaders } from "../event-stream.ts";
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
    const choices = await Choices.start(context, runtime, {
      id: body.rid ?? c.get("requestId"),
      prompts,
      n: sampling.n ?? 1,
      parameters: (limit, choice) =>
        generationParameters({ ...sampling, seed: sampling.sampling_seed ?? sampling.seed }, limit, choice),
      maxTokens: sampling.max_new_tokens,
      defaultMaxTokens: 128,
      signal: c.req.raw.signal,
    });
    c.set("choices", choices);
    const list = batch || choices.n > 1;
    if (body.stream === true) {
      const stream = await eventStream(choices, new Snapshots(choices, list), context.options.stallTimeoutSeconds);
      return c.body(stream, 200, streamHeaders);
    }
    const answers = (await choices.collect()).map((answer, index) => result(choices, index, answer));
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

function result(choices: Choices, index: number, { text, tokens, finishReason, stopReason }: Answer): object {
  const generation: Generation = choices.generations[index];
  return {
    text,
    output_ids: tokens,
    meta_info: {
      id: choices.generations.length > 1 ? `${choices.id}-${index}` : choices.id,
      finish_reason: finishReason === null ? null : finish(finishReason, tokens, stopReason),
      prompt_tokens: generation.promptTokens.length,
      completion_tokens: tokens.length,
      cached_tokens: generation.cachedTokens,
    },
  };
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
    private readonly indexed: boolean,
  ) {
    this.answers = choices.generations.map(() => new Answer());
  }

  event(choice: number, event: GenerationEvent): string {
    const answer = this.answers[choice];
    answer.add(event);
    const snapshot = result(this.choices, choice, answer);
    return `data: ${JSON.stringify(this.indexed ? { ...snapshot, index: choice } : snapshot)}\n\n`;
  }

  close(): string {
    return "";
  }
}
