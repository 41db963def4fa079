import { createHash, timingSafeEqual } from "node:crypto";
import type { MiddlewareHandler } from "hono";
import { HttpError } from "../errors.ts";
import type { Environment } from "../server.ts";

/** Routes that need no key: a load balancer has none. */
const openPaths: ReadonlySet<string> = new Set(["/", "/health"]);
/** Routes that change what the server does, for all its users. */
const adminPaths: ReadonlySet<string> = new Set(["/flush_cache", "/abort_request"]);
/** Pages that browsers open by address: all that one can send there is the password that it asks for. */
const browsed = /^\/(docs(\/.*)?|openapi\.json)$/;

/** Which keys a route wants: a user's, an admin's, or none. */
export function keyWanted(path: string, protectMetrics: boolean): "user" | "admin" | null {
  if (adminPaths.has(path)) return "admin";
  return openPaths.has(path) || (path === "/metrics" && !protectMetrics) ? null : "user";
}

const digest = (key: string): Buffer => createHash("sha256").update(key).digest();

/**
 * Wants one of `keys` as bearer token, or as the password of the documentation; on admin routes one of `adminKeys`, where
 * there are any.
 */
export function apiKey(
  keys: readonly string[],
  adminKeys: readonly string[],
  protectMetrics: boolean,
): MiddlewareHandler<Environment> {
  const users = keys.map(digest);
  const admins = adminKeys.length > 0 ? adminKeys.map(digest) : users;
  return async (c, next) => {
    const { path } = c.req;
    const wanted = keyWanted(path, protectMetrics);
    const known = wanted === "admin" ? admins : users;
    if (wanted === null || known.length === 0) return next();
    const asPassword = browsed.test(path);
    const scheme = asPassword ? 'Basic realm="API key as password", charset="UTF-8"' : "Bearer";
    const given = keyOf(c.req.header("authorization") ?? "", asPassword);
    if (given === undefined) {
      throw unauthorized("this server wants an API key: send it as Authorization: Bearer <key>", scheme);
    }
    // Digests are of one length, and all of them are compared, so that the time tells nothing of a key.
    const candidate = digest(given);
    let matches = 0;
    for (const key of known) matches += timingSafeEqual(key, candidate) ? 1 : 0;
    if (matches === 0) throw unauthorized("the API key is not one of this server's", scheme);
    return next();
  };
}

function keyOf(authorization: string, asPassword: boolean): string | undefined {
  // sglang-router sends its key beside the client's, which is the same: such headers arrive as one.
  const once = authorization.replace(/^(.+), \1$/, "$1");
  const [, scheme, credentials] = once.match(/^(Bearer|Basic)\s+(\S+)\s*$/i) ?? [];
  if (scheme?.toLowerCase() !== "basic") return credentials;
  if (!asPassword) return undefined;
  const decoded = Buffer.from(credentials, "base64").toString();
  return decoded.slice(decoded.indexOf(":") + 1);
}

function unauthorized(message: string, scheme: string): HttpError {
  return new HttpError(401, message, { code: "invalid_api_key", headers: { "www-authenticate": scheme } });
}
