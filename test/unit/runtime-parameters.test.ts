import { describe, expect, test } from "bun:test";
import { checkParameters, fitContext, type ParameterContext } from "../../src/runtime/parameters.ts";
import { type GenerationParameters, InvalidRequest } from "../../src/runtime/types.ts";

const context: ParameterContext = { defaults: {}, vocabularySize: 100, hasText: true };
const withDefaults: ParameterContext = { ...context, defaults: { temperature: 0.6, topK: 20, topP: 0.95, minP: 0.1 } };

describe("what a request leaves out", () => {
  test("comes from the model's defaults, else is temperature 1 without filters", () => {
    expect(checkParameters({}, context).sampling).toMatchObject({ temperature: 1, topK: 0, topP: 1, minP: 0 });
    expect(checkParameters({}, withDefaults).sampling).toMatchObject({
      temperature: 0.6,
      topK: 20,
      topP: 0.95,
      minP: 0.1,
    });
    const given = { temperature: 0, topK: 0, topP: 1, minP: 0 };
    expect(checkParameters(given, withDefaults).sampling).toMatchObject(given);
  });

  test("gets another seed each time, of up to 53 bits; a given seed stays", () => {
    const seeds = new Set(Array.from({ length: 100 }, () => checkParameters({}, context).sampling.seed));
    expect(seeds.size).toBe(100);
    for (const seed of seeds) expect(Number.isSafeInteger(seed) && seed >= 0).toBe(true);
    expect(Math.max(...seeds)).toBeGreaterThan(2 ** 45);
    expect(checkParameters({ seed: 7 }, context).sampling.seed).toBe(7);
  });

  test("null counts as left out", () => {
    const nulls = { maxTokens: null, temperature: null, topK: null, topP: null, minP: null, seed: null, stop: null };
    const checked = checkParameters(nulls as unknown as GenerationParameters, context);
    expect(checked).toMatchObject({ maxTokens: undefined, stop: [], stopTokenIds: [], ignoreEos: false });
    expect(checked.sampling.temperature).toBe(1);
  });
});

describe("refuses with the field's name", () => {
  const numbers = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, "1" as unknown as number];
  const bad: [keyof GenerationParameters, unknown[]][] = [
    ["maxTokens", [...numbers, 0, -1, 1.5, 2 ** 60]],
    ["temperature", [...numbers, -0.1]],
    ["topK", [...numbers, -2, 0.5, 2 ** 31]],
    ["topP", [...numbers, 0, -1, 1.0001]],
    ["minP", [...numbers, -0.1, 1.1]],
    ["seed", [...numbers, -1, 0.5, 2 ** 53]],
    ["stop", [[""], ["a", ""], [5], ["x".repeat(1_000_000)], Array.from({ length: 10_000 }, (_, i) => `s${i}`)]],
    ["stopTokenIds", [[-1], [100], [1.5], [Number.NaN], ["1"], Array.from({ length: 1000 }, () => 1)]],
  ];
  for (const [parameter, values] of bad) {
    test(parameter, () => {
      for (const value of values) {
        let error: unknown;
        try {
          checkParameters({ [parameter]: value }, context);
        } catch (thrown) {
          error = thrown;
        }
        expect(error).toBeInstanceOf(InvalidRequest);
        expect((error as InvalidRequest).parameter).toBe(parameter);
        expect((error as InvalidRequest).message.length).toBeLessThan(200);
      }
    });
  }

  test("stop strings, where there is no tokenizer", () => {
    expect(() => checkParameters({ stop: ["a"] }, { ...context, hasText: false })).toThrow("no tokenizer");
  });
});

test("accepts the limits themselves, and topK -1 as no limit", () => {
  const edge = { maxTokens: 1, temperature: 0, topK: 2 ** 31 - 1, topP: 1, minP: 1, seed: 2 ** 53 - 1 };
  const { sampling } = checkParameters({ ...edge, stopTokenIds: [0, 99], stop: ["x".repeat(1024)] }, context);
  expect(sampling.seed).toBe(2 ** 53 - 1);
  expect(checkParameters({ topK: -1 }, withDefaults).sampling.topK).toBe(0);
});

describe("fitContext", () => {
  test("gives what fits when nothing is asked for", () => {
    expect(fitContext(90, undefined, 100)).toBe(10);
    expect(fitContext(99, undefined, 100)).toBe(1);
    expect(fitContext(90, 10, 100)).toBe(10);
  });

  test("names what is too long", () => {
    const refused = (prompt: number, maxTokens?: number): InvalidRequest => {
      try {
        fitContext(prompt, maxTokens, 100);
      } catch (error) {
        return error as InvalidRequest;
      }
      throw new Error("not refused");
    };
    expect(refused(100)).toMatchObject({ parameter: "prompt", code: "context_length_exceeded" });
    expect(refused(100, 5)).toMatchObject({ parameter: "prompt" });
    expect(refused(90, 11)).toMatchObject({ parameter: "maxTokens", code: "context_length_exceeded" });
  });
});
