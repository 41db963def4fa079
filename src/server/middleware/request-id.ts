import type { MiddlewareHandler } from "hono";
import type { Environment } from "../server.ts";

/** Gives every request an id: the client's x-request-id where it is sane, else a new one; sent back in the answer. */
export const requestId: MiddlewareHandler<Environment> = async (c, next) => {
  const given = c.req.header("x-request-id");
  const id =
    given !== undefined && /^[\x21-\x7e]{1,128}$/.test(given) ? given : crypto.randomUUID().replaceAll("-", "");
  c.set("requestId", id);
  // Before next(): a header that is set later makes Hono wrap the response, and a stream loses its fast path.
  c.header("x-request-id", id);
  await next();
};
