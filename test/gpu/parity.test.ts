import { afterAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import {
  bounds,
  demoModel,
  demoReference,
  device,
  difference,
  type Expected,
  expected,
  fixturePath,
  fixtures,
  type Scored,
  score,
} from "./support.ts";

/**
 * Under teacher forcing logprobs stay within the bound, and so tokens are equal where the reference's gap is more than
 * twice as wide: the first may lose and the second gain as much as the bound. Returns the largest difference.
 */
function expectClose(scored: Scored[], reference: Expected, bound: number): number {
  const largest = difference(scored, reference);
  expect(largest).toBeLessThan(bound);
  for (const [index, { tokens }] of scored.entries()) {
    for (const [step, gap] of (reference.gaps[index] as number[]).entries()) {
      if (gap > 2 * bound) expect(tokens[step]).toBe((reference.tokens[index] as number[])[step]);
    }
  }
  return largest;
}

/** Shapes that FlashInfer has no kernel for, or that keep rows from being a multiple of 16 bytes, included. */
describe.each(Object.entries(bounds))("in %s", (dtype, bound) => {
  let largest = 0;

  test.each(fixtures)("%s follows transformers", async (name) => {
    const reference = await expected(name);
    const scored = await score(fixturePath(name), reference, "--dtype", dtype);
    largest = Math.max(largest, expectClose(scored, reference, bound));
  });

  afterAll(() => console.log(`largest difference of the fixtures' logprobs in ${dtype}: ${largest.toFixed(4)}`));
});

/**
 * 30 layers instead of 2: roundings add up to four times as much, 2.7% or 0.34% of the last hidden state. They point in
 * any direction, so a logit changes by that share of the logits' standard deviation over the vocabulary, which is 2 to 4
 * here: by 0.08 or 0.01. Five times as much is allowed.
 */
const demoBounds = [
  ["bfloat16", 0.4],
  ["float16", 0.05],
] as const;

describe.each(demoBounds)("in %s", (dtype, bound) => {
  test.skipIf(!existsSync(demoModel))(
    `the demo model follows transformers within ${bound}`,
    async () => {
      const reference: Expected = await Bun.file(demoReference).json();
      const scored = await score(demoModel, reference, "--dtype", dtype, "--num-pages", "2048");
      const largest = expectClose(scored, reference, bound);
      console.log(`largest difference of the demo model's logprobs in ${dtype}: ${largest.toFixed(4)}`);
    },
    120_000,
  );
});

describe.each(["llama-tied-llama3", "qwen3", "qwen2"])("the ways of running %s", (name) => {
  test("graph equals eager exactly; chunks and pages stay within rounding", async () => {
    const reference = await expected(name);
    const scoreWith = (...flags: string[]) => score(fixturePath(name), reference, ...flags);
    const eager = await scoreWith("--graph", "0");
    expect(await scoreWith("--graph", "8")).toEqual(eager);
    // Other kernels and other orders of summation: float32 sums of the same rounded products.
    const wanted = { logprobs: eager.map(({ logprobs }) => logprobs) };
    expect(difference(await scoreWith("--chunk", "16"), wanted)).toBeLessThan(bounds.bfloat16);
    expect(difference(await scoreWith("--page-size", "16"), wanted)).toBeLessThan(bounds.bfloat16);
    if (device === "cuda") expect(difference(await scoreWith("--attn", "fi"), wanted)).toBeLessThan(bounds.bfloat16);
  }, 120_000);
});
