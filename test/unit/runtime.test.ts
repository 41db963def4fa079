import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { getEventListeners } from "node:events";
import type { Runtime } from "../../src/runtime/runtime.ts";
import {
  type Generation,
  type GenerationEvent,
  InvalidRequest,
  type Prompt,
  QueueFull,
} from "../../src/runtime/types.ts";
import { BOS, EOS, Seeds, startEcho } from "./support/runtime-fixture.ts";

interface Answered {
  text: string;
  tokens: number[];
  last: GenerationEvent;
  events: number;
}

async function read(generation: Generation): Promise<Answered> {
  const answered: Partial<Answered> & { text: string; tokens: number[]; events: number } = {
    text: "",
    tokens: [],
    events: 0,
  };
  for await (const event of generation) {
    answered.text += event.text;
    answered.tokens.push(...event.tokens);
    answered.events++;
    answered.last = event;
  }
  return answered as Answered;
}

const bytes = (text: string): number[] => [...new TextEncoder().encode(text)];
const prompt = (text: string): Prompt => ({ tokens: bytes(text) });

async function refusal(promise: Promise<unknown>): Promise<InvalidRequest> {
  const error = await promise.then(
    () => null,
    (thrown) => thrown,
  );
  expect(error).toBeInstanceOf(InvalidRequest);
  return error;
}

/** Waits until the scheduler has nothing to run: what is aborted in main must be aborted there. */
async function untilIdle(runtime: Runtime): Promise<void> {
  const deadline = performance.now() + 3000;
  while (!(await runtime.flushCache())) {
    if (performance.now() > deadline) throw new Error("requests still run in the scheduler");
    await Bun.sleep(2);
  }
}

describe("an answer", () => {
  let runtime: Runtime;
  beforeAll(async () => {
    runtime = await startEcho();
  });
  afterAll(() => runtime.stop());

  test("comes as text, token by token or gathered, and ends at its length", async () => {
    const generation = await runtime.generate(prompt("Hällo wörld 👋 "), { maxTokens: 30 });
    const { text, tokens, last } = await read(generation);
    const expected = bytes("Hällo wörld 👋 Hällo wörld 👋 ").slice(0, 30);
    expect(tokens).toEqual(expected);
    expect(text).toBe(new TextDecoder().decode(new Uint8Array(expected)));
    expect(last.finishReason).toBe("length");
    expect(generation.completionTokens).toBe(30);
    expect(generation.promptTokens).toEqual(bytes("Hällo wörld 👋 "));
    expect(generation.cachedTokens).toBe(generation.promptTokens.length - 1);
  });

  test("never gives half a character, and replaces one that stays incomplete", async () => {
    const generation = await runtime.generate(prompt("👋"), { maxTokens: 7 });
    let text = "";
    for await (const event of generation) {
      if (event.finishReason === null) expect(event.text === "" || event.text === "👋").toBe(true);
      text += event.text;
    }
    expect(text).toBe("👋\uFFFD");
  });

  test("takes what fits when maxTokens is left out", async () => {
    const generation = await runtime.generate(prompt("abc"), {});
    expect((await read(generation)).tokens).toHaveLength(997);
  });

  test("ends at EOS without its text or a stopReason, but counts it", async () => {
    const generation = await runtime.generate({ tokens: [...bytes("ab"), EOS] }, {});
    const { text, tokens, last } = await read(generation);
    expect(text).toBe("ab");
    expect(tokens).toEqual([...bytes("ab"), EOS]);
    expect(last.finishReason).toBe("stop");
    expect(last.stopReason).toBeUndefined();
    expect(generation.completionTokens).toBe(3);
  });

  test("goes on over EOS with ignoreEos, which leaves no text", async () => {
    const answered = await read(await runtime.generate({ tokens: [97, EOS] }, { ignoreEos: true, maxTokens: 5 }));
    expect(answered.text).toBe("aaa");
    expect(answered.last.finishReason).toBe("length");
  });

  test("has the text of special tokens where it is asked to", async () => {
    const parameters = { ignoreEos: true, maxTokens: 5, skipSpecialTokens: false };
    const answered = await read(await runtime.generate({ tokens: [97, EOS] }, parameters));
    expect(answered.text).toBe("a<eos>a<eos>a");
  });

  test("ends at a stop token id and names it", async () => {
    const { text, last } = await read(await runtime.generate(prompt("abc"), { stopTokenIds: [99] }));
    expect(text).toBe("ab");
    expect(last).toMatchObject({ finishReason: "stop", stopReason: 99 });
  });

  test("ends before a stop string, which may span tokens, and is aborted in the scheduler", async () => {
    const generation = await runtime.generate(prompt("one two three "), { stop: ["xyz", "two th"] });
    const { text, last } = await read(generation);
    expect(text).toBe("one ");
    expect(last).toMatchObject({ finishReason: "stop", stopReason: "two th" });
    expect(generation.completionTokens).toBe(10);
    await untilIdle(runtime);
  });

  test("gives back what looked like the beginning of a stop string", async () => {
    const { text } = await read(await runtime.generate(prompt("abcabd"), { stop: ["bdx"], maxTokens: 6 }));
    expect(text).toBe("abcabd");
  });

  test("stops at a string that the last token of its length completes", async () => {
    const { text, last } = await read(await runtime.generate(prompt("abcd"), { stop: ["cd"], maxTokens: 4 }));
    expect(text).toBe("ab");
    expect(last).toMatchObject({ finishReason: "stop", stopReason: "cd" });
  });

  test("is gathered into one event while nobody reads", async () => {
    const generation = await runtime.generate(prompt("ab"), { maxTokens: 500 });
    await untilIdle(runtime);
    await Bun.sleep(5);
    const { text, events } = await read(generation);
    expect(text).toBe("ab".repeat(250));
    expect(events).toBe(1);
  });

  test("gives nothing more after its end", async () => {
    const generation = await runtime.generate(prompt("ab"), { maxTokens: 1 });
    await read(generation);
    expect((await read(generation)).events).toBe(0);
    generation.abort();
  });

  test("many at once do not mix", async () => {
    const texts = Array.from({ length: 200 }, (_, i) => `answer ${i} `);
    const answers = await Promise.all(
      texts.map(async (text, i) => read(await runtime.generate(prompt(text), { maxTokens: 100 + i }))),
    );
    answers.forEach(({ text }, i) => {
      expect(text).toBe(texts[i].repeat(50).slice(0, 100 + i));
    });
  });
});

