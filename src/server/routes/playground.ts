/** The page at `/`: its three files as one answer, so that nothing else has to be reachable without a key. */
import { createHash } from "node:crypto";
import type { Hono } from "hono";
import style from "../playground/page.css" with { type: "text" };
import markup from "../playground/page.html" with { type: "text" };
import script from "../playground/page.js" with { type: "text" };
import type { Environment } from "../server.ts";
import { version } from "./health.ts";

const page = markup.replace("/* page.css */", () => style).replace("/* page.js */", () => script);
const hash = (source: string) => `'sha256-${createHash("sha256").update(source).digest("base64")}'`;

const headers = {
  "content-type": "text/html; charset=utf-8",
  // The page runs what is in it and speaks to this server, and nothing else.
  "content-security-policy": [
    "default-src 'none'",
    `script-src ${hash(script)}`,
    `style-src ${hash(style)}`,
    "connect-src 'self'",
    "img-src data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; "),
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cache-control": "no-cache",
  vary: "accept",
};

/** Browsers get the page, other clients a word of what answers here. */
export function playgroundRoutes(app: Hono<Environment>): void {
  app.get("/", (c) => {
    if (c.req.header("accept")?.includes("text/html")) return c.body(page, 200, headers);
    return c.json({ name: "minisgl", version }, 200, { vary: "accept" });
  });
}
