/** The same prompts in other company: answers stay within rounding, and are the same where the batches are. */
import { describe, expect, test } from "bun:test";
import { random } from "../random.ts";
import {
  type Choice,
  complete,
  type Drawn,
  expectAlike,
  fixturePath,
  randomPrompt,
  serverInfo,
  startServer,
} from "./support.ts";

/** Tokens of a step where batches are to be the same: few, so that the first prompt takes many steps. */
const BUDGET = 32;
const CHUNKS = 15;
const TOKENS = 16;

const model = ["--model", fixturePath("qwen2"), "--dtype", "bfloat16"];
const serve = (...flags: string[]) =>
  startServer(...model, "--max-running-requests", "32", "--num-pages", "16384", ...flags);
const serveAlike = (...flags: string[]) =>
  serve("--max-prefill-length", String(BUDGET), "--cache", "naive", "--graph", "32", ...flags);

/**
 * Answers of `size` sequences in one request that are in the same batches every time. The first has a long prompt, whose
 * chunks fill the steps while the others arrive; they all start in the step after its last chunk. That is seen by the
 * number of steps, and asked again where some came too late. What they draw without the first, the last token, is cut.
 */
async function together(url: string, size: number, body: object): Promise<Drawn[]> {
  const draw = random(size);
  const length = Math.floor((BUDGET - 1) / (size - 1));
  const lengths = [CHUNKS * BUDGET, ...Array<number>(size - 1).fill(length)];
  const prompt = lengths.map((length) => randomPrompt(draw, length));
  for (let attempt = 0; attempt < 50; attempt++) {
    const before = await serverInfo(url);
    const { choices } = await complete(url, { prompt, max_tokens: TOKENS, temperature: 0, logprobs: 2, ...body });
    const after = await serverInfo(url);
    if ((after.num_steps as number) - (before.num_steps as number) !== CHUNKS + TOKENS) continue;
    return choices.map(({ token_ids, logprobs: { token_logprobs, top_logprobs } }) => ({
      token_ids: token_ids.slice(0, -1),
      logprobs: { token_logprobs: token_logprobs.slice(0, -1), top_logprobs: top_logprobs.slice(0, -1) },
    }));
  }
  throw new Error(`${size} prompts did not start in one step`);
}

describe("decode batches by graph and without", () => {
  test("are equal where they have the size of a graph", async () => {
    await using graphs = await serveAlike();
    await using eager = await serveAlike("--graph", "0");
    for (const size of [2, 4, 8, 12, 24]) {
      expect(await together(graphs.url, size, {})).toEqual(await together(eager.url, size, {}));
    }
  }, 120_000);

  // Rows that fill a graph up are part of the products' size, by which a GPU's algorithm is chosen, and of the work
  // that attention divides among blocks: other orders of summation.
  test("stay within rounding where they are padded", async () => {
    await using graphs = await serveAlike();
    await using eager = await serveAlike("--graph", "0");
    for (const size of [3, 5, 9, 20]) {
      const [one, other] = [await together(graphs.url, size, {}), await together(eager.url, size, {})];
      expectAlike(`${size} rows in a larger graph`, one, other, 4 * size);
    }
  }, 120_000);
});

test("eight sequences with overlap are the eight without", async () => {
  await using overlapping = await serveAlike();
  await using plain = await serveAlike("--disable-overlap");
  const drawn = { temperature: 0.9, top_p: 0.95, seed: 5, logprobs: 3 };
  const changed = { repetition_penalty: 1.2, frequency_penalty: 0.3, logit_bias: { 9: 2 }, min_tokens: 10 };
  for (const body of [{}, { ...drawn, ...changed }]) {
    expect(await together(overlapping.url, 8, body)).toEqual(await together(plain.url, 8, body));
  }
}, 120_000);

test("batched and cached answers stay within rounding of lone ones", async () => {
  await using server = await serve();
  const draw = random(3);
  const prompts = Array.from({ length: 24 }, (_, i) => randomPrompt(draw, 10 + 11 * i));
  const ask = (prompt: number[]) => complete(server.url, { prompt, max_tokens: TOKENS, temperature: 0, logprobs: 1 });
  const inTurn = async () => {
    const answers = [];
    for (const prompt of prompts) answers.push(await ask(prompt));
    return answers;
  };
  const choices = (answers: Awaited<ReturnType<typeof ask>>[]) => answers.map(({ choices }) => choices[0] as Choice);

  const lone = await inTurn();
  const cached = await inTurn();
  for (const { usage } of cached) expect(usage.prompt_tokens_details.cached_tokens).toBeGreaterThan(0);
  await fetch(`${server.url}/flush_cache`, { method: "POST" });
  const batched = await Promise.all(prompts.map(ask));
  const both = await Promise.all(prompts.map(ask));
  for (const [what, answers] of Object.entries({ cached, batched, both })) {
    expectAlike(what, choices(answers), choices(lone), 4 * prompts.length);
  }
}, 120_000);
