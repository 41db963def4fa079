/** What requests ask of logits, through the npm package openai and as evaluation harnesses do it. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type OpenAI from "openai";
import { Installation, type TestServer } from "./support.ts";

setDefaultTimeout(60_000);
const installation = new Installation();
let server: TestServer;
let client: OpenAI;
const greedy = { model: "default", temperature: 0 };
const capital = [{ role: "user" as const, content: "What is the capital of France? Answer in one short sentence." }];
const utf8 = new TextDecoder("utf-8", { fatal: true });

beforeAll(async () => {
  server = await installation.serve();
  client = server.client;
});
afterEach(() => server.untilIdle());
afterAll(() => installation.remove());

/** A completion with fields that the package does not know. */
const complete = (fields: object): Promise<OpenAI.Completion> =>
  client.completions.create({ ...greedy, ...fields } as never as OpenAI.CompletionCreateParamsNonStreaming);
const chat = (fields: object): Promise<OpenAI.ChatCompletion> =>
  client.chat.completions.create({ ...greedy, messages: capital, ...fields } as never);
const tokenize = async (prompt: string): Promise<number[]> =>
  ((await (await server.post("/tokenize", { prompt })).json()) as { tokens: number[] }).tokens;

describe("logprobs", () => {
  test("of a greedy chat are those of the most probable tokens, and their bytes are the text", async () => {
    const { choices, usage } = await chat({ logprobs: true, top_logprobs: 5, max_tokens: 32 });
    const { content } = choices[0].logprobs!;
    expect(content).toHaveLength(usage!.completion_tokens);
    for (const { token, logprob, bytes, top_logprobs } of content!) {
      expect(top_logprobs).toHaveLength(5);
      expect(top_logprobs[0]).toEqual({ token, logprob, bytes });
      const sorted = top_logprobs.map((each) => each.logprob);
      expect(sorted).toEqual(sorted.toSorted((a, b) => b - a));
      expect(sorted.reduce((sum, each) => sum + Math.exp(each), 0)).toBeLessThan(1.0001);
    }
    // The last token ended the answer and is not in its text.
    const bytes = content!.slice(0, -1).flatMap((each) => each.bytes!);
    expect(utf8.decode(Uint8Array.from(bytes))).toBe(choices[0].message.content!);
    expect(content!.at(-1)!.token).toBe("<|im_end|>");
  });

  test("a stream has the same, and characters of several tokens have their bytes", async () => {
    const options = { prompt: "🦜🥐🧀 北京 🐘", max_tokens: 24, logprobs: 3, echo: true, ignore_eos: true };
    const whole = (await complete(options)).choices[0];
    const parts: NonNullable<OpenAI.CompletionChoice["logprobs"]>[] = [];
    let text = "";
    const stream = await client.completions.create({ ...greedy, ...options, stream: true });
    for await (const chunk of stream) {
      text += chunk.choices[0].text;
      parts.push(chunk.choices[0].logprobs!);
    }
    expect(text).toBe(whole.text);
    expect(parts.flatMap((part) => part.tokens)).toEqual(whole.logprobs!.tokens!);
    expect(parts.flatMap((part) => part.text_offset)).toEqual(whole.logprobs!.text_offset!);
    expect(whole.logprobs!.tokens!.some((token) => token.includes("\ufffd"))).toBe(true);
    const characters = [...whole.text];
    for (const [index, token] of whole.logprobs!.tokens!.entries()) {
      if (token.includes("\ufffd") || token.startsWith("<|")) continue;
      const offset = whole.logprobs!.text_offset![index];
      expect(characters.slice(offset, offset + [...token].length).join("")).toBe(token);
    }
  });

  test("echo scores a text as harnesses ask for it, and the likelier text scores better", async () => {
    const context = "The capital of France is";
    const score = async (ending: string, max_tokens: number) => {
      const answer = (await complete({ prompt: context + ending, echo: true, logprobs: 1, max_tokens })).choices[0];
      const { token_logprobs, text_offset, top_logprobs, tokens } = answer.logprobs!;
      expect(token_logprobs![0]).toBeNull();
      expect(tokens).toHaveLength(text_offset!.length);
      const own = text_offset!.flatMap((offset, index) =>
        offset >= context.length && offset < context.length + ending.length ? [index] : [],
      );
      expect(own.length).toBeGreaterThan(0);
      const sum = own.reduce((total, index) => total + token_logprobs![index], 0);
      const isGreedy = own.every(
        (index) => token_logprobs![index] === Math.max(...Object.values(top_logprobs![index] as never as number[])),
      );
      return { sum, isGreedy, text: answer.text };
    };
    const paris = await score(" Paris", 0);
    expect(paris).toMatchObject({ isGreedy: true, text: `${context} Paris` });
    expect(paris.sum).toBeGreaterThan((await score(" London", 0)).sum);
    expect((await score(" Paris", 1)).sum).toBe(paris.sum);
  });

  test("prompt logprobs agree with those of an answer that says the same", async () => {
    const prompt = "One, two, three,";
    type Choice = OpenAI.CompletionChoice & {
      token_ids: number[];
      prompt_token_ids: number[];
      prompt_logprobs: ({ [id: number]: { logprob: number; rank: number } } | null)[];
    };
    const options = { return_token_ids: true, logprobs: 0 };
    const said = (await complete({ ...options, prompt, max_tokens: 6 })).choices[0] as Choice;
    const ids = [...said.prompt_token_ids, ...said.token_ids];
    const scored = (await complete({ ...options, prompt: ids, max_tokens: 1, prompt_logprobs: 1 }))
      .choices[0] as Choice;
    expect(scored.prompt_logprobs).toHaveLength(ids.length);
    expect(scored.prompt_logprobs[0]).toBeNull();
    for (const [index, id] of said.token_ids.entries()) {
      const { logprob, rank } = scored.prompt_logprobs[said.prompt_token_ids.length + index]![id];
      expect(Math.abs(logprob - said.logprobs!.token_logprobs![index])).toBeLessThan(0.1);
      expect(rank).toBe(1);
    }
  });
});

