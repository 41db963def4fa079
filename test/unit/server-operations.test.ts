/** What operators ask of the server: keys, metrics, aborts, loads. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { Writable } from "node:stream";
import OpenAI from "openai";
import { createLog, type LogFields, LossyWriter } from "../../src/server/log.ts";
import { FakeRuntime, hello, post, startServer } from "./support/fake-runtime.ts";

const runtime = new FakeRuntime();
const lines: { level: string; fields: LogFields }[] = [];
const server = startServer(runtime, {
  requestLog: (level, message, fields = {}) => {
    expect(message).toBe("request");
    lines.push({ level, fields });
  },
});
const get = (path: string) => fetch(new URL(path, server.url));
const metric = async (line: string) => {
  const text = await (await get("/metrics")).text();
  const found = text.split("\n").find((candidate) => candidate.startsWith(`${line}{model_name="models/fake.gguf"`));
  return Number(found?.split(" ").at(-1));
};

beforeEach(() => {
  runtime.calls = [];
  lines.length = 0;
  runtime.script = () => hello;
});
afterAll(() => server.stop());

describe("keys", () => {
  const guarded = startServer(runtime, { apiKeys: ["alpha", "beta"], adminKeys: ["root"] });
  afterAll(() => guarded.stop());
  const ask = (path: string, key: string | null, method = "GET") =>
    fetch(new URL(path, guarded.url), {
      method,
      headers: key === null ? {} : { authorization: key },
      ...(method === "POST" && { body: '{"prompt": "a", "rid": "x"}' }),
    });

  test("each of the keys opens, nothing else does", async () => {
    for (const key of ["Bearer alpha", "bearer beta"]) expect((await ask("/v1/models", key)).status).toBe(200);
    for (const key of [null, "", "Bearer", "Bearer ", "alpha", "Basic alpha", "Bearer alph", "Bearer alphaa"]) {
      for (const [path, method] of [
        ["/v1/models", "GET"],
        ["/v1/completions", "POST"],
        ["/server_info", "GET"],
        ["/version", "GET"],
        ["/nowhere", "GET"],
      ]) {
        const refused = await ask(path, key, method);
        expect(refused.status).toBe(401);
        expect(await refused.json()).toMatchObject({ error: { code: "invalid_api_key" } });
      }
    }
    expect(runtime.calls).toEqual([]);
  });

  test("/health and /metrics are open, unless /metrics is protected", async () => {
    for (const path of ["/health", "/metrics"]) expect((await ask(path, null)).status).toBe(200);
    const closed = startServer(runtime, { apiKeys: ["alpha"], protectMetrics: true });
    const metrics = new URL("/metrics", closed.url);
    expect((await fetch(metrics)).status).toBe(401);
    expect((await fetch(metrics, { headers: { authorization: "Bearer alpha" } })).status).toBe(200);
    expect((await fetch(new URL("/health", closed.url))).status).toBe(200);
    await closed.stop();
  });

  test("admin routes want the admin's key", async () => {
    for (const path of ["/flush_cache", "/abort_request"]) {
      expect((await ask(path, "Bearer alpha", "POST")).status).toBe(401);
      expect((await ask(path, "Bearer root", "POST")).status).toBe(200);
    }
    expect((await ask("/v1/models", "Bearer root")).status).toBe(401);
  });

  test("openai clients send them", async () => {
    const client = (apiKey: string) => new OpenAI({ baseURL: `${guarded.url}v1`, apiKey, maxRetries: 0 });
    expect((await client("beta").models.list()).data).toHaveLength(1);
    const refused = await client("gamma")
      .models.list()
      .then(
        () => null,
        (error) => error,
      );
    expect(refused).toBeInstanceOf(OpenAI.AuthenticationError);
  });
});

describe("metrics and log", () => {
  test("tokens, times and reasons are counted, streamed or not", async () => {
    runtime.script = () => ({ ...hello, cachedTokens: 1, before: () => Bun.sleep(12) });
    const before = await metric("vllm:generation_tokens_total");
    const bodies = [{ prompt: "ab" }, { prompt: "ab", stream: true }, { prompt: "ab", max_tokens: 2 }];
    for (const body of bodies) await (await post(server, "/v1/completions", body)).text();
    expect((await metric("vllm:generation_tokens_total")) - before).toBe(8);
    expect(await metric("vllm:prompt_tokens_total")).toBe(6);
    expect(await metric("vllm:prefix_cache_hits_total")).toBe(3);
    expect(await metric("sglang:cache_hit_rate")).toBe(0.5);
    expect(await metric("vllm:time_to_first_token_seconds_count")).toBe(3);
    expect(await metric("vllm:time_to_first_token_seconds_sum")).toBeGreaterThan(0.03);
    expect(await metric("vllm:inter_token_latency_seconds_count")).toBe(5);
    expect(await metric("vllm:e2e_request_latency_seconds_count")).toBe(3);
    expect(await metric("vllm:num_requests_waiting")).toBe(1);
    const text = await (await get("/metrics")).text();
    expect(text).toContain('vllm:request_success_total{model_name="models/fake.gguf",finished_reason="length"} 1\n');
    expect(text).toContain('vllm:request_success_total{model_name="models/fake.gguf",finished_reason="stop"} 2\n');
  });

  test("buckets are cumulative and every sample has its family", async () => {
    const lines = (await (await get("/metrics")).text()).trimEnd().split("\n");
    let family = "";
    let last = 0;
    for (const line of lines) {
      if (line.startsWith("# TYPE ")) {
        family = line.split(" ")[2];
        last = 0;
      } else if (!line.startsWith("#")) {
        expect(line).toMatch(/^[a-z:_0-9]+\{[^}]*\} [-+.e0-9]+$/i);
        expect(line).toStartWith(family);
        if (!line.includes("_bucket")) continue;
        const count = Number(line.split(" ").at(-1));
        expect(count).toBeGreaterThanOrEqual(last);
        last = count;
      }
    }
  });

  test("queue, prefill and decode make up the time from arrival to end", async () => {
    const sums = async () => {
      const phases = ["queue", "prefill", "decode"].map((phase) => metric(`vllm:request_${phase}_time_seconds_sum`));
      return (await Promise.all([...phases, metric("vllm:e2e_request_latency_seconds_sum")])) as number[];
    };
    runtime.script = () => ({ ...hello, before: (index) => Bun.sleep(index === 0 ? 30 : 10) });
    const before = await sums();
    await (await post(server, "/v1/completions", { prompt: "ab" })).text();
    const [queue, prefill, decode, all] = (await sums()).map((sum, index) => sum - before[index]);
    expect(queue).toBeLessThan(0.02);
    expect(prefill).toBeGreaterThan(0.025);
    expect(decode).toBeGreaterThan(0.015);
    expect(queue + prefill + decode).toBeCloseTo(all, 6);
  });
});

describe("the log of requests", () => {
  test("has a line for each answer, with its tokens and times", async () => {
    const headers = { "x-request-id": "r1" };
    runtime.script = () => ({ ...hello, cachedTokens: 1, before: () => Bun.sleep(5) });
    await (await post(server, "/v1/completions", { prompt: "ab", n: 2, stream: true }, { headers })).text();
    expect(lines).toEqual([
      {
        level: "info",
        fields: {
          time: expect.stringMatching(/^\d{4}-.*Z$/),
          request_id: "r1",
          method: "POST",
          route: "/v1/completions",
          status: 200,
          error: undefined,
          disconnected: undefined,
          id: "cmpl-r1",
          choices: 2,
          prompt_tokens: 2,
          cached_tokens: 1,
          completion_tokens: 6,
          queue_ms: expect.any(Number),
          prefill_ms: expect.any(Number),
          decode_ms: expect.any(Number),
          finish: "stop,stop",
          total_ms: expect.any(Number),
        },
      },
    ]);
    const { queue_ms, prefill_ms, decode_ms, total_ms } = lines[0].fields as Record<string, number>;
    expect(prefill_ms).toBeGreaterThan(4);
    expect(decode_ms).toBeGreaterThan(8);
    expect(queue_ms + prefill_ms + decode_ms).toBeLessThan(total_ms + 0.3);
  });

  test("has those that were refused, with the reason, and polling only for debugging", async () => {
    await post(server, "/v1/completions", { prompt: "" });
    await get("/nowhere");
    await get("/health");
    expect(lines.map(({ level, fields }) => [level, fields.route, fields.status])).toEqual([
      ["info", "/v1/completions", 400],
      ["info", "/nowhere", 404],
      ["debug", "/health", 200],
    ]);
    expect(lines[0].fields.error).toContain("empty");
    expect(lines[1].fields.error).toBe("there is no /nowhere here");
  });

  test("tells of clients that left", async () => {
    runtime.script = () => ({ ...hello, before: (index) => (index === 1 ? new Promise(() => {}) : undefined) });
    const leave = new AbortController();
    const response = await post(server, "/v1/completions", { prompt: "ab", stream: true }, { signal: leave.signal });
    await response.body!.getReader().read();
    leave.abort();
    while (lines.length === 0) await Bun.sleep(1);
    expect(lines[0].fields).toMatchObject({ status: 200, disconnected: true, finish: "abort", completion_tokens: 1 });
  });

  test("is text with quotes where they are needed, or JSON, from its level on", () => {
    const written: string[] = [];
    const write = (line: string, level: string) => written.push(`${level}: ${line}`);
    const fields = { route: "/v1", error: 'no "x"', n: 2, left: undefined };
    createLog("info", "text", write)("info", "request", fields);
    createLog("warning", "text", write)("info", "request", fields);
    createLog("warning", "json", write)("error", "request", fields);
    expect(written[0]).toBe('info: minisgl: request route=/v1 error="no \\"x\\"" n=2\n');
    expect(written).toHaveLength(2);
    expect(JSON.parse(written[1].slice("error: ".length))).toEqual({
      time: expect.any(String),
      level: "error",
      message: "request",
      route: "/v1",
      error: 'no "x"',
      n: 2,
    });
  });
});

test("a log whose reader is too slow loses lines instead of memory, and says how many", async () => {
  const taken: string[] = [];
  let go: () => void = () => {};
  const reader = new Writable({
    decodeStrings: false,
    write(line: string, _, done) {
      taken.push(line);
      go = done;
    },
  });
  const writer = new LossyWriter(reader, (lines) => `lost ${lines}\n`);
  const line = `${"x".repeat(999)}\n`;
  for (let i = 0; i < 5000; i++) writer.write(line);
  expect(reader.writableLength).toBeLessThan(1.1 * 2 ** 20);
  for (let before = -1; before !== taken.length; await Bun.sleep(0)) {
    before = taken.length;
    go();
  }
  const kept = taken.filter((text) => text === line).length;
  expect(kept).toBeGreaterThan(1000);
  expect(taken.slice(kept)).toEqual([`lost ${5000 - kept}\n`]);
  writer.write("again\n");
  go();
  await Bun.sleep(0);
  expect(taken.at(-1)).toBe("again\n");
});

describe("a request whose time is up", () => {
  const hasty = startServer(runtime, { requestTimeoutSeconds: 0.05 });
  afterAll(() => hasty.stop());

  test("is a 503, or an error event once its stream has begun, and its generations are aborted", async () => {
    const body = { prompt: "ab", n: 2 };
    runtime.script = () => ({ ...hello, before: () => new Promise(() => {}) });
    const late = await post(hasty, "/v1/completions", body);
    expect(late.status).toBe(503);
    expect(await late.json()).toMatchObject({ error: { code: "request_timeout" } });
    runtime.script = () => ({ ...hello, before: (index) => (index === 1 ? new Promise(() => {}) : undefined) });
    const streamed = await post(hasty, "/v1/completions", { ...body, stream: true });
    expect(streamed.status).toBe(200);
    expect((await streamed.text()).trim().split("\n\n").slice(-2)).toEqual([
      expect.stringContaining('"code":"request_timeout"'),
      "data: [DONE]",
    ]);
    expect(runtime.calls.map(({ generation }) => generation.aborted)).toEqual([true, true, true, true]);
    expect(hasty.context.active.size).toBe(0);
  });

  test("does not touch one that is done in time", async () => {
    expect((await post(hasty, "/v1/completions", { prompt: "ab" })).status).toBe(200);
    await Bun.sleep(80);
    expect(runtime.calls[0].generation.aborted).toBe(false);
  });
});

describe("routes", () => {
  test("/tokenize and /detokenize are inverse, alone and in lists, with messages too", async () => {
    const tokenize = async (body: object) =>
      (await (await post(server, "/tokenize", body)).json()) as {
        tokens: number[];
        count: number;
        token_strs: string[];
      };
    expect(await tokenize({ prompt: "ab", return_token_strs: true })).toEqual({
      tokens: [97, 98],
      count: 2,
      max_model_len: 4096,
      token_strs: ["a", "b"],
    } as never);
    expect(await tokenize({ prompt: ["ab", "c"] })).toMatchObject({ tokens: [[97, 98], [99]], count: [2, 1] });
    const { tokens } = await tokenize({ messages: [{ role: "user", content: "hi" }] });
    const texts = await (await post(server, "/detokenize", { tokens })).json();
    expect(texts).toEqual({ prompt: "user:hi\n", text: "user:hi\n" });
    expect(await (await post(server, "/detokenize", { tokens: [[97], [98]] })).json()).toMatchObject({
      text: ["a", "b"],
    });
    for (const [path, body] of [
      ["/tokenize", {}],
      ["/tokenize", { prompt: 5 }],
      ["/tokenize", { prompt: "a", add_special_tokens: "no" }],
      ["/detokenize", {}],
      ["/detokenize", { tokens: [-1] }],
      ["/detokenize", { tokens: ["a"] }],
    ] as const) {
      expect((await post(server, path, body)).status).toBe(400);
    }
  });

  test("/abort_request ends a request by its id, or all", async () => {
    runtime.script = () => ({ ...hello, before: () => new Promise(() => {}) });
    const start = (id: string) => post(server, "/v1/completions", { prompt: "a" }, { headers: { "x-request-id": id } });
    const running = ["one", "two", "three"].map(start);
    while (runtime.calls.length < 3) await Bun.sleep(1);
    const abort = async (body: object) => (await post(server, "/abort_request", body)).json();
    expect(await abort({ rid: "nobody" })).toEqual({ aborted: 0 });
    expect(await abort({ rid: "two" })).toEqual({ aborted: 1 });
    const answer = (await (await running[1]).json()) as { choices: { finish_reason: string }[] };
    expect(answer.choices[0].finish_reason).toBe("abort");
    expect(await abort({ abort_all: true })).toEqual({ aborted: 2 });
    await Promise.all(running);
    expect((await post(server, "/abort_request", {})).status).toBe(400);
  });

  test("/abort_request ends a request whose prompt is being tokenized", async () => {
    runtime.script = () => ({ ...hello, before: () => new Promise(() => {}) });
    const tokenized = Promise.withResolvers<void>();
    const { encode } = runtime;
    runtime.encode = async (prompt) => {
      await tokenized.promise;
      return encode.call(runtime, prompt);
    };
    const asked = post(server, "/v1/completions", { prompt: "a", n: 2 });
    while (server.context.active.size === 0) await Bun.sleep(1);
    expect(await (await post(server, "/abort_request", { abort_all: true })).json()).toEqual({ aborted: 1 });
    tokenized.resolve();
    const answer = (await (await asked).json()) as { choices: { finish_reason: string }[] };
    expect(answer.choices.map(({ finish_reason }) => finish_reason)).toEqual(["abort", "abort"]);
  });

  test("/v1/loads has SGLang's shape", async () => {
    expect(await (await get("/v1/loads")).json()).toMatchObject({
      dp_rank_count: 1,
      loads: [{ dp_rank: 0, num_running_reqs: 0, num_waiting_reqs: 1, num_used_tokens: 2, max_total_num_tokens: 4096 }],
    });
  });

  test("/health_generate makes a token", async () => {
    expect((await get("/health_generate")).status).toBe(200);
    expect(runtime.calls[0].parameters).toMatchObject({ maxTokens: 1 });
    runtime.script = () => ({ ...hello, pieces: [] });
    expect((await get("/health_generate")).status).toBe(503);
  });
});
