/** /v1/chat/completions: https://platform.openai.com/docs/api-reference/chat */
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
import { chatLogprobs, TokenWriter } from "../logprobs.ts";
import { answer, type Dialect } from "../openai.ts";
import { chatPrompt, refuseUnsupported } from "../parameters.ts";
import { opensThought, ReasoningSplitter, thoughtAfter } from "../reasoning.ts";
import { type ChatBody, chatSchema, parse } from "../schemas.ts";
import type { Environment } from "../server.ts";

export function chatRoutes(app: Hono<Environment>, context: ServerContext): void {
  app.post("/v1/chat/completions", async (c) => {
    const runtime = context.runtime();
    const fields = await readObject(c, context.options.maxBodyBytes);
    refuseUnsupported(fields);
    const body = parse(chatSchema, fields);
    if (body.logprobs !== true && (body.top_logprobs ?? 0) > 0) {
      throw new InvalidRequest("top_logprobs needs logprobs to be true", "top_logprobs");
    }
    const prompt = chatPrompt(runtime, body);
    return answer(c, context, runtime, {
      body,
      prompts: [prompt],
      maxTokens: body.max_completion_tokens ?? body.max_tokens,
      logprobs: body.logprobs === true ? (body.top_logprobs ?? 0) : undefined,
      promptLogprobs: body.prompt_logprobs,
      dialect: new ChatDialect(runtime, body, prompt),
    });
  });
}

class ChatDialect implements Dialect {
  readonly idPrefix = "chatcmpl-";
  readonly object = "chat.completion";
  readonly chunkObject = "chat.completion.chunk";
  readonly defaultMaxTokens = null;
  readonly opening = '"delta":{"role":"assistant","content":""}';
  readonly promptOn = "response";
  readonly writer: TokenWriter;
  /** By choice; null where answers are not parted. */
  private readonly splitters: ReasoningSplitter[] | null;
  private readonly tellsReasoning: boolean;

  constructor(
    private readonly runtime: RuntimeInterface,
    body: ChatBody,
    private readonly prompt: Prompt,
  ) {
    this.writer = new TokenWriter(runtime, body.return_tokens_as_token_ids);
    this.splitters = runtime.thinks && body.separate_reasoning !== false ? [] : null;
    this.tellsReasoning = body.include_reasoning !== false;
  }

  choice(answer: Answer, generation: Generation, index: number): object {
    const message = { role: "assistant", content: answer.text, refusal: null };
    const splitter = this.splitter(generation, index);
    if (splitter === null) return { message };
    const { reasoning, content } = splitter.push(answer);
    return {
      message: {
        ...message,
        content: content === "" && splitter.thought ? null : content,
        ...(splitter.thought && this.reasoning(reasoning)),
      },
    };
  }

  delta(event: GenerationEvent, generation: Generation, index: number): string {
    const splitter = this.splitter(generation, index);
    if (splitter === null) return `"delta":{"content":${JSON.stringify(event.text)}}`;
    const { reasoning, content } = splitter.push(event);
    const delta = {
      ...(reasoning !== "" && this.reasoning(reasoning)),
      ...((content !== "" || reasoning === "") && { content }),
    };
    return `"delta":${JSON.stringify(delta)}`;
  }

  logprobs(logprobs: readonly TokenLogprob[]): object {
    return chatLogprobs(this.writer, logprobs);
  }

  reasoningTokens(choice?: number): number | null {
    if (this.splitters === null) return null;
    const counted = choice === undefined ? this.splitters : this.splitters.slice(choice, choice + 1);
    return counted.reduce((sum, { reasoningTokens }) => sum + reasoningTokens, 0);
  }

  /** Under both names that clients look for. */
  private reasoning(reasoning: string): object {
    return this.tellsReasoning ? { reasoning_content: reasoning, reasoning } : {};
  }

  private splitter(generation: Generation, index: number): ReasoningSplitter | null {
    if (this.splitters === null) return null;
    this.splitters[index] ??= new ReasoningSplitter(this.runtime, this.begin(generation));
    return this.splitters[index];
  }

  /** Where the answer begins, seen from the chain of thought. */
  private begin({ promptTokens }: Generation): "start" | "opened" | "thought" | "answer" {
    if ("messages" in this.prompt && this.prompt.continueFinalMessage === true) {
      return thoughtAfter(this.prompt.messages.at(-1)?.content ?? "");
    }
    return opensThought(this.runtime, promptTokens) ? "opened" : "start";
  }
}
