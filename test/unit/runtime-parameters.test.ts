import { describe, expect, test } from "bun:test";
import { PLAIN } from "../../src/message/types.ts";
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
    const later = ["minTokens", "repetitionPenalty", "presencePenalty", "frequencyPenalty", "logitBias"];
    const more = [...later, "logprobs", "promptLogprobs", "priority", "cacheSalt"].map((field) => [field, null]);
    expect(checkParameters(Object.fromEntries(more), context)).toMatchObject(PLAIN);
  });

  test("leaves logits, queue and prefix alone, but for a model that wants its repetitions penalized", () => {
    expect(checkParameters({}, context)).toMatchObject(PLAIN);
    const neutral = { repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0, logitBias: new Map() };
    expect(checkParameters(neutral, context)).toMatchObject(PLAIN);
    const wants: ParameterContext = { ...context, defaults: { repetitionPenalty: 1.1 } };
    expect(checkParameters({}, wants).penalties).toEqual({ repetition: 1.1, presence: 0, frequency: 0 });
    expect(checkParameters({ repetitionPenalty: 1 }, wants).penalties).toBeNull();
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
    ["minTokens", [...numbers, -1, 1.5]],
    ["repetitionPenalty", [...numbers, 0, -1, 10.5]],
    ["presencePenalty", [...numbers, -2.1, 2.1]],
    ["frequencyPenalty", [...numbers, -2.1, 2.1]],
    ["logprobs", [...numbers, -1, 0.5, 21]],
    ["promptLogprobs", [...numbers, -1, 0.5, 21]],
    ["priority", [...numbers, 0.5, 2 ** 31, -(2 ** 31) - 1]],
    ["cacheSalt", ["", 5, "x".repeat(1025)]],
    [
      "logitBias",
      [
        ...[[-1, 1] as const, [100, 1] as const, [1.5, 1] as const].map((pair) => new Map([pair])),
        ...[...numbers, 100.5, -101].map((value) => new Map([[1, value]])),
        new Map(Array.from({ length: 1025 }, (_, i) => [i, 1])),
      ],
    ],
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

  test("minTokens above maxTokens", () => {
    expect(checkParameters({ maxTokens: 5, minTokens: 5 }, context).minTokens).toBe(5);
    expect(() => checkParameters({ maxTokens: 5, minTokens: 6 }, context)).toThrow("from 0 to 5, not 6");
  });

  test("stop strings, where there is no tokenizer", () => {
    expect(() => checkParameters({ stop: ["a"] }, { ...context, hasText: false })).toThrow("no tokenizer");
  });
});

test("what changes logits and reports on them, as the scheduler takes it", () => {
  const asked: GenerationParameters = {
    minTokens: 3,
    repetitionPenalty: 1.5,
    presencePenalty: -2,
    frequencyPenalty: 2,
    logitBias: new Map([
      [7, -100],
      [99, 0.5],
    ]),
    logprobs: 0,
    promptLogprobs: 20,
    priority: -(2 ** 31),
    cacheSalt: "tenant",
  };
  expect(checkParameters(asked, context)).toMatchObject({
    minTokens: 3,
    penalties: { repetition: 1.5, presence: -2, frequency: 2 },
    logitBias: { ids: Int32Array.of(7, 99), values: Float32Array.of(-100, 0.5) },
    logprobs: 0,
    promptLogprobs: 20,
    priority: -(2 ** 31),
    namespace: "tenant",
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
