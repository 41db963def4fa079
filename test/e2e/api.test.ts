/** The executable, alone in its folder, through the npm package openai. One server for all tests here. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type OpenAI from "openai";
import { Installation, type TestServer } from "./support.ts";

setDefaultTimeout(60_000);
const installation = new Installation();
let server: TestServer;
let client: OpenAI;
const model = "default";
const capital = [{ role: "user" as const, content: "What is the capital of France? Answer in one short sentence." }];
const greedy = { model, temperature: 0 };

beforeAll(async () => {
  server = await installation.serve();
  client = server.client;
});
afterEach(() => server.untilIdle());
afterAll(() => installation.remove());

describe("answers", () => {
  test("chat gives a sensible answer with usage", async () => {
    const answer = await client.chat.completions.create({ ...greedy, messages: capital, max_tokens: 32 });
    expect(answer.choices[0].message.content).toContain("Paris");
    expect(answer.choices[0].finish_reason).toBe("stop");
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage!;
    expect(prompt_tokens).toBeGreaterThan(10);
    expect(completion_tokens).toBeGreaterThan(1);
    expect(total_tokens).toBe(prompt_tokens + completion_tokens);
  });

  test("a stream says the same in pieces, and its usage comes last", async () => {
    const whole = await client.chat.completions.create({ ...greedy, messages: capital, max_tokens: 24 });
    const stream = await client.chat.completions.create({
      ...greedy,
      messages: capital,
      max_tokens: 24,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let pieces = 0;
    let last: OpenAI.ChatCompletionChunk | undefined;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      pieces++;
      last = chunk;
    }
    expect(text).toBe(whole.choices[0].message.content!);
    expect(pieces).toBeGreaterThan(4);
    expect(last!.choices).toEqual([]);
    expect(last!.usage!.completion_tokens).toBe(whole.usage!.completion_tokens);
  });

  test("completions take strings and token ids, alone and in lists", async () => {
    const options = { ...greedy, max_tokens: 5 };
    const prompts = ["The capital of France is", "Once upon a time"];
    const alone = await Promise.all(prompts.map((prompt) => client.completions.create({ ...options, prompt })));
    const both = await client.completions.create({ ...options, prompt: prompts });
    expect(both.choices.map(({ text }) => text)).toEqual(alone.map(({ choices }) => choices[0].text));
    expect(both.usage!.completion_tokens).toBe(10);

    type Ids = { choices: { text: string; prompt_token_ids: number[]; token_ids: number[] }[] };
    const response = await server.post("/v1/completions", { ...options, prompt: prompts[0], return_token_ids: true });
    const { prompt_token_ids, token_ids } = ((await response.json()) as Ids).choices[0];
    expect(token_ids).toHaveLength(5);
    for (const prompt of [prompt_token_ids, [prompt_token_ids, prompt_token_ids]]) {
      const again = await client.completions.create({ ...options, prompt: prompt as number[] });
      expect(new Set(again.choices.map(({ text }) => text))).toEqual(new Set([alone[0].choices[0].text]));
    }
  });

  test("echo and max_tokens", async () => {
    const prompt = "One, two, three,";
    const answer = await client.completions.create({ ...greedy, prompt, echo: true, max_tokens: 4 });
    expect(answer.choices[0].text).toStartWith(prompt);
    expect(answer.choices[0].finish_reason).toBe("length");
    expect(answer.usage!.completion_tokens).toBe(4);
  });

  test("a stop string ends the answer and is not in it, streamed or not", async () => {
    const options = { ...greedy, prompt: "One, two, three, four,", max_tokens: 40 };
    const free = (await client.completions.create(options)).choices[0].text;
    const stop = free.slice(8, 13);
    const cut = free.slice(0, free.indexOf(stop));
    const answer = await client.completions.create({ ...options, stop });
    expect(answer.choices[0].text).toBe(cut);
    expect(answer.choices[0].finish_reason).toBe("stop");
    let streamed = "";
    for await (const chunk of await client.completions.create({ ...options, stop: ["never", stop], stream: true })) {
      streamed += chunk.choices[0].text;
    }
    expect(streamed).toBe(cut);
  });

  test("ignore_eos goes on to max_tokens", async () => {
    const body = { ...greedy, messages: capital, max_tokens: 48, ignore_eos: true };
    const answer = await client.chat.completions.create(body as never as OpenAI.ChatCompletionCreateParamsNonStreaming);
    expect(answer.usage!.completion_tokens).toBe(48);
  });

  test("equal seeds give equal answers, other seeds others; n answers differ", async () => {
    const options = { model, prompt: "My favourite animal is", max_tokens: 24, temperature: 1.2 };
    const draw = async (seed: number) => (await client.completions.create({ ...options, seed })).choices[0].text;
    const [a, b, c] = [await draw(1), await draw(1), await draw(2)];
    expect(a).toBe(b);
    expect(a).not.toBe(c);
    const several = await client.completions.create({ ...options, n: 4, seed: 1 });
    const texts = several.choices.map(({ text }) => text);
    expect(texts[0]).toBe(a);
    expect(new Set(texts).size).toBe(4);
  });

  test("a repeated prompt is found in the prefix cache, until it is flushed", async () => {
    const messages = [{ role: "user" as const, content: `Remember: ${"the cat sat on the mat. ".repeat(10)}` }];
    const cached = async () => {
      const { usage } = await client.chat.completions.create({ ...greedy, messages, max_tokens: 2 });
      return { cached: usage!.prompt_tokens_details!.cached_tokens!, prompt: usage!.prompt_tokens };
    };
    await server.post("/flush_cache", "");
    expect((await cached()).cached).toBe(0);
    const again = await cached();
    expect(again.cached).toBe(again.prompt - 1);
    await server.untilIdle();
    expect((await server.info()).num_cached_pages).toBeGreaterThanOrEqual(again.prompt);
    expect((await fetch(`${server.url}/flush_cache`)).status).toBe(200);
    expect((await server.info()).num_cached_pages).toBe(0);
    expect((await cached()).cached).toBe(0);
  });

  test("/generate answers as SGLang does", async () => {
    const body = { text: "The capital of France is", sampling_params: { temperature: 0, max_new_tokens: 4 } };
    type Generated = { text: string; output_ids: number[]; meta_info: { completion_tokens: number } };
    const answer = (await (await server.post("/generate", body)).json()) as Generated;
    expect(answer.text).toContain("Paris");
    expect(answer.output_ids).toHaveLength(4);
    expect(answer.meta_info).toMatchObject({ completion_tokens: 4, finish_reason: { type: "length", length: 4 } });
  });

  test("/v1/models names the model", async () => {
    const { data } = await client.models.list();
    expect(data).toHaveLength(1);
    expect(data[0]).toMatchObject({ object: "model", owned_by: "minisgl" });
    const { choices } = await client.chat.completions.create({ model: data[0].id, messages: capital, max_tokens: 1 });
    expect(choices).toHaveLength(1);
  });
});

describe("leaving clients", () => {
  test("an aborted stream frees its pages", async () => {
    const stream = await client.completions.create({
      model,
      prompt: "Count to a thousand: 1, 2, 3,",
      max_tokens: 1500,
      stream: true,
    });
    let pieces = 0;
    for await (const _ of stream) {
      if (++pieces === 3) {
        expect((await server.info()).num_running_requests).toBe(1);
        break;
      }
    }
    await server.untilIdle(1);
  });

  test("clients that leave while queued, in prefill and decoding free theirs too", async () => {
    const controllers = Array.from({ length: 24 }, () => new AbortController());
    const leaving = controllers.map(({ signal }, index) => {
      const prompt = `${index} ${"and so on and on ".repeat(index % 3 === 0 ? 200 : 1)}`;
      const body = { prompt, max_tokens: 500, stream: index % 2 === 0 };
      return server.post("/v1/completions", body, { signal }).catch(() => {});
    });
    for (const [index, controller] of controllers.entries()) {
      await Bun.sleep(index % 5);
      controller.abort();
    }
    await Promise.all(leaving);
    // What is promised is counted in steps: how long one takes, with 512 tokens of prompts, is the machine's affair.
    const { num_steps: before } = await server.info();
    await server.untilIdle(30);
    expect((await server.info()).num_steps - before).toBeLessThan(8);
  });
});

describe("bad input", () => {
  const messages = capital;
  const bad: [string, string, unknown, number][] = [
    ["no messages", "/v1/chat/completions", { messages: [] }, 400],
    ["an empty prompt", "/v1/completions", { prompt: "" }, 400],
    ["a prompt longer than the context", "/v1/completions", { prompt: "word ".repeat(20_000) }, 400],
    ["more tokens than the context", "/v1/completions", { prompt: "a", max_tokens: 1e6 }, 400],
    ["a token id outside of the vocabulary", "/v1/completions", { prompt: [1, 2 ** 30] }, 400],
    ["a stop token id outside of the vocabulary", "/v1/completions", { prompt: "a", stop_token_ids: [2 ** 30] }, 400],
    ["a negative max_tokens", "/v1/chat/completions", { messages, max_tokens: -1 }, 400],
    ["a negative temperature", "/v1/chat/completions", { messages, temperature: -1 }, 400],
    ["NaN", "/v1/chat/completions", `{"messages": ${JSON.stringify(messages)}, "temperature": NaN}`, 400],
    ["n of 0", "/v1/chat/completions", { messages, n: 0 }, 400],
    ["n of a billion, streamed", "/v1/chat/completions", { messages, n: 1e9, stream: true }, 400],
    ["an image", "/v1/chat/completions", { messages: [{ role: "user", content: [{ type: "image_url" }] }] }, 400],
    ["an invalid regular expression", "/v1/chat/completions", { messages, guided_regex: "(" }, 400],
    ["ten thousand stop strings", "/v1/chat/completions", { messages, stop: new Array(10_000).fill("x") }, 400],
    ["a lone surrogate", "/v1/chat/completions", '{"messages": [{"role": "user", "content": "\\ud800"}]}', 400],
    ["JSON 100,000 deep", "/v1/completions", `{"prompt": ${"[".repeat(100_000)}${"]".repeat(100_000)}}`, 400],
    ["malformed JSON", "/v1/completions", '{"prompt": ', 400],
    ["a body of 64 MB", "/v1/completions", JSON.stringify({ prompt: "x".repeat(64 * 2 ** 20) }), 413],
    ["an unknown model", "/v1/completions", { model: "gpt-5", prompt: "a" }, 404],
    ["an unknown route", "/v1/embeddings", { input: "a" }, 404],
  ];
  test.each(bad)("%s", async (_, path, body, status) => {
    const response = await server.post(path, body);
    expect(response.status).toBe(status);
    expect(response.headers.get("content-type")).toStartWith("application/json");
    const { error } = (await response.json()) as { error: { message: string; type: string } };
    expect(error.message.length).toBeGreaterThan(10);
    const good = await client.completions.create({ ...greedy, prompt: "The capital of France is", max_tokens: 2 });
    expect(good.choices[0].text).toContain("Paris");
  });
});
