/** The two OpenAI routes' common ground: envelopes, usage, and the chunks of their streams. */
import type { Context } from "hono";
import type { Generation, GenerationEvent, Prompt, RuntimeInterface } from "../runtime/types.ts";
import { type Answer, Choices, type Usage, usageOf } from "./choices.ts";
import type { ServerContext } from "./context.ts";
import { eventStream, type StreamFormat, streamHeaders } from "./event-stream.ts";
import { generationParameters } from "./parameters.ts";
import type { OpenAIFields } from "./schemas.ts";
import type { Environment } from "./server.ts";

/** How one of the routes writes. Strings are pieces of JSON, with a leading comma where one is needed. */
export interface Dialect {
  idPrefix: string;
  object: string;
  chunkObject: string;
  defaultMaxTokens: number | null;
  /** The fields of a choice of a complete answer, besides index and finish_reason. */
  choice(answer: Answer, index: number): object;
  /** The field of a streamed choice that carries text. */
  delta(text: string, index: number, first: boolean): string;
  /** The chunk that opens a choice's stream: its choice field, or null for none. */
  opening: string | null;
  /** vLLM's place of prompt_token_ids: on the response (chat) or on each choice (completions). */
  promptTokensOn: "response" | "choice";
}

/** Starts the request's generations and answers with their end or their stream. */
export async function answer(
  c: Context<Environment>,
  context: ServerContext,
  runtime: RuntimeInterface,
  dialect: Dialect,
  body: OpenAIFields,
  prompts: readonly Prompt[],
  maxTokens: number | undefined,
): Promise<Response> {
  const model = context.modelName(runtime, body.model);
  const choices = await Choices.start(context, runtime, {
    id: `${dialect.idPrefix}${c.get("requestId")}`,
    prompts,
    n: body.n ?? 1,
    parameters: (limit, choice) => generationParameters(body, limit, choice),
    maxTokens,
    defaultMaxTokens: dialect.defaultMaxTokens,
    signal: c.req.raw.signal,
  });
  c.set("choices", choices);
  const created = Math.floor(Date.now() / 1000);
  if (body.stream === true) {
    const format = new Chunks(choices, dialect, body, created, model);
    const stream = await eventStream(choices, format, context.options.stallTimeoutSeconds);
    return c.body(stream, 200, streamHeaders);
  }
  const answers = await choices.collect();
  const wantsTokens = body.return_token_ids === true;
  return c.json({
    id: choices.id,
    object: dialect.object,
    created,
    model,
    choices: answers.map((answer, index) => ({
      index,
      ...dialect.choice(answer, index),
      logprobs: null,
      finish_reason: answer.finishReason,
      stop_reason: answer.stopReason ?? null,
      ...(wantsTokens && { token_ids: answer.tokens }),
      ...(wantsTokens && dialect.promptTokensOn === "choice" && promptTokens(choices.generations[index])),
    })),
    usage: choices.usage(),
    ...(wantsTokens && dialect.promptTokensOn === "response" && promptTokens(choices.generations[0])),
  });
}

function promptTokens(generation: Generation): { prompt_token_ids: readonly number[] } {
  return { prompt_token_ids: Array.from(generation.promptTokens) };
}

/** Writes chunks by hand: only the text goes through JSON.stringify, the rest of a chunk is the same every time. */
class Chunks implements StreamFormat {
  private readonly head: string;
  private readonly tail: string;
  private readonly generated: number[];
  private readonly includeUsage: boolean;
  private readonly continuousUsage: boolean;
  private readonly tokenIds: boolean;

  constructor(
    private readonly choices: Choices,
    private readonly dialect: Dialect,
    body: OpenAIFields,
    created: number,
    model: string,
  ) {
    this.includeUsage = body.stream_options?.include_usage === true;
    this.continuousUsage = this.includeUsage && body.stream_options?.continuous_usage_stats === true;
    this.tokenIds = body.return_token_ids === true;
    const envelope = JSON.stringify({ id: choices.id, object: dialect.chunkObject, created, model });
    this.head = `data: ${envelope.slice(0, -1)},"choices":[`;
    this.tail = this.includeUsage ? ',"usage":null}\n\n' : "}\n\n";
    this.generated = choices.generations.map(() => 0);
  }

  event(choice: number, { text, tokens, finishReason, stopReason }: GenerationEvent, first: boolean): string {
    const opening = first ? this.opening(choice) : "";
    this.generated[choice] += tokens.length;
    let fields = this.dialect.delta(text, choice, first);
    if (this.tokenIds) {
      fields += `,"token_ids":${JSON.stringify(tokens)}`;
      if (first && this.dialect.promptTokensOn === "choice") fields += `,${this.promptTokens(choice)}`;
    }
    const finish =
      finishReason === null
        ? '"finish_reason":null}]'
        : `"finish_reason":"${finishReason}","stop_reason":${JSON.stringify(stopReason ?? null)}}]`;
    return `${opening}${this.head}{"index":${choice},${fields},"logprobs":null,${finish}${this.end(choice)}`;
  }

  close(): string {
    if (!this.includeUsage) return "";
    return `${this.head}],"usage":${JSON.stringify(this.choices.usage())}}\n\n`;
  }

  private opening(choice: number): string {
    if (this.dialect.opening === null) return "";
    const tokens = this.tokenIds && this.dialect.promptTokensOn === "response" ? `,${this.promptTokens(choice)}` : "";
    const opening = `{"index":${choice},${this.dialect.opening},"logprobs":null,"finish_reason":null}]${tokens}`;
    return `${this.head}${opening}${this.end(choice)}`;
  }

  private end(choice: number): string {
    return this.continuousUsage ? `,"usage":${JSON.stringify(this.usage(choice))}}\n\n` : this.tail;
  }

  private usage(choice: number): Usage {
    const { promptTokens, cachedTokens } = this.choices.generations[choice];
    return usageOf(promptTokens.length, this.generated[choice], cachedTokens);
  }

  private promptTokens(choice: number): string {
    return `"prompt_token_ids":${JSON.stringify(Array.from(this.choices.generations[choice].promptTokens))}`;
  }
}
