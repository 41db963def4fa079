/** Every bad input gets a 4xx that names what is wrong, and the next good request is answered. */
import { afterAll, afterEach, describe, expect, test } from "bun:test";
import type { ErrorBody } from "../../src/server/errors.ts";
import { FakeRuntime, hello, post, startServer } from "./support/fake-runtime.ts";

const runtime = new FakeRuntime();
const server = startServer(runtime, { maxBodyBytes: 1e6 });
const messages = [{ role: "user", content: "hi" }];

afterEach(async () => {
  const good = await post(server, "/v1/chat/completions", { messages });
  expect(good.status).toBe(200);
  expect(server.context.active.size).toBe(0);
});
afterAll(() => server.stop());

async function refusal(
  path: string,
  body: unknown,
  init?: RequestInit,
): Promise<ErrorBody["error"] & { status: number }> {
  const response = await post(server, path, body, init);
  expect(response.headers.get("content-type")).toStartWith("application/json");
  return { status: response.status, ...((await response.json()) as ErrorBody).error };
}

describe("numbers", () => {
  const wrong: Record<string, unknown[]> = {
    temperature: [-1, 2.1, 2 ** 31 - 1, "1", true, [], {}],
    top_p: [-0.1, 0, 1.1, "1"],
    min_p: [-0.1, 1.1, "0"],
    top_k: [-2, 1.5, 2 ** 40, "5"],
    seed: [0.5, "1", 1e30],
    n: [0, -1, 1.5, 129, 1e9],
    max_tokens: [0, -1, 1.5, 2 ** 31 - 1, 2 ** 53, "10"],
    max_completion_tokens: [0, -5, 0.5, 2 ** 31 - 1],
    stop_token_ids: [[-1], [1.5], ["a"], 5, [null], new Array(10_000).fill(1)],
    repetition_penalty: [0, -1, 2 ** 31 - 1, "1"],
    presence_penalty: [-2.1, 2.1, 2 ** 31 - 1, "1"],
    frequency_penalty: [-2.1, 2.1, 2 ** 31 - 1, []],
    logit_bias: [
      [],
      5,
      { a: 1 },
      { "-1": 1 },
      { "1.5": 1 },
      { 5: 101 },
      { 5: "1" },
      { 5: null },
      { 999999: 5 },
      Object.fromEntries(Array.from({ length: 1025 }, (_, id) => [id, 1])),
    ],
    min_tokens: [-1, 0.5, 2 ** 31, "1"],
    logprobs: [1, "true", []],
    top_logprobs: [-1, 0.5, 21, 1e9, "1", 5],
    prompt_logprobs: [-1, 0.5, 21, "1"],
    priority: [0.5, 2 ** 31, "high"],
    cache_salt: ["", 5, "x".repeat(257), "\ud800"],
    continue_final_message: ["yes", 1],
    echo: [true, "no"],
    separate_reasoning: ["no"],
    include_stop_str_in_output: [1],
    return_tokens_as_token_ids: ["yes"],
    stream: ["true", 1],
    ignore_eos: ["yes"],
    stop: [1, [1], "", ["a", ""], "x".repeat(2 ** 19), new Array(10_000).fill("a"), [null], "\ud800"],
    stream_options: ["x", []],
    chat_template_kwargs: ["x", []],
    add_generation_prompt: ["no"],
    model: [1, "\udc00"],
    messages: ["hi", {}, [], [1], [{}], [{ role: "user" }], [{ role: "wizard", content: "hi" }]],
  };
  for (const [name, values] of Object.entries(wrong)) {
    test.each(values.map((value) => [value]))(`${name} of %j`, async (value) => {
      for (const stream of name === "stream" ? [undefined] : [false, true]) {
        const error = await refusal("/v1/chat/completions", { messages, ...(stream && { stream }), [name]: value });
        expect(error.status).toBe(400);
        expect(error.param).toStartWith(name.replace("max_completion_tokens", "max_"));
        expect(error.type).toBe("invalid_request_error");
      }
    });
  }

  test.each([-1, 0.5, 21, 1e9, true, "1"])("logprobs of %j on /v1/completions", async (logprobs) => {
    expect(await refusal("/v1/completions", { prompt: "a", logprobs })).toMatchObject({
      status: 400,
      param: "logprobs",
    });
  });

  test("fields that exclude each other", async () => {
    const both = { messages, continue_final_message: true, add_generation_prompt: true };
    expect((await refusal("/v1/chat/completions", both)).param).toBe("continue_final_message");
    const streamed = { messages, prompt_logprobs: 1, stream: true };
    expect((await refusal("/v1/chat/completions", streamed)).param).toBe("prompt_logprobs");
    expect((await refusal("/v1/completions", { prompt: "a", max_tokens: 0 })).param).toBe("max_tokens");
  });

  test("the reason is a sentence", async () => {
    const { message } = await refusal("/v1/chat/completions", { messages, temperature: -1 });
    expect(message).toBe("temperature must be a number between 0 and 2, got -1");
    const missing = await refusal("/v1/chat/completions", {});
    expect(missing.message).toBe("messages is missing, it must be an array of messages");
    expect((await refusal("/v1/completions", {})).message).toBe("prompt is missing");
    expect((await refusal("/detokenize", {})).message).toBe("tokens is missing");
    const biased = await refusal("/v1/chat/completions", { messages, logit_bias: { word: 1 } });
    expect(biased.message).toBe('logit_bias.word must be named by a token id, got "word"');
    const nested = await refusal("/v1/chat/completions", { messages: [...messages, { role: "me", content: "" }] });
    expect(nested.message).toBe('messages[1].role must be system, developer, user, assistant or tool, got "me"');
  });

  test.each(["NaN", "Infinity", "-Infinity", "1e999"])("the literal %s", async (literal) => {
    const error = await refusal(
      "/v1/chat/completions",
      `{"messages": ${JSON.stringify(messages)}, "top_p": ${literal}}`,
    );
    expect(error.status).toBe(400);
  });
});

