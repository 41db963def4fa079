/** /openapi.json, and /docs to browse it: Swagger UI out of this executable, with nothing from another host. */
import type { Hono } from "hono";
import style from "swagger-ui-dist/swagger-ui.css" with { type: "file" };
import bundle from "swagger-ui-dist/swagger-ui-bundle.js" with { type: "file" };
import type { ServerContext } from "../context.ts";
import { openApiDocument } from "../openapi/document.ts";
import { hashOf, pageHeaders } from "../page-headers.ts";
import type { Environment } from "../server.ts";

const script = `SwaggerUIBundle({ url: "openapi.json", dom_id: "#docs", deepLinking: true, validatorUrl: null })`;

// Addresses are relative, so that the page works under a prefix of a proxy as well.
const page = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>minisgl API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
<div id="docs"></div>
<script src="docs/swagger-ui.js"></script>
<script>${script}</script>
</html>
`;

const headers = pageHeaders({
  script: `'self' ${hashOf(script)}`,
  // Swagger UI writes style attributes.
  style: "'self' 'unsafe-inline'",
  image: "'self' data:",
});

export function openApiRoutes(app: Hono<Environment>, context: ServerContext): void {
  let json: string | undefined;
  app.get("/openapi.json", (c) => {
    json ??= JSON.stringify(openApiDocument(context));
    return c.body(json, 200, { "content-type": "application/json" });
  });
  app.get("/docs", (c) => c.body(page, 200, headers));
  const asset = (path: string, file: string, type: string) =>
    app.get(path, (c) =>
      c.body(Bun.file(file).stream(), 200, { "content-type": type, "cache-control": "max-age=86400" }),
    );
  asset("/docs/swagger-ui.css", style, "text/css; charset=utf-8");
  asset("/docs/swagger-ui.js", bundle, "text/javascript; charset=utf-8");
}
