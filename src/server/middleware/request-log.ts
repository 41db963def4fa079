import type { MiddlewareHandler } from "hono";
import type { RequestRecord } from "../context.ts";
import type { Log, LogFields, LogLevel } from "../log.ts";
import type { Environment } from "../server.ts";

/** Characters of what a client may make as long as it likes. */
const LONGEST = 300;

/** Routes that are asked for all the time; their lines are for debugging. */
const polled = new Set(["/health", "/metrics", "/ping"]);

/** Logs a line for each request: when its answer has ended, or at once where nothing was generated. */
export function requestLog(log: Log): MiddlewareHandler<Environment> {
  return async (c, next) => {
    const began = performance.now();
    const time = new Date().toISOString();
    await next();
    const { status } = c.res;
    const write = (record?: RequestRecord): void => {
      const level: LogLevel = polled.has(c.req.path) ? "debug" : "info";
      log(level, "request", {
        time,
        request_id: c.get("requestId"),
        method: c.req.method,
        route: c.req.path.slice(0, LONGEST),
        status,
        error: c.error?.message.slice(0, LONGEST),
        disconnected: c.req.raw.signal.aborted || undefined,
        ...(record !== undefined && generated(record)),
        total_ms: milliseconds(performance.now() - began),
      });
    };
    const choices = c.get("choices");
    if (choices === undefined) write();
    else choices.ended.then(write);
  };
}

function generated(record: RequestRecord): LogFields {
  return {
    id: record.id,
    choices: record.choices,
    prompt_tokens: record.promptTokens,
    cached_tokens: record.cachedTokens,
    completion_tokens: record.completionTokens,
    queue_ms: milliseconds(record.queue),
    prefill_ms: milliseconds(record.prefill),
    decode_ms: milliseconds(record.decode),
    finish: record.finishReasons.join(","),
  };
}

/** To a tenth. */
function milliseconds(value: number | null): number | undefined {
  return value === null ? undefined : Math.round(value * 10) / 10;
}