describe("biases and penalties", () => {
  const prompt = "Repeat after me: na na na na na na na na";

  test("a bias of 100 makes a token, one of -100 bans it", async () => {
    const [paris] = await tokenize(" Paris");
    const forced = await complete({ prompt: "I like", max_tokens: 3, logit_bias: { [paris]: 100 } });
    expect(forced.choices[0].text).toBe(" Paris Paris Paris");
    const banned = await complete({ prompt: "The capital of France is", max_tokens: 8, logit_bias: { [paris]: -100 } });
    expect(banned.choices[0].text).not.toContain(" Paris");
  });

  test("the logprobs are those of the model, whatever the bias", async () => {
    const [paris] = await tokenize(" Paris");
    const plain = await complete({ prompt: "I like", max_tokens: 1, logprobs: 5 });
    const biased = await complete({ prompt: "I like", max_tokens: 1, logprobs: 5, logit_bias: { [paris]: 100 } });
    expect(biased.choices[0].logprobs!.token_logprobs![0]).toBeLessThan(-3);
    expect(biased.choices[0].logprobs!.top_logprobs![0]).toMatchObject(plain.choices[0].logprobs!.top_logprobs![0]);
  });

  test.each([{ frequency_penalty: 2 }, { presence_penalty: 2, frequency_penalty: 1 }, { repetition_penalty: 1.8 }])(
    "%j makes repetitions rarer",
    async (penalties) => {
      const distinct = async (fields: object) => {
        const { choices } = await complete({
          prompt,
          max_tokens: 24,
          ignore_eos: true,
          return_token_ids: true,
          ...fields,
        });
        return new Set((choices[0] as unknown as { token_ids: number[] }).token_ids).size;
      };
      expect(await distinct(penalties)).toBeGreaterThan((await distinct({})) + 4);
    },
  );

  test("min_tokens holds EOS back, and no longer", async () => {
    const [eos] = await tokenize("<|im_end|>");
    const eager = { prompt: "Once upon a time", max_tokens: 20, logit_bias: { [eos]: 100 } };
    expect((await complete(eager)).usage!.completion_tokens).toBe(1);
    const later = await complete({ ...eager, min_tokens: 7 });
    expect(later.usage!.completion_tokens).toBe(8);
    expect(later.choices[0].finish_reason).toBe("stop");
  });
});

describe("prompts", () => {
  test("continue_final_message goes on with what the assistant has begun", async () => {
    const messages = [...capital, { role: "assistant", content: "The capital of France is" }];
    const { choices } = await chat({
      messages,
      continue_final_message: true,
      add_generation_prompt: false,
      max_tokens: 8,
    });
    expect(choices[0].message.content).toStartWith(" Paris");
  });

  test("a salt keeps cached prefixes apart", async () => {
    const prompt = `${"A long beginning that can be shared. ".repeat(8)}And then`;
    const cached = async (cache_salt?: string) =>
      (await complete({ prompt, max_tokens: 1, cache_salt })).usage!.prompt_tokens_details!.cached_tokens!;
    expect(await cached("a")).toBe(0);
    expect(await cached("b")).toBe(0);
    expect(await cached()).toBe(0);
    expect(await cached("a")).toBeGreaterThan(20);
    expect(await cached("b")).toBeGreaterThan(20);
  });
});

describe("bad input", () => {
  const text = { ...greedy, prompt: "a", max_tokens: 1 };
  test.each([
    ["a bias outside of the vocabulary", { logit_bias: { 1000000: 1 } }, "logit_bias"],
    ["a huge bias", { logit_bias: { 1: 1e9 } }, "logit_bias"],
    ["more logprobs than 20", { logprobs: 1e9 }, "logprobs"],
    ["more prompt_logprobs than 20", { prompt_logprobs: 21 }, "prompt_logprobs"],
    ["a repetition_penalty of 0", { repetition_penalty: 0 }, "repetition_penalty"],
    ["min_tokens above max_tokens", { min_tokens: 5 }, "min_tokens"],
    ["an empty salt", { cache_salt: "" }, "cache_salt"],
    ["a priority that is no integer", { priority: 0.5 }, "priority"],
  ])("%s", async (_, fields, param) => {
    const response = await server.post("/v1/completions", { ...text, ...fields });
    expect(response.status).toBe(400);
    const { error } = (await response.json()) as { error: { param: string; message: string } };
    expect(error.param).toStartWith(param);
    expect((await complete({ prompt: "The capital of France is", max_tokens: 2 })).choices[0].text).toContain("Paris");
  });
});
