/** The page at `/`: its three files as one answer, so that nothing else has to be reachable without a key. */
import type { Hono } from "hono";
import { hashOf, pageHeaders } from "../page-headers.ts";
import style from "../playground/page.css" with { type: "text" };
import markup from "../playground/page.html" with { type: "text" };
import script from "../playground/page.js" with { type: "text" };
import type { Environment } from "../server.ts";
import { version } from "./health.ts";

const page = markup.replace("/* page.css */", () => style).replace("/* page.js */", () => script);
const headers = {
  ...pageHeaders({ script: hashOf(script), style: hashOf(style), image: "data:" }),
  vary: "accept",
};

/** Browsers get the page, other clients a word of what answers here. */
export function playgroundRoutes(app: Hono<Environment>): void {
  app.get("/", (c) => {
    if (c.req.header("accept")?.includes("text/html")) return c.body(page, 200, headers);
    return c.json({ name: "minisgl", version }, 200, { vary: "accept" });
  });
}
