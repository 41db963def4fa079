/** Logprobs in the forms of chat, completions, vLLM's prompt_logprobs and SGLang's /generate. The fake's are -id / 8. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import OpenAI from "openai";
import { events, FakeRuntime, post, type Script, startServer } from "./support/fake-runtime.ts";

const runtime = new FakeRuntime();
const server = startServer(runtime);
const client = new OpenAI({ baseURL: `${server.url}v1`, apiKey: "none", maxRetries: 0 });
const model = "default";
const messages = [{ role: "user" as const, content: "hi" }];
const bytes = (text: string) => [...Buffer.from(text)];

/** "aß!" by bytes, the sharp s in two tokens of which the first shows no text, then a special token. */
const parts: Script = {
  pieces: ["a", "", "ß", "!"],
  tokens: [[97], [0xc3], [0x9f], [33, 255]],
  finishReason: "stop",
};

beforeEach(() => {
  runtime.calls = [];
  runtime.script = () => parts;
  runtime.encode = FakeRuntime.prototype.encode;
});
afterAll(() => server.stop());

describe("chat", () => {
  test("each token has its bytes, its logprob and the most probable ones", async () => {
    const answer = await client.chat.completions.create({ model, messages, logprobs: true, top_logprobs: 2 });
    const { content } = answer.choices[0].logprobs!;
    expect(content!.map(({ token }) => token)).toEqual(["a", "\ufffd", "\ufffd", "!", "\ufffd"]);
    expect(content!.map(({ bytes }) => bytes)).toEqual([[97], [0xc3], [0x9f], [33], [255]]);
    expect(content!.map(({ logprob }) => logprob)).toEqual([97, 0xc3, 0x9f, 33, 255].map((id) => -id / 8));
    expect(content![0].top_logprobs).toEqual([
      { token: "\0", logprob: 0, bytes: [0] },
      { token: "\x01", logprob: -0.125, bytes: [1] },
    ]);
    expect(runtime.calls[0].parameters).toMatchObject({ logprobs: 2, promptLogprobs: undefined });
  });

  test("without top_logprobs there are none of those, without logprobs nothing", async () => {
    const some = await client.chat.completions.create({ model, messages, logprobs: true });
    expect(some.choices[0].logprobs!.content![0].top_logprobs).toEqual([]);
    const none = await client.chat.completions.create({ model, messages });
    expect(none.choices[0].logprobs).toBeNull();
    expect(runtime.calls.map(({ parameters }) => parameters.logprobs)).toEqual([0, undefined]);
  });

  test("a stream tells the same in its chunks", async () => {
    const options = { model, messages, n: 2, logprobs: true, top_logprobs: 1 };
    const whole = await client.chat.completions.create(options);
    const streamed: object[][] = [[], []];
    for await (const { choices } of await client.chat.completions.create({ ...options, stream: true })) {
      for (const { index, logprobs } of choices) streamed[index].push(...(logprobs?.content ?? []));
    }
    expect(streamed).toEqual(whole.choices.map(({ logprobs }) => logprobs!.content!));
  });

  test("minus infinity becomes a number, and tokens may be written as ids", async () => {
    runtime.script = () => ({ pieces: ["x"], tokens: [[1e9]], finishReason: "stop" });
    const body = { messages, logprobs: true, return_tokens_as_token_ids: true };
    const answer = (await (await post(server, "/v1/chat/completions", body)).json()) as OpenAI.ChatCompletion;
    expect(answer.choices[0].logprobs!.content![0]).toMatchObject({ token: "token_id:1000000000", logprob: -9999 });
  });

  test("prompt_logprobs are by id, null for the first token, and give ranks where they are known", async () => {
    runtime.encode = async () => [1, 97, 2];
    const body = { messages, prompt_logprobs: 2 };
    const answer = await (await post(server, "/v1/chat/completions", body)).json();
    expect((answer as { prompt_logprobs: unknown }).prompt_logprobs).toEqual([
      null,
      {
        0: { logprob: 0, rank: 1, decoded_token: "\0" },
        1: { logprob: -0.125, rank: 2, decoded_token: "\x01" },
        97: { logprob: -97 / 8, rank: null, decoded_token: "a" },
      },
      {
        0: { logprob: 0, rank: 1, decoded_token: "\0" },
        1: { logprob: -0.125, rank: 2, decoded_token: "\x01" },
        2: { logprob: -0.25, rank: null, decoded_token: "\x02" },
      },
    ]);
  });
});

