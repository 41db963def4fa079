import { createHash } from "node:crypto";

/** A script or style that stands in a page, as a source of its content security policy. */
export const hashOf = (text: string) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;

/** Headers of a page that runs what `sources` name, speaks to this server, and stands in no other's page. */
export function pageHeaders(sources: { script: string; style: string; image: string }): Record<string, string> {
  return {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": [
      "default-src 'none'",
      `script-src ${sources.script}`,
      `style-src ${sources.style}`,
      "connect-src 'self'",
      `img-src ${sources.image}`,
      "base-uri 'none'",
      "form-action 'none'",
      "frame-ancestors 'none'",
    ].join("; "),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
  };
}
