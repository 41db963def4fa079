import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import OpenAI from "openai";
import { QueueFull } from "../../src/runtime/types.ts";
import type { ErrorBody } from "../../src/server/errors.ts";
import { events, FakeRuntime, hello, post, type Script, startServer } from "./support/fake-runtime.ts";

const runtime = new FakeRuntime();
const server = startServer(runtime);
const client = new OpenAI({ baseURL: `${server.url}v1`, apiKey: "none", maxRetries: 0 });
const user = (content: string) => [{ role: "user" as const, content }];
const model = "default";
const json = async (response: Promise<Response>) => (await (await response).json()) as { choices: object[] };

beforeEach(() => {
  runtime.calls = [];
  runtime.script = () => hello;
  runtime.hasChatTemplate = true;
  runtime.flushable = true;
});
afterAll(() => server.stop());

describe("chat completions", () => {
  test("a complete answer has text, usage and reason", async () => {
    runtime.script = () => ({ ...hello, cachedTokens: 4 });
    const answer = await client.chat.completions.create({ model, messages: user("hi") });
    expect(answer.choices[0].message).toMatchObject({ role: "assistant", content: "Hello wörld" });
    expect(answer.choices[0].finish_reason).toBe("stop");
    expect(answer.usage).toMatchObject({
      prompt_tokens: "user:hi\n".length,
      completion_tokens: 3,
      total_tokens: "user:hi\n".length + 3,
      prompt_tokens_details: { cached_tokens: 4 },
    });
    expect(answer.id).toStartWith("chatcmpl-");
    expect(answer.object).toBe("chat.completion");
  });

  test("a stream opens with the role, has an event a piece, and ends with usage", async () => {
    const chunks = [];
    const stream = await client.chat.completions.create({
      model,
      messages: user("hi"),
      stream: true,
      stream_options: { include_usage: true },
    });
    for await (const chunk of stream) chunks.push(chunk);
    expect(chunks[0].choices[0].delta).toEqual({ role: "assistant", content: "" });
    expect(chunks.slice(1, 4).map((chunk) => chunk.choices[0].delta.content)).toEqual(hello.pieces);
    expect(chunks.map((chunk) => chunk.choices[0]?.finish_reason ?? null)).toEqual([null, null, null, "stop", null]);
    expect(chunks.map((chunk) => chunk.usage?.completion_tokens)).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
      3,
    ]);
    expect(chunks[4].choices).toEqual([]);
    expect(new Set(chunks.map((chunk) => chunk.id)).size).toBe(1);
  });

  test("without include_usage no chunk speaks of usage", async () => {
    const response = await post(server, "/v1/chat/completions", { messages: user("hi"), stream: true });
    expect(response.headers.get("content-type")).toStartWith("text/event-stream");
    for (const chunk of await events<object>(response)) expect(chunk).not.toHaveProperty("usage");
  });

  test("continuous_usage_stats counts up in every chunk", async () => {
    const stream_options = { include_usage: true, continuous_usage_stats: true };
    const response = await post(server, "/v1/chat/completions", { messages: user("hi"), stream: true, stream_options });
    const chunks = await events<OpenAI.ChatCompletionChunk>(response);
    expect(chunks.map((chunk) => chunk.usage?.completion_tokens)).toEqual([0, 1, 2, 3, 3]);
  });

  test("parameters reach the runtime, and null means not given", async () => {
    const given = {
      temperature: 0.5,
      top_k: 7,
      top_p: 0.9,
      min_p: 0.1,
      seed: 42,
      stop: "END",
      stop_token_ids: [3],
      ignore_eos: true,
      max_completion_tokens: 9,
      max_tokens: 5,
      chat_template_kwargs: { enable_thinking: false },
      unknown_field: { any: "thing" },
    };
    expect((await post(server, "/v1/chat/completions", { messages: user("hi"), ...given })).status).toBe(200);
    expect(runtime.calls[0].parameters).toEqual({
      maxTokens: 9,
      temperature: 0.5,
      topK: 7,
      topP: 0.9,
      minP: 0.1,
      seed: 42,
      stop: ["END"],
      stopTokenIds: [3],
      ignoreEos: true,
    });
    expect(runtime.calls[0].prompt).toMatchObject({ templateArguments: { enable_thinking: false } });

    const nulls = Object.fromEntries(Object.keys(given).map((name) => [name, null]));
    const refused = { logprobs: null, tools: null, response_format: null, logit_bias: null, n: null, stream: null };
    const body = { messages: user("hi"), ...nulls, ...refused, model: null, stream_options: null };
    expect((await post(server, "/v1/chat/completions", body)).status).toBe(200);
    expect(Object.values(runtime.calls[1].parameters).filter((value) => value !== undefined)).toEqual([]);
  });

  test("so do those that change logits, and what the scheduler goes by", async () => {
    const body = {
      messages: user("hi"),
      repetition_penalty: 1.2,
      presence_penalty: -0.5,
      frequency_penalty: 2,
      logit_bias: { "5": -100, "7": 0.25 },
      min_tokens: 3,
      priority: -4,
      cache_salt: "mine",
      prompt_logprobs: 0,
    };
    expect((await post(server, "/v1/chat/completions", body)).status).toBe(200);
    const common = {
      repetitionPenalty: 1.2,
      presencePenalty: -0.5,
      frequencyPenalty: 2,
      logitBias: new Map([
        [5, -100],
        [7, 0.25],
      ]),
      minTokens: 3,
      priority: -4,
    };
    expect(runtime.calls[0].parameters).toEqual({ ...common, cacheSalt: "mine", promptLogprobs: 0 });
    const { messages, prompt_logprobs, cache_salt, priority, min_tokens, ...sampling } = body;
    const native = { text: "a", priority, sampling_params: { ...sampling, min_new_tokens: min_tokens } };
    expect((await post(server, "/generate", native)).status).toBe(200);
    expect(runtime.calls[1].parameters).toEqual({ ...common, maxTokens: 128 });
  });

  test("a chat goes on with its last message", async () => {
    const messages = [...user("hi"), { role: "assistant", content: "Well" }];
    const body = { messages, continue_final_message: true };
    for (const more of [{}, { add_generation_prompt: false }]) {
      expect((await post(server, "/v1/chat/completions", { ...body, ...more })).status).toBe(200);
      expect(runtime.calls.at(-1)!.prompt).toMatchObject({ continueFinalMessage: true, addGenerationPrompt: false });
    }
  });

  test("the stop string is in the answer where it is asked for, as is a stop token's text", async () => {
    const body = { messages: user("hi"), include_stop_str_in_output: true };
    for (const [stopReason, end] of [
      ["END", "END"],
      [33, "!"],
      [255, ""],
    ] as const) {
      runtime.script = () => ({ ...hello, stopReason });
      const answer = (await json(post(server, "/v1/chat/completions", body))) as OpenAI.ChatCompletion;
      expect(answer.choices[0].message.content).toBe(`Hello wörld${end}`);
    }
    runtime.script = () => ({ ...hello, stopReason: "END" });
    const native = { text: "a", sampling_params: { no_stop_trim: true } };
    expect(await (await post(server, "/generate", native)).json()).toMatchObject({ text: "Hello wörldEND" });
  });

  test("a top_k of -1 or 0 is all, and seeds of 64 bits or below zero are taken", async () => {
    for (const [top_k, seed] of [
      [-1, -1],
      [0, 2 ** 62],
    ]) {
      await client.chat.completions.create({ model, messages: user("hi"), top_k, seed } as never);
      const { topK, seed: drawn } = runtime.calls.at(-1)!.parameters;
      expect(topK).toBe(0);
      expect(Number.isSafeInteger(drawn) && drawn! >= 0).toBe(true);
    }
  });

  test("content may be text parts; developer becomes system; an assistant may have none", async () => {
    const messages = [
      { role: "developer", content: "be kind" },
      { role: "assistant", content: null },
      {
        role: "user",
        content: [
          { type: "text", text: "a" },
          { type: "text", text: "b" },
        ],
      },
    ];
    expect((await post(server, "/v1/chat/completions", { messages })).status).toBe(200);
    expect(runtime.calls[0].prompt).toMatchObject({
      messages: [
        { role: "system", content: "be kind" },
        { role: "assistant", content: "" },
        { role: "user", content: "a\nb" },
      ],
    });
  });

  test("n answers differ by seed, count the prompt once and keep their index when streamed", async () => {
    runtime.script = (_, choice) => ({ pieces: [`answer ${choice}`, "!"], finishReason: "stop" });
    const messages = user("hi");
    const answer = await client.chat.completions.create({ model, messages, n: 3, seed: 5 });
    expect(answer.choices.map(({ index, message }) => [index, message.content])).toEqual([
      [0, "answer 0!"],
      [1, "answer 1!"],
      [2, "answer 2!"],
    ]);
    expect(answer.usage).toMatchObject({ prompt_tokens: "user:hi\n".length, completion_tokens: 6 });
    expect(runtime.calls.map(({ parameters }) => parameters.seed)).toEqual([5, 6, 7]);

    runtime.calls = [];
    const texts = ["", "", ""];
    const stream = await client.chat.completions.create({ model, messages, n: 3, stream: true });
    for await (const chunk of stream) {
      for (const choice of chunk.choices) texts[choice.index] += choice.delta.content;
    }
    expect(texts).toEqual(["answer 0!", "answer 1!", "answer 2!"]);
  });

  test("the first space of each of n answers is as it is for one", async () => {
    const begun = { messages: [...user("hi"), { role: "assistant", content: "Well" }], continue_final_message: true };
    for (const [path, body, continues] of [
      ["/v1/chat/completions", { messages: user("hi") }, false],
      ["/v1/chat/completions", begun, true],
      ["/v1/completions", { prompt: "hi" }, true],
    ] as const) {
      expect((await post(server, path, { ...body, n: 2 })).status).toBe(200);
      expect(runtime.calls.at(-1)!.prompt).toMatchObject({ continues });
    }
  });

  test("streamed choices interleave: the second does not wait for the first", async () => {
    const gate = Promise.withResolvers<void>();
    runtime.script = (_, choice) => ({
      pieces: [`${choice}`, "."],
      finishReason: "stop",
      before: () => (choice === 0 ? gate.promise : undefined),
    });
    const order = [];
    const stream = await client.chat.completions.create({ model, messages: user("hi"), n: 2, stream: true });
    for await (const chunk of stream) {
      order.push(chunk.choices[0].index);
      if (chunk.choices[0].finish_reason !== null) gate.resolve();
    }
    expect(order).toEqual([1, 1, 1, 0, 0, 0]);
  });

  test("return_token_ids gives the prompt's tokens on the response, streamed on the first chunk", async () => {
    const body = { messages: user("hi"), return_token_ids: true };
    const prompt = [...Buffer.from("user:hi\n")];
    const answer = await (await post(server, "/v1/chat/completions", body)).json();
    expect(answer).toMatchObject({ prompt_token_ids: prompt, choices: [{ token_ids: [0, 1, 2] }] });

    type Chunk = { prompt_token_ids?: number[]; choices: { token_ids?: number[] }[] };
    const response = await post(server, "/v1/chat/completions", { ...body, stream: true });
    const chunks = await events<Chunk>(response);
    expect(chunks.map((chunk) => chunk.prompt_token_ids)).toEqual([prompt, undefined, undefined, undefined]);
    expect(chunks.flatMap((chunk) => chunk.choices[0].token_ids ?? [])).toEqual([0, 1, 2]);
  });

  test("stop_reason tells what matched", async () => {
    runtime.script = () => ({ ...hello, stopReason: "END" });
    const answer = await json(post(server, "/v1/chat/completions", { messages: user("hi") }));
    expect(answer.choices[0]).toMatchObject({ finish_reason: "stop", stop_reason: "END" });
  });

  test("a model without a template refuses chat", async () => {
    runtime.hasChatTemplate = false;
    const response = await post(server, "/v1/chat/completions", { messages: user("hi") });
    expect(response.status).toBe(400);
    expect(((await response.json()) as ErrorBody).error.message).toContain("chat template");
  });
});