describe("an abort", () => {
  let runtime: Runtime;
  beforeAll(async () => {
    runtime = await startEcho({ maxSequenceLength: 1e9 });
  });
  afterAll(() => runtime.stop());

  test("by abort() ends the answer with what there is", async () => {
    const generation = await runtime.generate(prompt("ab"), {});
    let text = "";
    let reason: string | null = null;
    for await (const event of generation) {
      text += event.text;
      reason = event.finishReason;
      generation.abort();
    }
    expect(reason).toBe("abort");
    expect("ab".repeat(text.length)).toStartWith(text);
    await untilIdle(runtime);
  });

  test("by a signal ends an answer that nobody reads", async () => {
    const controller = new AbortController();
    const generation = await runtime.generate(prompt("ab"), {}, controller.signal);
    controller.abort();
    await untilIdle(runtime);
    expect((await read(generation)).last.finishReason).toBe("abort");
  });

  test("by a signal before the request is queued rejects with its reason", async () => {
    const controller = new AbortController();
    const pending = runtime.generate({ text: "ab" }, {}, controller.signal);
    controller.abort(new Error("gone"));
    await expect(pending).rejects.toThrow("gone");
    await expect(runtime.generate({ text: "ab" }, {}, controller.signal)).rejects.toThrow("gone");
    await untilIdle(runtime);
  });

  test("by leaving the loop, or throwing out of it", async () => {
    for await (const _ of await runtime.generate(prompt("ab"), {})) break;
    await untilIdle(runtime);
    const throwing = async (): Promise<void> => {
      for await (const _ of await runtime.generate(prompt("ab"), {})) throw new Error("enough");
    };
    await expect(throwing()).rejects.toThrow("enough");
    await untilIdle(runtime);
  });

  test("wakes a consumer that waits", async () => {
    const slow = await startEcho({ maxSequenceLength: 1e6 }, { stepMilliseconds: 1000 });
    const generation = await slow.generate(prompt("ab"), {});
    const started = performance.now();
    setTimeout(() => generation.abort(), 5);
    expect((await read(generation)).last.finishReason).toBe("abort");
    expect(performance.now() - started).toBeLessThan(900);
    await slow.stop();
  });
});

