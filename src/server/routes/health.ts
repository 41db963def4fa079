/** Whether the server lives, and what it is. */
import type { Hono } from "hono";
import packageJson from "../../../package.json";
import type { ServerContext } from "../context.ts";
import { HttpError } from "../errors.ts";
import type { Environment } from "../server.ts";

export const version: string = packageJson.version;

export function healthRoutes(app: Hono<Environment>, context: ServerContext): void {
  /** 200 while a token can be made, 503 while loading or draining. */
  app.get("/health", (c) => {
    context.runtime();
    return c.json({ status: "ok" });
  });
  /** 200 if a token was really made. */
  app.get("/health_generate", async (c) => {
    const generation = await context
      .runtime()
      .generate({ tokens: [0] }, { maxTokens: 1, temperature: 0 }, c.req.raw.signal);
    for await (const { tokens } of generation) if (tokens.length > 0) return c.json({ status: "ok" });
    throw new HttpError(503, "no token was made", { code: "no_token" });
  });
  /** 200 as long as the process answers. */
  app.get("/ping", (c) => c.json({ status: "ok" }));
  app.get("/version", (c) => c.json({ version }));
}