describe("completions", () => {
  const text = (choices: { text: string }[]) => choices.map((choice) => choice.text);

  test("prompts are a string, strings, token ids, or lists of those", async () => {
    runtime.script = (prompt) => ({ pieces: [prompt.toUpperCase()], finishReason: "stop" });
    for (const [prompt, expected] of [
      ["ab", ["AB"]],
      [
        ["ab", "cd"],
        ["AB", "CD"],
      ],
      [[97, 98], ["AB"]],
      [
        [[97], [98, 99]],
        ["A", "BC"],
      ],
    ] as const) {
      const answer = await client.completions.create({ model, prompt: prompt as string });
      expect(text(answer.choices)).toEqual([...expected]);
      expect(answer.choices.map(({ index }) => index)).toEqual(expected.map((_, index) => index));
      expect(answer.usage?.prompt_tokens).toBe(expected.join("").length);
    }
  });

  test("add_special_tokens: false reaches the tokenizer", async () => {
    await post(server, "/v1/completions", { prompt: "x", max_tokens: 1, add_special_tokens: false });
    expect(runtime.calls[0].prompt).toEqual({ text: "x", addSpecialTokens: false });
  });

  test("16 tokens unless told otherwise, or what fits", async () => {
    await client.completions.create({ model, prompt: "x" });
    await client.completions.create({ model, prompt: "x", max_tokens: 3 });
    await client.completions.create({ model, prompt: "x".repeat(4090) });
    expect(runtime.calls.map(({ parameters }) => parameters.maxTokens)).toEqual([16, 3, 6]);
  });

  test("echo puts the prompt before the text, streamed too", async () => {
    const answer = await client.completions.create({ model, prompt: [[97, 98], [99]] as never, echo: true, n: 2 });
    expect(text(answer.choices)).toEqual(["abHello wörld", "abHello wörld", "cHello wörld", "cHello wörld"]);
    let streamed = "";
    const stream = await client.completions.create({ model, prompt: "ab", echo: true, stream: true });
    for await (const chunk of stream) streamed += chunk.choices[0].text;
    expect(streamed).toBe("abHello wörld");
  });

  test("return_token_ids gives the prompt's tokens on every choice", async () => {
    const body = { prompt: ["a", "b"], return_token_ids: true };
    const answer = await json(post(server, "/v1/completions", body));
    expect(answer.choices).toMatchObject([
      { prompt_token_ids: [97], token_ids: [0, 1, 2] },
      { prompt_token_ids: [98], token_ids: [0, 1, 2] },
    ]);
    type Chunk = { choices: { index: number; prompt_token_ids?: number[] }[] };
    const chunks = await events<Chunk>(await post(server, "/v1/completions", { ...body, stream: true }));
    for (const index of [0, 1]) {
      const own = chunks.map((chunk) => chunk.choices[0]).filter((choice) => choice.index === index);
      expect(own.map((choice) => choice.prompt_token_ids)).toEqual([[97 + index], undefined, undefined]);
    }
  });
});

