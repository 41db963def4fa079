/** What `/` answers; test/e2e/playground.test.ts opens it in a browser. */
import { afterAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { FakeRuntime, startServer } from "./support/fake-runtime.ts";

const server = startServer(new FakeRuntime(), { apiKeys: ["secret"] });
afterAll(() => server.stop());

test("browsers get a page without a key, others a word of what answers", async () => {
  const page = await fetch(server.url, { headers: { accept: "text/html,application/xhtml+xml,*/*;q=0.8" } });
  expect(page.headers.get("content-type")).toStartWith("text/html");
  expect(await page.text()).toStartWith("<!doctype html>");
  const other = await fetch(server.url);
  expect(await other.json()).toMatchObject({ name: "minisgl" });
});

test("the page carries all that it needs, and may run nothing else", async () => {
  const page = await fetch(server.url, { headers: { accept: "text/html" } });
  const text = await page.text();
  const policy = page.headers.get("content-security-policy")!;
  expect(policy).toStartWith("default-src 'none'");
  for (const [tag, directive] of [
    ["script", "script-src"],
    ["style", "style-src"],
  ]) {
    const source = text.match(new RegExp(`<${tag}[^>]*>([\\s\\S]*?)</${tag}>`))![1];
    expect(source.length).toBeGreaterThan(1000);
    expect(policy).toContain(`${directive} 'sha256-${createHash("sha256").update(source).digest("base64")}'`);
  }
  expect([...text.matchAll(/(?:src|href)="(?!data:)([^"]*)/g)].map(([, address]) => address)).toEqual(["docs"]);
  expect((await fetch(new URL("docs", server.url), { headers: { authorization: "Bearer secret" } })).status).toBe(200);
});
