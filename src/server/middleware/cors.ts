import type { MiddlewareHandler } from "hono";
import type { Environment } from "../server.ts";

/** Lets pages of `origins` call the server, and answers their preflight requests. Headers come first, as in request-id. */
export function accessControl(origins: readonly string[]): MiddlewareHandler<Environment> {
  const any = origins.includes("*");
  return async (c, next) => {
    const origin = c.req.header("origin");
    if (origin === undefined) return next();
    if (any || origins.includes(origin)) c.header("access-control-allow-origin", any ? "*" : origin);
    if (!any) c.header("vary", "origin");
    c.header("access-control-expose-headers", "x-request-id");
    if (c.req.method !== "OPTIONS") return next();
    c.header("access-control-allow-methods", "GET, POST, OPTIONS");
    c.header("access-control-allow-headers", c.req.header("access-control-request-headers") ?? "*");
    c.header("access-control-max-age", "600");
    return c.body(null, 204);
  };
}