describe("/generate", () => {
  type Result = { text: string; output_ids: number[]; meta_info: { finish_reason: unknown }; index?: number };

  test("answers as SGLang does", async () => {
    runtime.script = () => ({ ...hello, cachedTokens: 1 });
    const body = { text: "ab", sampling_params: { max_new_tokens: 2, temperature: 0 }, rid: "me" };
    expect(await (await post(server, "/generate", body)).json()).toEqual({
      text: "Hello",
      output_ids: [0, 1],
      meta_info: {
        id: "me",
        finish_reason: { type: "length", length: 2 },
        prompt_tokens: 2,
        completion_tokens: 2,
        cached_tokens: 1,
      },
    });
    expect(runtime.calls[0].parameters).toMatchObject({ maxTokens: 2, temperature: 0 });
  });

  test("lists of prompts and n give lists", async () => {
    const batch = (await (await post(server, "/generate", { input_ids: [[97], [98]] })).json()) as Result[];
    expect(batch.map(({ text }) => text)).toEqual(["Hello wörld", "Hello wörld"]);
    const several = await post(server, "/generate", { text: "a", sampling_params: { n: 2, sampling_seed: 1 } });
    expect((await several.json()) as Result[]).toHaveLength(2);
    expect(runtime.calls.slice(2).map(({ parameters }) => parameters.seed)).toEqual([1, 2]);
  });

  test("streams all text so far", async () => {
    const chunks = await events<Result>(await post(server, "/generate", { text: "a", stream: true }));
    expect(chunks.map(({ text }) => text)).toEqual(["Hel", "Hello", "Hello wörld"]);
    expect(chunks.map(({ meta_info }) => meta_info.finish_reason)).toEqual([null, null, { type: "stop", matched: 2 }]);
  });
});

