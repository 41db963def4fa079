/** The offline API over the real threads: a tiny model of random weights on the CPU device. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { LLM, type LLMOptions } from "../../src/llm.ts";
import { type GenerationEvent, InvalidRequest } from "../../src/runtime/types.ts";
import { BOS, writeByteModel } from "./support/runtime-fixture.ts";

const options: LLMOptions = {
  device: "cpu",
  threads: 1,
  dtype: "float32",
  dummyWeight: true,
  maxSequenceLength: 4096,
  numPages: 8192,
  maxPrefillLength: 256,
};
const greedy = { temperature: 0, ignoreEos: true };

let folder: string;
let llm: LLM;
beforeAll(async () => {
  folder = writeByteModel();
  llm = await LLM.load(folder, options);
});
afterAll(async () => {
  await llm.close();
  rmSync(folder, { recursive: true });
});

describe("generate", () => {
  test("answers prompts in their order, whatever their form", async () => {
    const prompts = ["one", [1, 2, 3], { text: "three", addSpecialTokens: false }];
    const lengths = [{ maxTokens: 9 }, { maxTokens: 3 }, { maxTokens: 6 }].map((length) => ({ ...greedy, ...length }));
    const completions = await llm.generate(prompts, lengths);
    const bytes = (text: string): number[] => [...new TextEncoder().encode(text)];
    expect(completions.map(({ promptTokens }) => promptTokens)).toEqual([
      [BOS, ...bytes("one")],
      [1, 2, 3],
      bytes("three"),
    ]);
    expect(completions.map(({ tokens }) => tokens.length)).toEqual([9, 3, 6]);
    for (const { finishReason } of completions) expect(finishReason).toBe("length");
  });

  test("takes one prompt as well, and none", async () => {
    expect(await llm.generate("a", { ...greedy, maxTokens: 1 })).toHaveLength(1);
    expect(await llm.generate([5, 6], { ...greedy, maxTokens: 1 })).toHaveLength(1);
    expect(await llm.generate([])).toEqual([]);
  });

  test("gives the same answers alone and batched, greedy and seeded", async () => {
    const prompts = Array.from({ length: 12 }, (_, i) => `prompt ${"x".repeat(i * 7)}`);
    for (const sampling of [greedy, { temperature: 1, seed: 7, ignoreEos: true }]) {
      const together = await llm.generate(prompts, { ...sampling, maxTokens: 16 });
      for (const [i, prompt] of prompts.entries()) {
        const [alone] = await llm.generate(prompt, { ...sampling, maxTokens: 16 });
        expect(alone.tokens).toEqual(together[i].tokens);
      }
    }
  });

  test("finds a prompt's beginning in the cache the second time", async () => {
    const prompt = Array.from({ length: 100 }, (_, i) => (i * 31) % 200);
    await llm.generate(prompt, { ...greedy, maxTokens: 2 });
    const [again] = await llm.generate(prompt, { ...greedy, maxTokens: 2 });
    expect(again.cachedTokens).toBe(99);
  });

  test("rejects when one prompt cannot be served, and aborts the others", async () => {
    const before = (await llm.statistics()).generatedTokens;
    const both = llm.generate(["good", "x".repeat(5000)], { ...greedy });
    await expect(both).rejects.toBeInstanceOf(InvalidRequest);
    const deadline = performance.now() + 3000;
    for (;;) {
      const { runningRequests, waitingRequests, generatedTokens } = await llm.statistics();
      // Left alone, the good one would go on to the end of the context, about 4000 tokens.
      expect(generatedTokens - before).toBeLessThan(3500);
      if (runningRequests + waitingRequests === 0) break;
      expect(performance.now()).toBeLessThan(deadline);
      await Bun.sleep(5);
    }
  });

  test("wants as many sampling parameters as prompts", async () => {
    await expect(llm.generate(["a", "b"], [{}])).rejects.toBeInstanceOf(RangeError);
  });
});

describe("logprobs", () => {
  const prompt = Array.from({ length: 150 }, (_, i) => (i * 37) % 200);

  test("come with each token, the most probable ones beside them, and leave the tokens alone", async () => {
    const [plain] = await llm.generate(prompt, { ...greedy, maxTokens: 30 });
    const [told] = await llm.generate(prompt, { ...greedy, maxTokens: 30, logprobs: 20 });
    expect(told.tokens).toEqual(plain.tokens);
    expect(plain.logprobs).toBeUndefined();
    expect(told.logprobs!.map(({ token }) => token)).toEqual(told.tokens);
    for (const { token, logprob, top } of told.logprobs!) {
      expect(top).toHaveLength(20);
      expect(top[0]).toEqual({ token, logprob });
      expect(top.map((one) => one.logprob)).toEqual(top.map((one) => one.logprob).sort((a, b) => b - a));
      expect(top.reduce((sum, one) => sum + Math.exp(one.logprob), 0)).toBeLessThan(1);
    }
  });

  test("of the prompt: each is what it has as an answer", async () => {
    const [told] = await llm.generate(prompt, { ...greedy, maxTokens: 1, promptLogprobs: 1 });
    expect(told.logprobs).toBeUndefined();
    expect(told.cachedTokens).toBe(0);
    expect(told.promptLogprobs!.map(({ token }) => token)).toEqual(prompt.slice(1));
    for (const length of [1, 70, 149]) {
      const [next] = await llm.generate(prompt.slice(0, length), { ...greedy, maxTokens: 1, logprobs: 20 });
      expect(told.promptLogprobs![length - 1].top).toEqual(next.logprobs![0].top.slice(0, 1));
    }
  });

  test("are in each event as many as tokens, also where stop strings and aborts end the answer", async () => {
    const [whole] = await llm.generate("logprobs", { ...greedy, maxTokens: 200 });
    const stop = [whole.text.slice(50, 53)];
    for (const more of [{ stop }, {}]) {
      const events: GenerationEvent[] = [];
      for await (const event of llm.stream("logprobs", { ...greedy, maxTokens: 3000, logprobs: 0, ...more })) {
        expect(event.logprobs!.map(({ token }) => token)).toEqual(event.tokens);
        events.push(event);
        if (events.length === 60) break;
      }
      expect(events.flatMap(({ tokens }) => tokens).length).toBeGreaterThan(10);
    }
    const deadline = performance.now() + 3000;
    while ((await llm.statistics()).runningRequests > 0 && performance.now() < deadline) await Bun.sleep(5);
    expect((await llm.statistics()).runningRequests).toBe(0);
  });
});

test("logits are changed as asked", async () => {
  const prompt = "once upon a time";
  const [plain] = await llm.generate(prompt, { ...greedy, maxTokens: 40 });
  const first = plain.tokens[0];
  const [banned] = await llm.generate(prompt, { ...greedy, maxTokens: 40, logitBias: new Map([[first, -100]]) });
  expect(banned.tokens).not.toContain(first);
  const [forced] = await llm.generate(prompt, { ...greedy, maxTokens: 5, logitBias: new Map([[9, 100]]) });
  expect(forced.tokens).toEqual([9, 9, 9, 9, 9]);
  const [varied] = await llm.generate(prompt, { ...greedy, maxTokens: 200, presencePenalty: 2, repetitionPenalty: 10 });
  expect(new Set(varied.tokens).size).toBeGreaterThan(new Set(plain.tokens).size);
  const stopTokenIds = [first];
  const [late] = await llm.generate(prompt, { ...greedy, maxTokens: 40, stopTokenIds, minTokens: 10 });
  expect(late.tokens.slice(0, 10)).not.toContain(first);
  const [salted] = await llm.generate(prompt, { ...greedy, maxTokens: 1, cacheSalt: "pepper" });
  expect(salted.cachedTokens).toBe(0);
});

test("chat renders the model's template", async () => {
  const messages = [{ role: "user", content: "hi" }];
  const [one, two] = await llm.chat([messages, messages], { ...greedy, maxTokens: 2 });
  expect(await llm.decode(one.promptTokens)).toBe("<bos>[user]hi[assistant]");
  expect(two.promptTokens).toEqual(one.promptTokens);
  const [open] = await llm.chat(messages, { ...greedy, maxTokens: 1 }, { addGenerationPrompt: false });
  expect(await llm.decode(open.promptTokens)).toBe("<bos>[user]hi");
  const begun = [...messages, { role: "assistant", content: "Well, " }];
  const [further] = await llm.chat(begun, { ...greedy, maxTokens: 1 }, { continueFinalMessage: true });
  expect(await llm.decode(further.promptTokens)).toBe("<bos>[user]hi[assistant]Well, ");
  const both = { continueFinalMessage: true, addGenerationPrompt: true };
  await expect(llm.chat(begun, greedy, both)).rejects.toBeInstanceOf(InvalidRequest);
});

test("stream gives in pieces what generate gives at once", async () => {
  const sampling = { ...greedy, maxTokens: 40 };
  const [whole] = await llm.generate("stream", sampling);
  const events: GenerationEvent[] = [];
  for await (const event of llm.stream("stream", sampling)) events.push(event);
  expect(events.flatMap(({ tokens }) => tokens)).toEqual(whole.tokens);
  expect(events.map(({ text }) => text).join("")).toBe(whole.text);
  expect(events.filter(({ finishReason }) => finishReason !== null)).toEqual([events.at(-1)!]);
});

test("loads at the first call, and anew after close()", async () => {
  const stages = new Set<string>();
  await using lazy = new LLM(folder, { ...options, onProgress: (stage) => stages.add(stage) });
  expect(stages.size).toBe(0);
  const [first] = await lazy.generate("again", { ...greedy, maxTokens: 4 });
  await lazy.close();
  const [second] = await lazy.generate("again", { ...greedy, maxTokens: 4 });
  expect(second.tokens).toEqual(first.tokens);
  expect((await lazy.info()).architecture).toBe("llama");
});

test("a model that is not there rejects with its name", async () => {
  await expect(LLM.load("/nowhere/at-all", options)).rejects.toThrow("at-all");
});
