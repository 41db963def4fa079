import { describe, expect, test } from "bun:test";
import { logprob, runLone } from "../../src/engine/lone.ts";
import { expected, fixtures, openEngine, relativeError } from "./support.ts";

describe("in float32 every architecture gives what transformers gives", () => {
  test.each(fixtures)("%s", async (name) => {
    const reference = await expected(name);
    using engine = await openEngine(name);
    for (const [index, prompt] of reference.prompts.entries()) {
      const tokens = reference.tokens[index] as number[];
      const result = runLone(engine, prompt, tokens.length);
      expect(result.tokens).toEqual(tokens);
      expect(relativeError(result.logits[0] as Float32Array, reference.logits[index] as number[])).toBeLessThan(1e-5);
      result.logits.forEach((logits, step) => {
        const wanted = (reference.logprobs[index] as number[])[step] as number;
        expect(Math.abs(logprob(logits, tokens[step] as number) - wanted)).toBeLessThan(1e-5);
      });
    }
  });
});

describe("a prompt in chunks, pages of any size and graphs give the same bits", () => {
  test.each(["llama-tied-llama3", "qwen3", "qwen2"])("%s", async (name) => {
    const { prompts } = await expected(name);
    const prompt = prompts[3] as number[];
    using engine = await openEngine(name);
    const whole = runLone(engine, prompt, 12);
    const same = (other: ReturnType<typeof runLone>) => {
      expect(other.tokens).toEqual(whole.tokens);
      for (const [step, logits] of whole.logits.entries()) expect(other.logits[step]).toEqual(logits);
    };
    for (const chunk of [1, 7, 64]) same(runLone(engine, prompt, 12, { chunk }));
    for (const overrides of [{ pageSize: 3 }, { pageSize: 16 }, { graphMaxBatchSize: 8 }, { threads: 1 }]) {
      using other = await openEngine(name, overrides);
      same(runLone(other, prompt, 12));
    }
  });
});

/**
 * A half-precision KV pool and half-precision weights round to 8 (bfloat16) or 11 (float16) bits. Rounding errors of
 * 2^-9 and 2^-12 relative at each of the handful of places a value is stored add up to a few times that in logits of
 * magnitude 5 to 10: 0.15 and 0.02 in a logprob. A wrong rotation, scale or page gives differences of order 1.
 */
describe("half precision follows float32 under teacher forcing", () => {
  const cases = fixtures.flatMap((name) => [[name, "bfloat16", 0.15] as const, [name, "float16", 0.02] as const]);
  test.each(cases)("%s in %s within %f", async (name, dtype, bound) => {
    const reference = await expected(name);
    using engine = await openEngine(name, { dtype });
    for (const [index, prompt] of reference.prompts.entries()) {
      const forced = reference.tokens[index] as number[];
      const { tokens, logits } = runLone(engine, prompt, forced.length, { forced });
      for (const [step, wanted] of (reference.logprobs[index] as number[]).entries()) {
        expect(Math.abs(logprob(logits[step] as Float32Array, forced[step] as number) - wanted)).toBeLessThan(bound);
        const gap = (reference.gaps[index] as number[])[step] as number;
        if (gap > 2 * bound) expect(tokens[step]).toBe(forced[step] as number);
      }
    }
  });
});
