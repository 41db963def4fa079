/** /v1/chat/completions: https://platform.openai.com/docs/api-reference/chat */
import type { Hono } from "hono";
import { readObject } from "../body.ts";
import type { ServerContext } from "../context.ts";
import { answer, type Dialect } from "../openai.ts";
import { chatPrompt, refuseUnsupported } from "../parameters.ts";
import { chatSchema, parse } from "../schemas.ts";
import type { Environment } from "../server.ts";

const dialect: Dialect = {
  idPrefix: "chatcmpl-",
  object: "chat.completion",
  chunkObject: "chat.completion.chunk",
  defaultMaxTokens: null,
  choice: ({ text }) => ({ message: { role: "assistant", content: text, refusal: null } }),
  delta: (text) => `"delta":{"content":${JSON.stringify(text)}}`,
  opening: '"delta":{"role":"assistant","content":""}',
  promptTokensOn: "response",
};

export function chatRoutes(app: Hono<Environment>, context: ServerContext): void {
  app.post("/v1/chat/completions", async (c) => {
    const runtime = context.runtime();
    const fields = await readObject(c, context.options.maxBodyBytes);
    refuseUnsupported(fields);
    const body = parse(chatSchema, fields);
    const prompt = chatPrompt(runtime, body);
    return answer(c, context, runtime, dialect, body, [prompt], body.max_completion_tokens ?? body.max_tokens);
  });
}