describe("other routes", () => {
  const get = (path: string) => fetch(new URL(path, server.url));

  test("/v1/models lists the served name, and any alias of it is answered", async () => {
    const { data } = await client.models.list();
    expect(data).toMatchObject([{ id: "models/fake.gguf", owned_by: "minisgl", max_model_len: 4096 }]);
    expect(await client.models.retrieve("models/fake.gguf")).toMatchObject({ id: "models/fake.gguf" });
    for (const name of ["models/fake.gguf", "fake.gguf"]) {
      expect((await client.chat.completions.create({ model: name, messages: user("hi") })).model).toBe(name);
    }
    const unknown = await post(server, "/v1/chat/completions", { model: "gpt-5", messages: user("hi") });
    expect(unknown.status).toBe(404);
    expect(((await unknown.json()) as ErrorBody).error).toMatchObject({ param: "model", code: "model_not_found" });
  });

  test("/server_info counts requests and pages", async () => {
    expect(await (await get("/server_info")).json()).toMatchObject({
      num_running_requests: 0,
      num_waiting_requests: 1,
      num_used_pages: 2,
      num_cached_pages: 3,
      num_total_pages: 4096,
      page_size: 1,
    });
    expect((await get("/get_server_info")).status).toBe(200);
  });

  test("/flush_cache answers to GET and POST, and refuses while requests run", async () => {
    expect((await get("/flush_cache")).status).toBe(200);
    expect((await post(server, "/flush_cache", "")).status).toBe(200);
    runtime.flushable = false;
    expect((await get("/flush_cache")).status).toBe(400);
  });

  test("/health, /ping, /version and /model_info", async () => {
    for (const path of ["/health", "/ping", "/model_info", "/get_model_info"])
      expect((await get(path)).status).toBe(200);
    expect(await (await get("/version")).json()).toEqual({ version: expect.stringMatching(/^\d+\.\d+\.\d+$/) });
  });

  test("x-request-id comes back, on errors too, and names the answer", async () => {
    const headers = { "x-request-id": "trace-7" };
    const answer = await post(server, "/v1/completions", { prompt: "a" }, { headers });
    expect(answer.headers.get("x-request-id")).toBe("trace-7");
    expect(((await answer.json()) as { id: string }).id).toBe("cmpl-trace-7");
    const stream = await post(server, "/v1/completions", { prompt: "a", stream: true }, { headers });
    expect(stream.headers.get("x-request-id")).toBe("trace-7");
    expect((await post(server, "/v1/completions", "{", { headers })).headers.get("x-request-id")).toBe("trace-7");
    expect((await get("/health")).headers.get("x-request-id")).toMatch(/^[0-9a-f]{32}$/);
  });

  test("unknown routes are 404, wrong methods 405, both with OpenAI's error body", async () => {
    const missing = await get("/v1/nothing");
    expect(missing.status).toBe(404);
    expect(((await missing.json()) as ErrorBody).error.message).toContain("/v1/nothing");
    const wrong = await get("/v1/chat/completions");
    expect(wrong.status).toBe(405);
    expect(wrong.headers.get("allow")).toBe("POST");
    expect(((await wrong.json()) as ErrorBody).error.type).toBe("invalid_request_error");
  });
});