test("a body that is compressed", async () => {
  const init = { headers: { "content-encoding": "gzip" } };
  const { status, message } = await refusal("/v1/completions", Bun.gzipSync('{"prompt":"a"}'), init);
  expect([status, message]).toEqual([400, "bodies of content-encoding gzip are not read here"]);
});

test("more logprobs than memory should hold, of answers or of prompts", async () => {
  runtime.calls = [];
  const tokens = new Array(110_000).fill(1);
  runtime.script = () => ({ pieces: ["x", "y"], tokens: [tokens, [1]], finishReason: "stop" });
  const many = { messages, logprobs: true, top_logprobs: 20, max_tokens: 4000 };
  expect((await refusal("/v1/chat/completions", many)).message).toContain("at most 2097152 logprobs");
  runtime.script = () => hello;
  const prompt = new Array(30).fill("x".repeat(4000));
  const echoed = { prompt, echo: true, logprobs: 20, max_tokens: 1 };
  for (const stream of [false, true]) {
    const response = await post(server, "/v1/completions", { ...echoed, stream });
    expect(await response.text()).toContain("at most 2097152 logprobs");
    expect(response.status).toBe(stream ? 200 : 400);
  }
  expect(runtime.calls.every(({ generation }) => generation.aborted || generation.ended)).toBe(true);
});

describe("content", () => {
  test.each([
    [{ role: "user", content: null }],
    [{ role: "user", content: 5 }],
    [{ role: "user", content: [{ type: "image_url", image_url: { url: "http://127.0.0.1:1/x.png" } }] }],
    [{ role: "user", content: [{ type: "text" }] }],
    [{ role: "user", content: ["hi"] }],
    [{ role: "user", content: [null] }],
    [{ role: "user", content: "\ud800" }],
    [{ role: "tool", content: null }],
    [{ role: "user", content: "hi", name: 5 }],
  ])("message %j", async (message) => {
    const error = await refusal("/v1/chat/completions", { messages: [message] });
    expect(error.status).toBe(400);
    expect(error.param).toStartWith("messages[0].");
  });

  test("images are refused by type, and not fetched", async () => {
    let fetched = false;
    const images = Bun.serve({
      port: 0,
      fetch: () => {
        fetched = true;
        return new Response();
      },
    });
    const content = [{ type: "image_url", image_url: { url: images.url.href } }];
    const error = await refusal("/v1/chat/completions", { messages: [{ role: "user", content }] });
    expect(error.message).toContain("image_url");
    expect(fetched).toBe(false);
    await images.stop(true);
  });

  test.each([
    [undefined],
    [null],
    [""],
    [[]],
    [[""]],
    [["a", 1]],
    [[1, "a"]],
    [[-1]],
    [[1.5]],
    [[[]]],
    [[[1], []]],
    [{}],
    [5],
    [[999]],
    [true],
    [[2 ** 40]],
    ["\udfff"],
  ])("prompt %j", async (prompt) => {
    const error = await refusal("/v1/completions", { prompt });
    expect(error.status).toBe(400);
    expect(error.param).toStartWith("prompt");
  });

  test("more than fits", async () => {
    expect((await refusal("/v1/completions", { prompt: "x".repeat(5000) })).status).toBe(400);
    expect((await refusal("/v1/completions", { prompt: "x", max_tokens: 4096 })).param).toBe("max_tokens");
    const many = await refusal("/v1/completions", { prompt: new Array(100).fill("x"), n: 100 });
    expect(many.message).toContain("at most 2048 answers");
  });

  test.each([
    [{}],
    [{ text: "" }],
    [{ text: "a", input_ids: [1] }],
    [{ input_ids: [] }],
    [{ input_ids: "a" }],
    [{ text: "a", sampling_params: { max_new_tokens: -1 } }],
    [{ text: "a", sampling_params: { regex: "(" } }],
    [{ text: "a", sampling_params: [] }],
    [{ text: "a", return_logprob: "yes" }],
    [{ text: "a", return_logprob: [true] }],
    [{ text: "a", return_logprob: true, top_logprobs_num: 1e9 }],
    [{ text: "a", return_logprob: true, logprob_start_len: -2 }],
    [{ text: "a", sampling_params: { min_new_tokens: -1 } }],
    [{ text: "a", sampling_params: { repetition_penalty: 0 } }],
  ])("/generate %j", async (body) => {
    expect((await refusal("/generate", body)).status).toBe(400);
  });
});

