/** How loaded the server is: for Prometheus, and for routers. */
import type { Hono } from "hono";
import type { ServerContext } from "../context.ts";
import type { Environment } from "../server.ts";
import { version } from "./health.ts";

export function metricsRoutes(app: Hono<Environment>, context: ServerContext): void {
  app.get("/metrics", (c) => {
    const runtime = context.observed();
    const text = context.metrics.render(runtime.statistics(), context.modelNames(runtime)[0]);
    return c.body(text, 200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" });
  });

  // SGLang's shape, one data-parallel rank.
  app.get("/v1/loads", (c) => {
    const runtime = context.observed();
    const { runningRequests, waitingRequests, usedPages, totalPages } = runtime.statistics();
    const { pageSize, maxRunningRequests } = runtime.info;
    const now = Date.now();
    const load = {
      dp_rank: 0,
      timestamp: now / 1000,
      num_running_reqs: runningRequests,
      num_waiting_reqs: waitingRequests,
      num_total_reqs: runningRequests + waitingRequests,
      num_used_tokens: usedPages * pageSize,
      max_total_num_tokens: totalPages * pageSize,
      token_usage: usedPages / totalPages,
      gen_throughput: context.metrics.tokensPerSecond(),
      cache_hit_rate: context.metrics.cacheHitRate,
      utilization: runningRequests / maxRunningRequests,
      max_running_requests: maxRunningRequests,
    };
    return c.json({ timestamp: new Date(now).toISOString(), version, dp_rank_count: 1, loads: [load] });
  });
}