describe("errors and life cycle", () => {
  test("what fails before the first token is JSON, streamed or not", async () => {
    const slow: Script = { ...hello, before: () => Promise.reject(new QueueFull("too many wait")) };
    const cases: [() => Script, number][] = [
      [
        () => {
          throw new QueueFull("too many wait");
        },
        429,
      ],
      [() => slow, 429],
    ];
    for (const [script, status] of cases) {
      for (const stream of [true, false]) {
        runtime.script = script;
        const response = await post(server, "/v1/chat/completions", { messages: user("hi"), stream, n: 2 });
        expect(response.status).toBe(status);
        expect(response.headers.get("content-type")).toStartWith("application/json");
        expect(response.headers.get("retry-after")).toBe("1");
        expect(((await response.json()) as ErrorBody).error).toMatchObject({ message: "too many wait" });
      }
    }
  });

  test("when one of several generations is refused, the others are aborted", async () => {
    runtime.script = (_, choice) => {
      if (choice === 2) throw new QueueFull("too many wait");
      return { ...hello, before: () => new Promise(() => {}) };
    };
    const response = await post(server, "/v1/completions", { prompt: "a", n: 3 });
    expect(response.status).toBe(429);
    expect(runtime.calls.map(({ generation }) => generation.aborted)).toEqual([true, true]);
    expect(server.context.active.size).toBe(0);
  });

  test("what fails later is an event that clients raise on", async () => {
    runtime.script = () => ({
      ...hello,
      before: (index) => (index === 1 ? Promise.reject(new QueueFull("broken")) : undefined),
    });
    const stream = await client.chat.completions.create({ model, messages: user("hi"), stream: true });
    const read = async () => {
      for await (const _ of stream);
    };
    await expect(read()).rejects.toThrow("broken");
  });

  test("a client that leaves aborts its generations at once, streamed or not", async () => {
    for (const stream of [true, false]) {
      runtime.calls = [];
      runtime.script = () => ({ ...hello, before: (index) => (index === 1 ? new Promise(() => {}) : undefined) });
      const controller = new AbortController();
      const body = { prompt: ["a", "b"], stream };
      const response = post(server, "/v1/completions", body, { signal: controller.signal });
      response.catch(() => {});
      if (stream) await (await response).body!.getReader().read();
      while (runtime.calls.length < 2) await Bun.sleep(1);
      controller.abort();
      for (let wait = 0; wait < 200 && server.context.active.size > 0; wait++) await Bun.sleep(5);
      expect(runtime.calls.map(({ generation }) => generation.aborted)).toEqual([true, true]);
      expect(server.context.active.size).toBe(0);
    }
  });

  test("while the model loads, routes answer 503 with Retry-After", async () => {
    const loading = startServer(null);
    for (const path of ["/health", "/v1/models", "/server_info"]) {
      const response = await fetch(new URL(path, loading.url));
      expect(response.status).toBe(503);
      expect(response.headers.get("retry-after")).toBe("1");
    }
    expect((await post(loading, "/v1/completions", { prompt: "a" })).status).toBe(503);
    expect((await fetch(new URL("/ping", loading.url))).status).toBe(200);
    await loading.stop();
  });

  test("draining refuses what is new and lets end what runs", async () => {
    const draining = startServer(runtime);
    const gate = Promise.withResolvers<void>();
    runtime.script = () => ({ ...hello, before: () => gate.promise });
    const running = post(draining, "/v1/completions", { prompt: "a" });
    while (runtime.calls.length < 1) await Bun.sleep(1);
    const drained = draining.drain(10);
    expect((await fetch(new URL("/health", draining.url))).status).toBe(503);
    expect((await post(draining, "/v1/completions", { prompt: "b" })).status).toBe(503);
    for (const path of ["/metrics", "/v1/loads", "/server_info"]) {
      expect((await fetch(new URL(path, draining.url))).status).toBe(200);
    }
    gate.resolve();
    expect(await drained).toBe(0);
    await draining.stop();
    expect(await (await running).json()).toMatchObject({ choices: [{ text: "Hello wörld" }] });
  });

  test("draining aborts what is left at its timeout", async () => {
    const draining = startServer(runtime);
    runtime.script = () => ({ ...hello, before: () => new Promise(() => {}) });
    const running = post(draining, "/v1/completions", { prompt: "a" });
    while (runtime.calls.length < 1) await Bun.sleep(1);
    expect(await draining.drain(0.05)).toBe(1);
    const answer = (await (await running).json()) as { choices: { finish_reason: string }[] };
    expect(answer.choices[0].finish_reason).toBe("abort");
    await draining.stop();
  });

  test("browsers may call where their origin is allowed", async () => {
    const open = startServer(runtime, { corsOrigins: ["https://a.example"] });
    const ask = (origin: string, method: string) =>
      fetch(new URL("/v1/models", open.url), { method, headers: { origin } });
    const preflight = await ask("https://a.example", "OPTIONS");
    expect(preflight.status).toBe(204);
    expect(preflight.headers.get("access-control-allow-origin")).toBe("https://a.example");
    expect((await ask("https://a.example", "GET")).headers.get("access-control-allow-origin")).toBe(
      "https://a.example",
    );
    expect((await ask("https://b.example", "GET")).headers.get("access-control-allow-origin")).toBeNull();
    await open.stop();
  });

  test.each(["GET /v1/models?a=1 HTTP/1.0\r\n\r\n", "GET /v1/models HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"])(
    "a probe that names no host is answered: %j",
    async (request) => {
      const plain = startServer(runtime);
      const answer = Promise.withResolvers<string>();
      await Bun.connect({
        hostname: plain.hostname,
        port: plain.port,
        socket: {
          open: (socket) => {
            socket.write(request);
          },
          data: (_, data) => answer.resolve(data.toString()),
        },
      });
      expect(await answer.promise).toStartWith("HTTP/1.1 200");
      await plain.stop();
    },
  );

  test("a request that never ends is cut off, an answer that takes its time is not", async () => {
    const patient = startServer(runtime, { idleTimeoutSeconds: 1 });
    runtime.script = () => ({ ...hello, before: (index) => (index === 0 ? Bun.sleep(6000) : undefined) });
    const answer = post(patient, "/v1/completions", { prompt: "a" });
    const closed = Promise.withResolvers<void>();
    await Bun.connect({
      hostname: patient.hostname,
      port: patient.port,
      socket: {
        open: (socket) => {
          socket.write('POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"prompt": ');
        },
        data() {},
        close: () => closed.resolve(),
      },
    });
    await closed.promise;
    expect((await answer).status).toBe(200);
    await patient.stop();
  }, 20_000);

  test.each([{ stream: true }, { stream: false }])(
    "a connection is closed that is idle after an answer (%j)",
    async (fields) => {
      const patient = startServer(runtime, { idleTimeoutSeconds: 1 });
      const body = JSON.stringify({ prompt: "a", ...fields });
      const closed = Promise.withResolvers<number>();
      let received = "";
      let answered = 0;
      await Bun.connect({
        hostname: patient.hostname,
        port: patient.port,
        socket: {
          open: (socket) => {
            socket.write(`POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
          },
          data: (_, data) => {
            received += data;
            answered = performance.now();
          },
          close: () => closed.resolve(performance.now() - answered),
        },
      });
      const idle = await closed.promise;
      expect(received).toContain("wörld");
      // Bun looks at its connections every four seconds.
      expect(idle).toBeLessThan(9000);
      await patient.stop();
    },
    20_000,
  );

  test.each([
    ["for long", 0.3, 0],
    ["while many logprobs gather", 60, 2 ** 21 + 1],
  ])("a reader that stalls %s is cut off, and memory stays bounded meanwhile", async (_, seconds, gatheredLogprobs) => {
    const patient = startServer(runtime, { stallTimeoutSeconds: seconds });
    let produced = 0;
    runtime.script = () => ({
      pieces: Array.from({ length: 4000 }, () => "x".repeat(20_000)),
      finishReason: "stop",
      gatheredLogprobs,
      before: (index) => {
        produced = index;
        return undefined;
      },
    });
    const body = JSON.stringify({ prompt: "a", stream: true, max_tokens: 4000 });
    let closed = false;
    const socket = await Bun.connect({
      hostname: patient.hostname,
      port: patient.port,
      socket: {
        open: (socket) => {
          socket.pause();
          socket.write(`POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
        },
        data() {},
        close: () => {
          closed = true;
        },
      },
    });
    for (let wait = 0; wait < 400 && (runtime.calls.length < 1 || patient.context.active.size > 0); wait++) {
      await Bun.sleep(5);
    }
    expect(patient.context.active.size).toBe(0);
    expect(runtime.calls[0].generation.aborted).toBe(true);
    // 80 MB were to be had; what the socket's buffers took is a few.
    expect(produced * 20_000).toBeLessThan(16e6);
    socket.resume();
    for (let wait = 0; wait < 200 && !closed; wait++) await Bun.sleep(5);
    expect(closed).toBe(true);
    await patient.stop();
  });
});