describe("completions", () => {
  test("offsets are in characters of the text; tokens within a character have its offset", async () => {
    const answer = await client.completions.create({ model, prompt: "x", logprobs: 1 });
    expect(answer.choices[0].logprobs).toEqual({
      tokens: ["a", "\ufffd", "\ufffd", "!", "\ufffd"],
      token_logprobs: [97, 0xc3, 0x9f, 33, 255].map((id) => -id / 8),
      top_logprobs: expect.anything(),
      text_offset: [0, 1, 1, 2, 3],
    });
    expect(answer.choices[0].logprobs!.top_logprobs![0]).toEqual({ "\0": 0, a: -97 / 8 });
  });

  test("echo puts the prompt's in front, the first without a logprob", async () => {
    const options = { model, prompt: "𝛼b", logprobs: 0, echo: true };
    const answer = await client.completions.create(options);
    const { tokens, token_logprobs, top_logprobs, text_offset } = answer.choices[0].logprobs!;
    const ids = [...bytes("𝛼b"), 97, 0xc3, 0x9f, 33, 255];
    expect(answer.choices[0].text).toBe("𝛼baß!");
    expect(tokens).toHaveLength(ids.length);
    expect(token_logprobs).toEqual([null as never, ...ids.slice(1).map((id) => -id / 8)]);
    expect(top_logprobs!.slice(4, 6)).toEqual([{ b: -98 / 8 }, { a: -97 / 8 }]);
    expect(top_logprobs![0]).toBeNull();
    expect(text_offset).toEqual([0, 0, 0, 0, 1, 2, 3, 3, 4, 5]);
    expect(runtime.calls[0].parameters).toMatchObject({ logprobs: 0, promptLogprobs: 0 });

    const streamed = { tokens: [] as string[], text_offset: [] as number[] };
    for await (const { choices } of await client.completions.create({ ...options, stream: true })) {
      streamed.tokens.push(...choices[0].logprobs!.tokens!);
      streamed.text_offset.push(...choices[0].logprobs!.text_offset!);
    }
    expect(streamed).toEqual({ tokens: tokens!, text_offset: text_offset! });
  });

  test("what a tokenizer puts before the text takes no room in it", async () => {
    runtime.encode = async (prompt) => ("tokens" in prompt ? [...prompt.tokens] : [255, 32, 97, 98]);
    const { choices } = await client.completions.create({ model, prompt: "ab", logprobs: 1, echo: true });
    expect(choices[0].logprobs!.text_offset!.slice(0, 6)).toEqual([0, 0, 0, 1, 2, 3]);
  });

  test.each([false, true])("max_tokens of 0 gives the prompt alone (streamed: %p)", async (stream) => {
    type Chunk = { choices: OpenAI.CompletionChoice[]; usage?: OpenAI.CompletionUsage };
    const body = { prompt: ["ab", "c"], max_tokens: 0, echo: true, logprobs: 1, stream };
    const response = await post(server, "/v1/completions", { ...body, stream_options: { include_usage: true } });
    const chunks = stream ? await events<Chunk>(response) : [(await response.json()) as Chunk];
    const choices = chunks.flatMap(({ choices }) => choices).sort((a, b) => a.index - b.index);
    expect(choices.map(({ text }) => text)).toEqual(["ab", "c"]);
    expect(choices.map(({ logprobs }) => logprobs!.tokens!)).toEqual([["a", "b"], ["c"]]);
    expect(choices.map(({ logprobs }) => logprobs!.token_logprobs!)).toEqual([
      [null as never, -98 / 8],
      [null as never],
    ]);
    expect(choices.map(({ finish_reason }) => finish_reason)).toEqual(["length", "length"]);
    expect(chunks.at(-1)!.usage).toMatchObject({ prompt_tokens: 3, completion_tokens: 0 });
    expect(runtime.calls.map(({ parameters }) => parameters.maxTokens)).toEqual([1, 1]);
  });

  test("special tokens take room where the text has them", async () => {
    runtime.script = () => ({ pieces: ["a", "!"], tokens: [[97, 255], [33]], finishReason: "stop" });
    const offsets = async (fields: object) => {
      const body = { prompt: "x", logprobs: 0, ...fields };
      const answer = (await (await post(server, "/v1/completions", body)).json()) as OpenAI.Completions.Completion;
      return answer.choices[0].logprobs!.text_offset!;
    };
    expect(await offsets({})).toEqual([0, 1, 1]);
    expect(await offsets({ skip_special_tokens: false })).toEqual([0, 1, 2]);
    expect(runtime.calls.map(({ parameters }) => parameters.skipSpecialTokens)).toEqual([undefined, false]);
  });

  test("each of n answers has its own", async () => {
    runtime.script = (_, choice) => ({ pieces: ["xy"[choice]], tokens: [[120 + choice]], finishReason: "stop" });
    const { choices } = await client.completions.create({ model, prompt: "ab", logprobs: 0, echo: true, n: 2 });
    expect(choices.map(({ logprobs }) => logprobs!.tokens!.join(""))).toEqual(["abx", "aby"]);
    expect(choices.map(({ logprobs }) => logprobs!.text_offset!)).toEqual([
      [0, 1, 2],
      [0, 1, 2],
    ]);
  });
});

describe("/generate", () => {
  type Native = { meta_info: Record<string, unknown> };

  test("gives [logprob, id, text], the first of the prompt without logprob", async () => {
    const body = { text: "abc", return_logprob: true, logprob_start_len: 1, top_logprobs_num: 1 };
    const { meta_info } = (await (await post(server, "/generate", body)).json()) as Native;
    expect(meta_info).toMatchObject({
      input_token_logprobs: [
        [null, 98, null],
        [-99 / 8, 99, null],
      ],
      input_top_logprobs: [null, [[0, 0, null]]],
      output_token_logprobs: [97, 0xc3, 0x9f, 33, 255].map((id) => [-id / 8, id, null]),
      output_top_logprobs: [1, 2, 3, 4, 5].map(() => [[0, 0, null]]),
    });
  });

  test("by default of the answer alone, and not at all unless asked", async () => {
    const body = { text: "abc", return_logprob: true, return_text_in_logprobs: true, stream: true };
    const last = (await events<Native>(await post(server, "/generate", body))).at(-1)!;
    expect(last.meta_info.input_token_logprobs).toEqual([]);
    expect((last.meta_info.output_token_logprobs as unknown[])[0]).toEqual([-97 / 8, 97, "a"]);
    expect(last.meta_info).not.toHaveProperty("output_top_logprobs");
    expect(runtime.calls[0].parameters).toMatchObject({ logprobs: 0, promptLogprobs: undefined });
    const { meta_info } = (await (await post(server, "/generate", { text: "abc" })).json()) as Native;
    expect(meta_info).not.toHaveProperty("output_token_logprobs");
  });
});