describe("a request is refused", () => {
  let runtime: Runtime;
  beforeAll(async () => {
    runtime = await startEcho();
  });
  afterAll(() => runtime.stop());

  test("for its parameters, its tokens, or its length", async () => {
    const ask = (what: Prompt, parameters = {}): Promise<InvalidRequest> => refusal(runtime.generate(what, parameters));
    expect(await ask({ tokens: [] })).toMatchObject({ parameter: "prompt" });
    expect(await ask({ tokens: [260] })).toMatchObject({ parameter: "prompt" });
    expect(await ask({ tokens: [-1] })).toMatchObject({ parameter: "prompt" });
    expect(await ask({ tokens: [0.5] })).toMatchObject({ parameter: "prompt" });
    expect(await ask({ text: "", addSpecialTokens: false })).toMatchObject({ parameter: "prompt" });
    expect(await ask({ text: "x".repeat(2000) })).toMatchObject({ parameter: "prompt" });
    expect(await ask({ text: "x".repeat(5_000_000) })).toMatchObject({ code: "context_length_exceeded" });
    expect(await ask(prompt("ab"), { maxTokens: 999 })).toMatchObject({ parameter: "maxTokens" });
    expect(await ask(prompt("ab"), { topP: 7 })).toMatchObject({ parameter: "topP" });
    expect(await ask({ messages: [{ role: "bad", content: "" }] })).toMatchObject({ parameter: "messages" });
    const long = [{ role: "user", content: "x".repeat(2000) }];
    expect(await ask({ messages: long })).toMatchObject({ parameter: "messages" });
    const good = await runtime.generate({ messages: [{ role: "user", content: "hi" }] }, { maxTokens: 5 });
    expect((await read(good)).tokens).toHaveLength(5);
  });

  test("for a template that cannot be parsed, while texts go on", async () => {
    const broken = await startEcho({}, { template: "{% if %}" });
    const messages = [{ role: "user", content: "hi" }];
    expect(await refusal(broken.generate({ messages }, {}))).toMatchObject({ parameter: "messages" });
    expect((await read(await broken.generate({ text: "hi" }, { maxTokens: 2 }))).text).toBe("h");
    await broken.stop();
  });

  test("by the scheduler: its iterator throws", async () => {
    const generation = await runtime.generate(prompt("ab"), { seed: Seeds.reject });
    await refusal(read(generation));
    expect((await read(generation)).events).toBe(0);
  });

  test("leaves nothing behind", async () => {
    const small = await startEcho({ maxRunningRequests: 2, maxQueuedRequests: 0 });
    for (let i = 0; i < 5; i++) await refusal(small.generate({ text: "x".repeat(2000) }, {}));
    const answers = [await small.generate(prompt("ab"), {}), await small.generate(prompt("ab"), {})];
    for (const answer of answers) await read(answer);
    await small.stop();
  });
});

describe("the queue", () => {
  test("holds maxQueuedRequests besides those that run", async () => {
    const runtime = await startEcho(
      { maxRunningRequests: 2, maxQueuedRequests: 1, maxSequenceLength: 1e6 },
      { stepMilliseconds: 1 },
    );
    const answers = [];
    for (let i = 0; i < 3; i++) answers.push(await runtime.generate(prompt("ab"), {}));
    await expect(runtime.generate(prompt("ab"), {})).rejects.toBeInstanceOf(QueueFull);
    answers[0].abort();
    const next = await runtime.generate(prompt("ab"), { maxTokens: 3 });
    expect((await read(next)).text).toBe("aba");
    await runtime.stop();
    expect((await read(answers[1])).last.finishReason).toBe("abort");
  });

  test("holds maxQueuedPromptBytes, freed when answers begin", async () => {
    const runtime = await startEcho({ maxQueuedPromptBytes: 1000 }, { stepMilliseconds: 20 });
    const first = await runtime.generate(prompt("a".repeat(500)), { maxTokens: 10 });
    await expect(runtime.generate(prompt("b"), {})).rejects.toBeInstanceOf(QueueFull);
    await first[Symbol.asyncIterator]().next();
    await runtime.generate(prompt("b"), { maxTokens: 1 });
    await runtime.stop();
  });
});

describe("encode and decode", () => {
  let runtime: Runtime;
  beforeAll(async () => {
    runtime = await startEcho({ numTokenizers: 2 });
  });
  afterAll(() => runtime.stop());

  test("texts, with and without special tokens", async () => {
    expect(await runtime.encode({ text: "hé" })).toEqual([BOS, ...bytes("hé")]);
    expect(await runtime.encode({ text: "hé", addSpecialTokens: false })).toEqual(bytes("hé"));
    expect(runtime.decode([BOS, ...bytes("hé"), EOS])).toBe("<bos>hé<eos>");
    expect(() => runtime.decode([1000])).toThrow(InvalidRequest);
  });

  test("chats, with one BOS", async () => {
    const messages = [
      { role: "user", content: "a" },
      { role: "assistant", content: "b" },
    ];
    expect(runtime.hasChatTemplate).toBe(true);
    expect(runtime.decode(await runtime.encode({ messages }))).toBe("<bos>[user]a[assistant]b[assistant]");
    const plain = await runtime.encode({ messages, addGenerationPrompt: false });
    expect(runtime.decode(plain)).toBe("<bos>[user]a[assistant]b");
  });

  test("short prompts overtake a long one on another thread, whatever the threads did before", async () => {
    await runtime.encode({ text: "word ".repeat(40_000) });
    const order: string[] = [];
    const long = runtime.encode({ text: "word ".repeat(20_000) }).then(() => order.push("long"));
    const short = runtime.encode({ text: "short" }).then(() => order.push("short"));
    await Promise.all([long, short]);
    expect(order).toEqual(["short", "long"]);
  });
});

