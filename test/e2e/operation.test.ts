/** What operators set: keys, limits, logs, and how the process ends. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { freePort, Installation, model, TestServer } from "./support.ts";

setDefaultTimeout(60_000);
const installation = new Installation();
afterAll(() => installation.remove());

/** A server whose output is read by the test. */
async function start(environment: Record<string, string>, ...args: string[]) {
  const port = freePort();
  const command = [join(installation.folder, "minisgl"), "--model", model, "--port", String(port), ...args];
  const child = installation.spawnCommand(command, environment);
  const server = new TestServer(child, port, false);
  await server.untilHealthy();
  return { server, ended: installation.ended(child) };
}

const endless = { prompt: "A story:", max_tokens: 8000, ignore_eos: true, stream: true };

/** Starts an answer that goes on; resolves when it has begun. */
async function begin(server: TestServer, headers: Record<string, string> = {}) {
  const response = await server.post("/v1/completions", endless, { headers });
  const reader = response.body!.getReader();
  await reader.read();
  const rest = (async () => {
    let text = "";
    const decoder = new TextDecoder();
    for (let part = await reader.read(); !part.done; part = await reader.read()) text += decoder.decode(part.value);
    return text;
  })().catch(() => "cut off");
  return { rest, leave: () => reader.cancel() };
}

describe("keys", () => {
  test("come from the command line, a file and the environment, and are shown nowhere", async () => {
    const file = join(installation.folder, "keys");
    writeFileSync(file, "# of the teams\nsecret-file-1\nsecret-file-2\n");
    const environment = { MINISGL_API_KEY: "secret-env-1,secret-env-2", MINISGL_ADMIN_API_KEY: "secret-admin" };
    const args = ["--api-key", "secret-arg-1", "secret-arg-2", "--api-key-file", file, "--log-requests"];
    const { server, ended } = await start(environment, ...args, "--log-level", "debug");
    const ask = (path: string, key: string, init: RequestInit = {}) =>
      fetch(server.url + path, { ...init, headers: { authorization: `Bearer ${key}` } });
    const users = ["arg-1", "arg-2", "file-1", "file-2", "env-1", "env-2"].map((name) => `secret-${name}`);
    for (const key of users) {
      const info = await ask("/server_info", key);
      expect(info.status).toBe(200);
      expect(await info.text()).not.toContain("secret");
      expect((await ask("/flush_cache", key)).status).toBe(401);
    }
    for (const key of ["secret-arg", "# of the teams", "secret-env-1,secret-env-2", "secret-admin", ""]) {
      expect((await ask("/v1/models", key)).status).toBe(401);
    }
    expect((await ask("/flush_cache", "secret-admin")).status).toBe(200);
    expect((await fetch(`${server.url}/metrics`)).status).toBe(200);
    server.process.kill("SIGTERM");
    const { stdout, stderr } = await ended;
    expect(stdout).toContain("route=/flush_cache status=401");
    expect(stdout + stderr).not.toContain("secret");
  });
});

