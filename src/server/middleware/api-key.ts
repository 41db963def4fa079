import { createHash, timingSafeEqual } from "node:crypto";
import type { MiddlewareHandler } from "hono";
import { HttpError } from "../errors.ts";
import type { Environment } from "../server.ts";

/** Routes that need no key: a load balancer has none. */
const open = new Set(["/", "/health"]);
/** Routes that change what the server does, for all its users. */
const admin = new Set(["/flush_cache", "/abort_request"]);

const digest = (key: string): Buffer => createHash("sha256").update(key).digest();

/** Wants one of `keys` as bearer token, on admin routes one of `adminKeys` where there are any. */
export function apiKey(
  keys: readonly string[],
  adminKeys: readonly string[],
  protectMetrics: boolean,
): MiddlewareHandler<Environment> {
  const users = keys.map(digest);
  const admins = adminKeys.length > 0 ? adminKeys.map(digest) : users;
  return async (c, next) => {
    const known = admin.has(c.req.path) ? admins : users;
    const { path } = c.req;
    if (known.length === 0 || open.has(path) || (path === "/metrics" && !protectMetrics)) return next();
    const given = c.req.header("authorization")?.match(/^Bearer\s+(\S+)\s*$/i)?.[1];
    if (given === undefined) {
      throw unauthorized("this server wants an API key: send it as Authorization: Bearer <key>");
    }
    // Digests are of one length, and all of them are compared, so that the time tells nothing of a key.
    const candidate = digest(given);
    let matches = 0;
    for (const key of known) matches += timingSafeEqual(key, candidate) ? 1 : 0;
    if (matches === 0) throw unauthorized("the API key is not one of this server's");
    return next();
  };
}

function unauthorized(message: string): HttpError {
  return new HttpError(401, message, { code: "invalid_api_key", headers: { "www-authenticate": "Bearer" } });
}