describe("what is not done yet is refused by name", () => {
  test.each([
    [{ tools: [{ type: "function", function: { name: "f" } }] }],
    [{ tool_choice: "required" }],
    [{ response_format: { type: "json_object" } }],
    [{ response_format: "text" }],
    [{ guided_regex: "(" }],
    [{ structured_outputs: { regex: "(" } }],
  ])("%j", async (field) => {
    const error = await refusal("/v1/chat/completions", { messages, ...field });
    expect(error).toMatchObject({ status: 400, param: Object.keys(field)[0], code: "unsupported_parameter" });
  });

  test("values that ask for nothing are fine", async () => {
    const nothing = {
      logprobs: false,
      top_logprobs: 0,
      prompt_logprobs: null,
      min_tokens: 0,
      priority: 0,
      continue_final_message: false,
      tools: [],
      tool_choice: "auto",
      response_format: { type: "text" },
      logit_bias: {},
      presence_penalty: 0,
      frequency_penalty: 0,
      repetition_penalty: 1,
    };
    expect((await post(server, "/v1/chat/completions", { messages, ...nothing })).status).toBe(200);
  });
});

describe("bodies", () => {
  test.each([
    ["empty", ""],
    ["malformed", '{"messages": ['],
    ["not an object", "[1, 2]"],
    ["null", "null"],
    ["nested 100,000 deep", `{"messages": ${"[".repeat(100_000)}${"]".repeat(100_000)}}`],
    [
      "nested deep in what is passed on",
      `{"messages": [], "chat_template_kwargs": ${'{"a":'.repeat(99)}1${"}".repeat(99)}}`,
    ],
    ["invalid UTF-8", Uint8Array.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d])],
    ["cut UTF-8", Uint8Array.from([0x22, 0xe2, 0x82])],
  ])("%s", async (_, body) => {
    const error = await refusal("/v1/chat/completions", body);
    expect(error.status).toBe(400);
    expect(error.message).not.toBe("");
  });

  test("brackets in strings are not nesting", async () => {
    const content = `${"[".repeat(1000)}\\"${"{".repeat(1000)}`;
    expect((await post(server, "/v1/chat/completions", { messages: [{ role: "user", content }] })).status).toBe(200);
  });

  test("too large: refused by its announced length, without being read", async () => {
    const socket = Promise.withResolvers<string>();
    const started = performance.now();
    await Bun.connect({
      hostname: server.hostname,
      port: server.port,
      socket: {
        open: (open) => {
          open.write(`POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ${2 ** 30}\r\n\r\n{"prompt": "`);
        },
        data: (open, data) => {
          socket.resolve(data.toString());
          open.end();
        },
      },
    });
    expect(await socket.promise).toStartWith("HTTP/1.1 413");
    expect(performance.now() - started).toBeLessThan(1000);
  });

  test("too large: refused while it streams in", async () => {
    let sent = 0;
    const endless = new ReadableStream({
      async pull(controller) {
        if (sent > 50e6) return controller.close();
        sent += 65536;
        controller.enqueue(new Uint8Array(65536).fill(0x20));
        await Bun.sleep(0);
      },
    });
    const response = await fetch(new URL("/v1/completions", server.url), { method: "POST", body: endless });
    expect(response.status).toBe(413);
    expect(((await response.json()) as ErrorBody).error.message).toContain("1000000 bytes");
    expect(sent).toBeLessThan(50e6);
  });

  test("oversized headers", async () => {
    const response = await fetch(new URL("/health", server.url), { headers: { "x-big": "y".repeat(2 ** 20) } });
    expect(response.status).toBe(431);
  });
});