describe("limits", () => {
  test("what may wait, a body's size and a request's time are as they were set", async () => {
    const limits = ["--max-queued-requests", "1", "--max-body-bytes", "2000", "--request-timeout", "3"];
    const { server, ended } = await start({}, "--max-running-requests", "1", ...limits);
    const began = performance.now();
    const running = await begin(server);
    const waiting = server.post("/v1/completions", { ...endless, stream: false });
    while ((await server.info()).num_waiting_requests === 0) await Bun.sleep(5);
    const refused = await server.post("/v1/completions", endless);
    expect(refused.status).toBe(429);
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(await refused.json()).toMatchObject({ error: { code: "queue_full", type: "rate_limit_error" } });
    expect((await server.post("/v1/completions", { prompt: "a".repeat(2000) })).status).toBe(413);
    // Both were sent at about the same time, and time runs while a request waits.
    expect(await running.rest).toContain('"code":"request_timeout"');
    const late = await waiting;
    expect(late.status).toBe(503);
    expect(await late.json()).toMatchObject({ error: { code: "request_timeout" } });
    expect((performance.now() - began) / 1000).toBeGreaterThan(2.9);
    expect((performance.now() - began) / 1000).toBeLessThan(8);
    await server.untilIdle();
    server.process.kill("SIGTERM");
    expect((await ended).code).toBe(0);
  });

  test("a client that reads nothing is cut off, and holds little memory until then", async () => {
    const { server, ended } = await start({}, "--device", "null", "--num-pages", "200000", "--stall-timeout", "2");
    // Every event repeats all the text so far: far more than sockets take in.
    const sampling_params = { n: 16, max_new_tokens: 8000, ignore_eos: true };
    const body = JSON.stringify({ input_ids: [1, 2], stream: true, sampling_params });
    const before = server.memory();
    const cut = Promise.withResolvers<number>();
    const socket = connect(server.port, "127.0.0.1");
    socket.write(`POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
    socket.once("data", () => socket.pause());
    for (const event of ["error", "close"]) socket.on(event, () => cut.resolve(performance.now()));
    const began = performance.now();
    let most = 0;
    const timer = setInterval(() => {
      most = Math.max(most, server.memory() - before);
    }, 20);
    expect((await cut.promise) - began).toBeWithin(1900, 5000);
    clearInterval(timer);
    expect(most).toBeGreaterThan(0);
    expect(most / 2 ** 20).toBeLessThan(150);
    await server.untilIdle();
    server.process.kill("SIGTERM");
    expect((await ended).code).toBe(0);
  });

  test("a context beyond the model's is refused, and one beyond the pool is told of", async () => {
    const longer = await installation.run("serve", "--model", model, "--max-seq-len-override", "8193", "--port", "0");
    expect(longer.stderr).toBe(
      "minisgl: --max-seq-len-override 8193 is more than the 8192 tokens that the model was made for\n",
    );
    expect(longer.code).toBe(1);
    const { server, ended } = await start({}, "--max-seq-len-override", "4000", "--num-pages", "1000");
    expect((await server.info()).max_model_len).toBe(1000);
    server.process.kill("SIGTERM");
    expect((await ended).stderr).toContain("minisgl: the context is 1000 tokens, not the 4000 asked for");
  });
});

describe("the log", () => {
  test("has a line for each request, whose times are what they were", async () => {
    const { server, ended } = await start({}, "--max-running-requests", "1", "--log-requests", "--log-format", "json");
    const body = { prompt: "One two three", max_tokens: 40, ignore_eos: true };
    const complete = (id: string) => server.post("/v1/completions", body, { headers: { "x-request-id": id } });
    const first = complete("first");
    while ((await server.info()).num_running_requests === 0) await Bun.sleep(1);
    await Promise.all([first, complete("second")]);
    await server.post("/v1/chat/completions", { messages: [] }, { headers: { "x-request-id": "bad" } });
    server.process.kill("SIGTERM");
    const { stdout, stderr } = await ended;
    expect(stderr).toBe("");
    const lines = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines[0].message).toStartWith("loading ");
    expect(lines.at(-1).message).toBe("ended");
    const line = (id: string) => lines.find(({ message, request_id }) => message === "request" && request_id === id);
    const [one, two] = [line("first"), line("second")];
    for (const each of [one, two]) {
      expect(each).toMatchObject({
        level: "info",
        route: "/v1/completions",
        status: 200,
        prompt_tokens: 3,
        completion_tokens: 40,
        finish: "length",
      });
      const sum = each.queue_ms + each.prefill_ms + each.decode_ms;
      expect(sum).toBeGreaterThan(0.8 * each.total_ms);
      expect(sum).toBeLessThan(each.total_ms + 1);
      // 39 tokens take longer than one.
      expect(each.decode_ms).toBeGreaterThan(each.prefill_ms);
    }
    // There is one place: the second waited until the first had ended, as the clock of the log says.
    const endOf = ({ time, total_ms }: { time: string; total_ms: number }) => Date.parse(time) + total_ms;
    const waited = endOf(one) - Date.parse(two.time);
    expect(two.queue_ms).toBeGreaterThan(waited - 100);
    expect(two.queue_ms).toBeLessThan(waited + 100);
    expect(one.queue_ms).toBeLessThan(two.queue_ms / 2);
    expect(line("bad")).toMatchObject({ route: "/v1/chat/completions", status: 400, error: expect.any(String) });
  });

  test("is silent below its level", async () => {
    const { server, ended } = await start({}, "--log-level", "error", "--log-requests");
    await server.post("/v1/completions", { prompt: "One", max_tokens: 1 });
    server.process.kill("SIGTERM");
    expect((await ended).stdout).toBe("");
  });
});

describe("ending", () => {
  test("SIGTERM aborts what does not end within --drain-timeout, and the exit code is 0", async () => {
    const { server, ended } = await start({}, "--drain-timeout", "1");
    const { rest } = await begin(server);
    const began = performance.now();
    server.process.kill("SIGTERM");
    await Bun.sleep(200);
    expect(await server.health()).toBe(503);
    expect((await server.post("/v1/completions", endless)).status).toBe(503);
    const { code, stderr } = await ended;
    expect(code).toBe(0);
    expect((performance.now() - began) / 1000).toBeWithin(0.9, 4);
    expect(stderr).toContain("aborted 1 request that did not end in 1 s");
    expect(await rest).toContain('"finish_reason":"abort"');
  });

  test("a second SIGINT does not wait", async () => {
    const { server, ended } = await start({});
    await begin(server);
    server.process.kill("SIGINT");
    await Bun.sleep(300);
    expect(server.process.exitCode).toBeNull();
    const began = performance.now();
    server.process.kill("SIGINT");
    expect((await ended).code).toBe(130);
    expect(performance.now() - began).toBeLessThan(1000);
  });

  test("SIGTERM while the model is loading ends at once with 0", async () => {
    const child = installation.spawn("--model", model, "--port", String(freePort()));
    await Bun.sleep(60);
    child.kill("SIGTERM");
    const { code } = await installation.ended(child);
    // Before it has set up anything it dies of the signal, which is as good.
    expect([0, 143]).toContain(code);
  });
});
