/** Reads request bodies: bounded in size and depth, and refused with a reason where they are not JSON. */
import type { Context } from "hono";
import { InvalidRequest } from "../runtime/types.ts";
import { HttpError } from "./errors.ts";
import type { Environment } from "./server.ts";

/** Nesting that no honest request reaches; what lies below walks values recursively. */
const maxDepth = 64;

/**
 * The JSON object in the request's body. From here on the answer may take as long as it takes.
 * @throws HttpError 413, InvalidRequest
 */
export async function readObject(c: Context<Environment>, maxBytes: number): Promise<Record<string, unknown>> {
  const bytes = await readBytes(c.req.raw, maxBytes);
  const encoding = c.req.header("content-encoding") ?? "identity";
  if (encoding !== "identity") throw new InvalidRequest(`bodies of content-encoding ${encoding} are not read here`);
  const text = decode(bytes);
  c.env.untimed?.();
  if (deeperThan(text, maxDepth)) throw new InvalidRequest(`the body is nested deeper than ${maxDepth} levels`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new InvalidRequest(`the body is not valid JSON: ${(error as Error).message}`, null, "invalid_json");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new InvalidRequest("the body must be a JSON object");
  }
  return value as Record<string, unknown>;
}

async function readBytes(request: Request, maxBytes: number): Promise<Uint8Array> {
  const announced = request.headers.get("content-length");
  if (announced !== null) {
    if (Number(announced) > maxBytes) throw tooLarge(maxBytes);
    return new Uint8Array(await request.arrayBuffer());
  }
  if (request.body === null) return new Uint8Array();
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of request.body) {
    size += part.length;
    if (size > maxBytes) throw tooLarge(maxBytes);
    parts.push(part);
  }
  return Buffer.concat(parts, size);
}

function tooLarge(maxBytes: number): HttpError {
  return new HttpError(413, `the body is larger than ${maxBytes} bytes`, {
    code: "body_too_large",
    headers: { connection: "close" },
  });
}

function decode(bytes: Uint8Array): string {
  if (bytes.length === 0) throw new InvalidRequest("the body is empty, it must be a JSON object");
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new InvalidRequest("the body is not valid UTF-8", null, "invalid_utf8");
  }
}

/** Whether brackets outside of strings are nested deeper than `limit`. */
function deeperThan(text: string, limit: number): boolean {
  let depth = 0;
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === 0x22) {
      at = endOfString(text, at);
    } else if (code === 0x5b || code === 0x7b) {
      if (++depth > limit) return true;
    } else if (code === 0x5d || code === 0x7d) {
      depth--;
    }
  }
  return false;
}

/** The index of the quote that closes the string opened at `start`. */
function endOfString(text: string, start: number): number {
  let end = start;
  for (;;) {
    end = text.indexOf('"', end + 1);
    if (end < 0) return text.length;
    let backslashes = 0;
    while (text.charCodeAt(end - 1 - backslashes) === 0x5c) backslashes++;
    if (backslashes % 2 === 0) return end;
  }
}
