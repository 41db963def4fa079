/** What operators, routers and SGLang's tools ask of a running server. */
import type { Context, Hono } from "hono";
import { InvalidRequest } from "../../runtime/types.ts";
import { readObject } from "../body.ts";
import type { ServerContext } from "../context.ts";
import { HttpError } from "../errors.ts";
import { abortSchema, parse } from "../schemas.ts";
import type { Environment } from "../server.ts";
import { version } from "./health.ts";

export function adminRoutes(app: Hono<Environment>, context: ServerContext): void {
  const serverInfo = (c: Context<Environment>) => {
    const runtime = context.observed();
    const { info } = runtime;
    const statistics = runtime.statistics();
    return c.json({
      version,
      model_path: info.model,
      served_model_name: context.modelNames(runtime)[0],
      architecture: info.architecture,
      dtype: info.dtype,
      device: info.device,
      library: info.library,
      max_model_len: info.maxContext,
      context_length: info.maxContext,
      max_running_requests: info.maxRunningRequests,
      max_total_num_tokens: info.numPages * info.pageSize,
      page_size: info.pageSize,
      weight_bytes: info.weightBytes,
      pool_bytes: info.poolBytes,
      load_seconds: info.loadSeconds,
      weight_seconds: info.weightSeconds,
      capture_seconds: info.captureSeconds,
      num_running_requests: statistics.runningRequests,
      num_waiting_requests: statistics.waitingRequests,
      num_used_pages: statistics.usedPages,
      num_cached_pages: statistics.cachedPages,
      num_total_pages: statistics.totalPages,
      num_steps: statistics.steps,
      num_ring_stalls: statistics.ringStalls,
      num_preemptions: statistics.preemptions,
      num_prompt_tokens: statistics.promptTokens,
      num_cached_tokens: statistics.cachedTokens,
      num_generated_tokens: statistics.generatedTokens,
      options: context.options.settings,
    });
  };
  app.get("/server_info", serverInfo);
  app.get("/get_server_info", serverInfo);

  app.on(["GET", "POST"], "/flush_cache", async (c) => {
    if (await context.runtime().flushCache()) return c.json({ success: true, message: "the prefix cache is empty" });
    throw new HttpError(400, "the prefix cache is in use: requests are running or waiting", { code: "cache_in_use" });
  });

  /** Aborts the requests known as `rid` (the id of the answer, the x-request-id or SGLang's rid), or all. */
  app.post("/abort_request", async (c) => {
    const { rid, abort_all } = parse(abortSchema, await readObject(c, context.options.maxBodyBytes));
    if (rid === undefined && abort_all !== true) throw new InvalidRequest("rid is missing, or abort_all", "rid");
    const found = [...context.active].filter(({ id }) => abort_all || id === rid || id.endsWith(`-${rid}`));
    for (const choices of found) choices.abort();
    return c.json({ aborted: found.length });
  });
}
