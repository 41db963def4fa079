/** Errors as OpenAI clients expect them: every status and every error body is made here. */
import type { Context } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import { InvalidRequest, QueueFull } from "../runtime/types.ts";

interface Details {
  param?: string | null;
  code?: string | null;
  headers?: Record<string, string>;
}

/** An answer that is an error. The message tells the client what to change. */
export class HttpError extends Error {
  constructor(
    readonly status: ContentfulStatusCode,
    message: string,
    readonly details: Details = {},
  ) {
    super(message);
  }
}

/** The `error` object of OpenAI's API. */
export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}

const types: Record<number, string> = {
  401: "authentication_error",
  429: "rate_limit_error",
  500: "server_error",
  503: "service_unavailable_error",
};

/** The HttpError that stands for anything thrown; what nobody foresaw is a 500 and its text stays in the log. */
export function toHttpError(error: unknown): HttpError {
  if (error instanceof HttpError) return error;
  if (error instanceof InvalidRequest) {
    return new HttpError(400, error.message, { param: snakeCase(error.parameter), code: error.code });
  }
  if (error instanceof QueueFull) {
    return new HttpError(429, error.message, { code: "queue_full", headers: { "retry-after": "1" } });
  }
  if (error instanceof DOMException && error.name === "AbortError") return new HttpError(400, "the client has gone");
  console.error(error);
  return new HttpError(500, "internal error, see the server's log");
}

/** The runtime's maxTokens is the API's max_tokens. */
function snakeCase(name: string | null): string | null {
  return name?.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`) ?? null;
}

export function errorBody({ status, message, details }: HttpError): ErrorBody {
  const type = types[status] ?? "invalid_request_error";
  return { error: { message, type, param: details.param ?? null, code: details.code ?? null } };
}

export function errorResponse(c: Context, error: unknown): Response {
  const known = toHttpError(error);
  return c.json(errorBody(known), known.status, known.details.headers);
}
