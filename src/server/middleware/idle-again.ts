import type { MiddlewareHandler } from "hono";
import type { Environment } from "../server.ts";

/** Puts the idle timeout on a connection again when its answer is complete, or nobody would close what clients forget. */
export const idleAgain: MiddlewareHandler<Environment> = async (c, next) => {
  await next();
  const choices = c.get("choices");
  if (choices === undefined) c.env.timed?.();
  else choices.ended.then(() => c.env.timed?.());
};
