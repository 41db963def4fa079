/** /v1/completions: https://platform.openai.com/docs/api-reference/completions */
import type { Hono } from "hono";
import type { Prompt, RuntimeInterface } from "../../runtime/types.ts";
import { readObject } from "../body.ts";
import type { ServerContext } from "../context.ts";
import { answer, type Dialect } from "../openai.ts";
import { completionPrompts, refuseUnsupported } from "../parameters.ts";
import { completionSchema, parse } from "../schemas.ts";
import type { Environment } from "../server.ts";

/** `echoed(i)` is what stands before the text of choice i. */
function dialect(echoed: (choice: number) => string): Dialect {
  return {
    idPrefix: "cmpl-",
    object: "text_completion",
    chunkObject: "text_completion",
    // The default that OpenAI documents for this route, and that vLLM and SGLang keep.
    defaultMaxTokens: 16,
    choice: ({ text }, index) => ({ text: echoed(index) + text }),
    delta: (text, index, first) => `"text":${JSON.stringify(first ? echoed(index) + text : text)}`,
    opening: null,
    promptTokensOn: "choice",
  };
}

export function completionRoutes(app: Hono<Environment>, context: ServerContext): void {
  app.post("/v1/completions", async (c) => {
    const runtime = context.runtime();
    const fields = await readObject(c, context.options.maxBodyBytes);
    refuseUnsupported(fields);
    const body = parse(completionSchema, fields);
    const prompts = completionPrompts(body.prompt);
    const echoes = body.echo === true ? prompts.map((prompt) => promptText(runtime, prompt)) : null;
    const n = body.n ?? 1;
    const echoed = (choice: number) => (echoes === null ? "" : echoes[Math.floor(choice / n)]);
    return answer(c, context, runtime, dialect(echoed), body, prompts, body.max_tokens);
  });
}

function promptText(runtime: RuntimeInterface, prompt: Prompt): string {
  if ("text" in prompt) return prompt.text;
  return "tokens" in prompt ? runtime.decode(prompt.tokens) : "";
}
