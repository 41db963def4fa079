import { describe, expect, test } from "bun:test";
import { expected, fixtures, type Scored, score } from "./support.ts";

/**
 * Half precision under teacher forcing. Activations, weights and the KV pool are rounded to 8 (bfloat16) or 11
 * (float16) bits at some ten places a layer: relative errors of 2^-9 and 2^-12 each, which add up in the residual
 * stream and are multiplied by logits of magnitude 5 to 10. A wrong rotation, scale or page gives differences of
 * order 1.
 */
const bounds = [
  ["bfloat16", 0.25],
  ["float16", 0.04],
] as const;

/** Shapes that FlashInfer has no kernel for, or that keep rows from being a multiple of 16 bytes, included. */
describe.each(bounds)("in %s fixtures follow transformers within %f", (dtype, bound) => {
  test.each(fixtures)("%s", async (name) => {
    const reference = await expected(name);
    const scored = await score(name, reference, "--dtype", dtype);
    for (const [index, { logprobs, tokens }] of scored.entries()) {
      for (const [step, wanted] of (reference.logprobs[index] as number[]).entries()) {
        expect(Math.abs((logprobs[step] as number) - wanted)).toBeLessThan(bound);
        const gap = (reference.gaps[index] as number[])[step] as number;
        if (gap > 2 * bound) expect(tokens[step]).toBe((reference.tokens[index] as number[])[step]);
      }
    }
  });
});

/** Largest difference of logprobs. */
function difference(one: Scored[], other: Scored[]): number {
  let largest = 0;
  for (const [index, { logprobs }] of one.entries()) {
    for (const [step, value] of logprobs.entries()) {
      largest = Math.max(largest, Math.abs(value - ((other[index] as Scored).logprobs[step] as number)));
    }
  }
  return largest;
}

describe.each(["llama-tied-llama3", "qwen3", "qwen2"])("the ways of running %s", (name) => {
  test("graph equals eager exactly; chunks and pages stay within rounding", async () => {
    const reference = await expected(name);
    const eager = await score(name, reference, "--graph", "0");
    expect(await score(name, reference, "--graph", "8")).toEqual(eager);
    // Other kernels and other orders of summation: float32 sums of the same rounded products.
    expect(difference(eager, await score(name, reference, "--chunk", "16"))).toBeLessThan(0.1);
    expect(difference(eager, await score(name, reference, "--page-size", "16"))).toBeLessThan(0.1);
    expect(difference(eager, await score(name, reference, "--attn", "fi"))).toBeLessThan(0.1);
  }, 120_000);
});
