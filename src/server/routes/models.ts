/** What is served: /v1/models for OpenAI clients and routers, /model_info for SGLang's tools. */
import type { Context, Hono } from "hono";
import type { RuntimeInterface } from "../../runtime/types.ts";
import type { ServerContext } from "../context.ts";
import type { Environment } from "../server.ts";

export function modelRoutes(app: Hono<Environment>, context: ServerContext): void {
  const card = (runtime: RuntimeInterface, id: string) => ({
    id,
    object: "model",
    created: context.started,
    owned_by: "minisgl",
    root: runtime.info.model,
    parent: null,
    max_model_len: runtime.info.maxContext,
  });

  app.get("/v1/models", (c) => {
    const runtime = context.runtime();
    return c.json({ object: "list", data: context.modelNames(runtime).map((name) => card(runtime, name)) });
  });

  // Names are paths as often as not, so the parameter takes slashes.
  app.get("/v1/models/:name{.+}", (c) => {
    const runtime = context.runtime();
    return c.json(card(runtime, context.modelName(runtime, c.req.param("name"))));
  });

  const modelInfo = (c: Context<Environment>) => {
    const runtime = context.runtime();
    const { info } = runtime;
    return c.json({
      model_path: info.model,
      tokenizer_path: info.model,
      served_model_name: context.modelNames(runtime)[0],
      is_generation: true,
      model_type: info.architecture,
      dtype: info.dtype,
      vocab_size: info.vocabularySize,
      max_model_len: info.maxContext,
      has_chat_template: runtime.hasChatTemplate,
    });
  };
  app.get("/model_info", modelInfo);
  app.get("/get_model_info", modelInfo);
}
