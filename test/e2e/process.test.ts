/** The executable as a process: starting, failing, ending. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { freePort, Installation, model, TestServer } from "./support.ts";

setDefaultTimeout(60_000);
const installation = new Installation();
afterAll(() => installation.remove());

test("it listens at once, is unhealthy while it loads, and healthy within three seconds", async () => {
  const port = freePort();
  const started = performance.now();
  const server = new TestServer(installation.spawn("--model", model, "--port", String(port)), port);
  const seen = new Set<number>();
  for (let status = 0; status !== 200; ) {
    status = await server.health();
    seen.add(status);
  }
  // Where other work slows the machine down, its own processor time must do.
  expect(Math.min((performance.now() - started) / 1000, server.processorTime())).toBeLessThan(3);
  expect(seen).toContain(503);
  await server.terminate();
});

test("SIGTERM lets a running stream end, refuses new requests, and exits with 0", async () => {
  const server = await installation.serve();
  const stream = await server.client.completions.create({
    model: "default",
    prompt: "A story:",
    max_tokens: 100,
    stream: true,
    stream_options: { include_usage: true },
    ...({ ignore_eos: true } as object),
  });
  let ended: Promise<{ code: number }> | undefined;
  let tokens = 0;
  for await (const chunk of stream) {
    if (ended === undefined) {
      ended = server.terminate();
      await Bun.sleep(50);
      expect(await server.health()).toBe(503);
    }
    tokens = chunk.usage?.completion_tokens ?? tokens;
  }
  expect(tokens).toBe(100);
  expect((await ended!).code).toBe(0);
});

test("a port that another minisgl serves on is one clear line and exit code 1", async () => {
  const first = await installation.serve();
  const { code, stderr } = await installation.run("serve", "--model", model, "--port", String(first.port));
  expect(code).toBe(1);
  expect(stderr).toMatch(new RegExp(`^minisgl: [^\\n]*${first.port}[^\\n]*in use[^\\n]*\\n$`));
  await first.terminate();
});

test("after kill -9 it starts again on the same port at once", async () => {
  const first = await installation.serve();
  first.process.kill("SIGKILL");
  await first.process.exited;
  const args = ["serve", "--model", model, "--port", String(first.port)];
  const second = new TestServer(installation.spawn(...args), first.port);
  await second.untilHealthy();
  expect((await second.terminate()).code).toBe(0);
});

test("a model that is missing or of the wrong format is one clear line and exit code 1", async () => {
  const broken = join(installation.folder, "broken.gguf");
  writeFileSync(broken, "this is not a model");
  for (const name of ["/nowhere/model.gguf", broken]) {
    const { code, stderr } = await installation.run("serve", "--model", name, "--port", String(freePort()));
    expect(code).toBe(1);
    expect(stderr.trimEnd().split("\n")).toHaveLength(1);
    expect(stderr).toContain(name);
  }
});

test("an unknown option names the nearest one", async () => {
  const { code, stderr } = await installation.run("serve", "--modle", model);
  expect(code).not.toBe(0);
  expect(stderr).toContain("--model");
});
