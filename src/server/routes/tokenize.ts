/** /tokenize and /detokenize, in the union of vLLM's and SGLang's shapes. */
import type { Hono } from "hono";
import { InvalidRequest, type Prompt, type RuntimeInterface } from "../../runtime/types.ts";
import { readObject } from "../body.ts";
import type { ServerContext } from "../context.ts";
import { chatPrompt, textPrompts, tokenPrompts } from "../parameters.ts";
import { detokenizeSchema, parse, type TokenizeBody, tokenizeSchema } from "../schemas.ts";
import type { Environment } from "../server.ts";

export function tokenizeRoutes(app: Hono<Environment>, context: ServerContext): void {
  app.post("/tokenize", async (c) => {
    const runtime = context.runtime();
    const body = parse(tokenizeSchema, await readObject(c, context.options.maxBodyBytes));
    context.modelName(runtime, body.model);
    const lists = await Promise.all(promptsOf(runtime, body).map((prompt) => runtime.encode(prompt)));
    const list = Array.isArray(body.prompt);
    const strings = lists.map((tokens) => tokens.map((token) => runtime.decode([token])));
    return c.json({
      tokens: list ? lists : lists[0],
      count: list ? lists.map((tokens) => tokens.length) : lists[0].length,
      max_model_len: runtime.info.maxContext,
      ...(body.return_token_strs === true && { token_strs: list ? strings : strings[0] }),
    });
  });

  app.post("/detokenize", async (c) => {
    const runtime = context.runtime();
    const { tokens } = parse(detokenizeSchema, await readObject(c, context.options.maxBodyBytes));
    const texts = tokenPrompts(tokens, "tokens").map((prompt) =>
      runtime.decode("tokens" in prompt ? prompt.tokens : []),
    );
    const text = Array.isArray((tokens as unknown[])[0]) ? texts : texts[0];
    return c.json({ prompt: text, text });
  });
}

function promptsOf(runtime: RuntimeInterface, body: TokenizeBody): Prompt[] {
  if (body.messages !== undefined && body.prompt !== undefined) {
    throw new InvalidRequest("give prompt or messages, not both", "prompt");
  }
  if (body.messages !== undefined) return [chatPrompt(runtime, { ...body, messages: body.messages })];
  if (body.prompt === undefined) throw new InvalidRequest("prompt is missing, or messages", "prompt");
  return textPrompts(body.prompt, "prompt", body.add_special_tokens);
}