describe("a thread that dies", () => {
  for (const [how, seed, reason] of [
    ["by a throw", Seeds.crash, "the echo model has crashed"],
    ["without a word", Seeds.exit, "scheduler thread died"],
  ] as const) {
    test(`${how} fails what is pending, tells its reason, and lets stop() end`, async () => {
      const runtime = await startEcho({ maxSequenceLength: 1e9 });
      const fatal = new Promise<Error>((resolve) => runtime.onFatal(resolve));
      const running = read(await runtime.generate(prompt("ab"), {}));
      running.catch(() => {});
      const waiting = read(await runtime.generate(prompt("ab"), { seed }));
      expect((await fatal).message).toContain(reason);
      expect((await fatal).message).not.toContain("\n");
      await expect(running).rejects.toThrow(reason);
      await expect(waiting).rejects.toThrow(reason);
      await expect(runtime.generate(prompt("ab"), {})).rejects.toThrow(reason);
      await expect(runtime.flushCache()).rejects.toThrow(reason);
      await runtime.stop();
    });
  }

  test("at the start rejects it", async () => {
    const progress: unknown[] = [];
    const started = startEcho({}, { failStart: true }, (...report) => progress.push(report));
    await expect(started).rejects.toThrow("the echo model cannot be loaded");
    expect(progress).toEqual([["echo", 1, 2]]);
  });
});

test("stop() ends what waits", async () => {
  const runtime = await startEcho({ maxSequenceLength: 1e6 }, { stepMilliseconds: 5 });
  const running = read(await runtime.generate(prompt("ab"), {}));
  const encoding = runtime.generate({ text: "x ".repeat(100_000) }, {});
  const flushing = runtime.flushCache();
  const stopped = runtime.stop();
  expect((await running).last.finishReason).toBe("abort");
  await expect(encoding).rejects.toThrow("stopped");
  expect(await flushing).toBe(false);
  await stopped;
  await expect(runtime.generate(prompt("ab"), {})).rejects.toThrow("stopped");
  expect(await runtime.stop()).toBeUndefined();
});

test("an answer lets go of its signal", async () => {
  const runtime = await startEcho({ maxSequenceLength: 1e6 });
  const { signal } = new AbortController();
  const generation = await runtime.generate(prompt("ab"), {}, signal);
  expect(getEventListeners(signal, "abort")).toHaveLength(1);
  generation.abort();
  expect(getEventListeners(signal, "abort")).toHaveLength(0);
  await runtime.stop();
});

test("nothing of a thousand requests stays, however they end", async () => {
  // A hundred prompts at a time are 160,000 bytes: a few that stayed counted would be refused for it.
  const runtime = await startEcho({ maxQueuedRequests: 0, maxQueuedPromptBytes: 200_000 });
  const one = async (i: number): Promise<void> => {
    const controller = new AbortController();
    const parameters = { maxTokens: 1 + (i % 50), stop: i % 3 === 0 ? ["ba"] : [] };
    const seed = i % 7 === 0 ? Seeds.reject : undefined;
    const generation = await runtime.generate(prompt("ab".repeat(200)), { ...parameters, seed }, controller.signal);
    if (i % 5 === 0) controller.abort();
    if (i % 11 === 0) return;
    try {
      for await (const _ of generation) if (i % 4 === 0) break;
    } catch (error) {
      if (!(error instanceof InvalidRequest)) throw error;
    }
  };
  const round = async (): Promise<number> => {
    for (let i = 0; i < 1000; i += 100) await Promise.all(Array.from({ length: 100 }, (_, j) => one(i + j)));
    await untilIdle(runtime);
    Bun.gc(true);
    return process.memoryUsage().heapUsed;
  };
  await round();
  const before = await round();
  const after = await round();
  expect(after - before).toBeLessThan(2 << 20);
  const generations = await Promise.all(Array.from({ length: 256 }, () => runtime.generate(prompt("ab"), {})));
  await expect(runtime.generate(prompt("ab"), {})).rejects.toBeInstanceOf(QueueFull);
  for (const generation of generations) generation.abort();
  await runtime.stop();
});
