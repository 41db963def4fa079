import { afterAll, describe, expect, test } from "bun:test";
import { sample } from "../../src/native/ops.ts";
import { DType } from "../../src/native/tensor.ts";
import { decode, get, numbers, openDevice, put, randomValues } from "./harness.ts";
import { gumbel, philox } from "./philox.ts";

const device = openDevice();
afterAll(() => device.close());

interface Row {
  slot?: number;
  position?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  seed?: bigint;
}

const [slots, length] = [8, 64];
const table = device.tensor(DType.I32, [slots, length]);

function draw(logits: ArrayLike<number>, vocabulary: number, asked: readonly Row[]): number[] {
  const words = new Int32Array(asked.length * 8);
  const floats = new Float32Array(words.buffer);
  asked.forEach(({ slot = -1, position = 0, temperature = 0, topK = 0, topP = 1, minP = 0, seed = 0n }, i) => {
    words.set([slot, position], i * 8);
    floats[i * 8 + 2] = temperature;
    words[i * 8 + 3] = topK;
    floats.set([topP, minP], i * 8 + 4);
    words.set([Number(seed & 0xffffffffn), Number(seed >> 32n)], i * 8 + 6);
  });
  const tokens = device.tensor(DType.I32, [asked.length]);
  const input = put(device, logits, [asked.length, vocabulary], DType.F32);
  const sampling = put(device, words, [words.length], DType.I32);
  const random = asked.some((row) => (row.temperature ?? 0) > 0);
  const filtered = asked.some((row) => (row.topK ?? 0) > 0 || (row.topP ?? 1) < 1 || (row.minP ?? 0) > 0);
  sample(device, tokens.pointer, table, input, sampling.pointer, { random, filtered });
  const result = [...get(device, tokens)];
  for (const tensor of [tokens, input, sampling]) device.free(tensor.pointer);
  return result;
}

/** The ids that a row's filters leave, the likeliest first; as minisgl.h words it, in float64. */
function kept(logits: ArrayLike<number>, { temperature = 1, topK = 0, topP = 1, minP = 0 }: Row): number[] {
  const scaled = Array.from(logits, (logit) => Math.fround(logit / Math.fround(temperature)));
  const ids = scaled.map((_, id) => id).sort((a, b) => (scaled[b] as number) - (scaled[a] as number) || a - b);
  const top = scaled[ids[0] as number] as number;
  const weight = (id: number) => Math.exp((scaled[id] as number) - top);
  let left = topK > 0 ? ids.slice(0, topK) : ids;
  const total = left.reduce((sum, id) => sum + weight(id), 0);
  if (topP < 1) {
    let sum = 0;
    const before = (id: number) => {
      sum += weight(id);
      return sum - weight(id);
    };
    left = left.filter((id, i) => before(id) < Math.fround(topP) * total || i === 0);
  }
  return left.filter((id) => weight(id) >= Math.fround(minP));
}

function reference(logits: ArrayLike<number>, row: Row): number {
  const { temperature = 0, seed = 0n, position = 0 } = row;
  if (temperature === 0) return kept(logits, { temperature: 1 })[0] as number;
  const score = (id: number) => (logits[id] as number) / temperature + gumbel(seed, id, position);
  return kept(logits, row).reduce((best, id) => (score(id) > score(best) ? id : best));
}

test("the generator is Philox4x32-10 (known answers of its authors)", () => {
  const hex = (words: number[]) => words.map((word) => word.toString(16).padStart(8, "0")).join(" ");
  expect(hex(philox([0, 0, 0, 0], [0, 0]))).toBe("6627e8d5 e169c58d bc57ac4c 9b00dbd8");
  const ones = 0xffffffff;
  expect(hex(philox([ones, ones, ones, ones], [ones, ones]))).toBe("408f276d 41c83b0e a20bc7c6 6d5451fd");
});

test("msgl_random is a function of seed and index", () => {
  const count = 1003;
  const tensor = device.tensor(DType.F32, [count]);
  device.random(tensor, 12345, 0.5);
  const words = Array.from({ length: 251 }, (_, block) => philox([block, 0, 0, 1], [12345, 0])).flat();
  const expected = words.slice(0, count).map((word) => 0.5 * ((word >>> 8) * 2 ** -23 - 1));
  expect([...get(device, tensor)]).toEqual(expected);
  const halves = device.tensor(DType.BF16, [count]);
  device.random(halves, 12345, 0.5);
  const close = get(device, halves).every((value, i) => Math.abs(value - (expected[i] as number)) <= 2 ** -9);
  expect(close).toBe(true);
});

describe("temperature 0", () => {
  test.each([1, 7, 16384, 16385, 49152, 100003])("takes the largest of %d logits", (vocabulary) => {
    const logits = randomValues(vocabulary, 3 * vocabulary, 10);
    const expected = [0, 1, 2].map((i) => reference(logits.subarray(i * vocabulary, (i + 1) * vocabulary), {}));
    expect(draw(logits, vocabulary, [{}, {}, {}])).toEqual(expected);
  });

  test("takes the lowest id among equals, wherever they lie", () => {
    const logits = new Float32Array(40000).fill(-3);
    for (const id of [39999, 20000, 16390]) {
      logits[id] = 5;
      expect(draw(logits, 40000, [{}])).toEqual([id]);
    }
    expect(draw(new Float32Array(40000), 40000, [{}])).toEqual([0]);
  });

  test("passes over what is no number", () => {
    const nan = Number.NaN;
    const infinity = Number.POSITIVE_INFINITY;
    expect(draw([nan, 1, nan, 2, nan], 5, [{}])).toEqual([3]);
    expect(draw([-infinity, nan, -infinity], 3, [{}])).toEqual([0]);
    expect(draw([1, infinity, infinity], 3, [{}])).toEqual([1]);
  });
});

describe("with a temperature", () => {
  const vocabulary = 1000;
  const next = numbers(99);
  const rows: Row[] = Array.from({ length: 64 }, (_, i) => ({
    position: i * 31,
    temperature: 0.3 + (next() + 1) * 0.8,
    seed: BigInt(Math.floor((next() + 1) * 2 ** 31)) * 0x1234567n,
  }));
  const logits = randomValues(5, rows.length * vocabulary, 6);
  const row = (i: number) => logits.subarray(i * vocabulary, (i + 1) * vocabulary);

  test.each<[string, Row]>([
    ["no filter", {}],
    ["top_k 1", { topK: 1 }],
    ["top_k 20", { topK: 20 }],
    ["top_p 0.9", { topP: 0.9 }],
    ["top_p 0.01", { topP: 0.01 }],
    ["top_p 0", { topP: 0 }],
    ["min_p 0.1", { minP: 0.1 }],
    ["all three", { topK: 50, topP: 0.8, minP: 0.02 }],
    ["a top_k beyond the vocabulary", { topK: 5000, topP: 0.95 }],
  ])("%s: the draw of each row is the specified one", (_, filter) => {
    const asked = rows.map((one) => ({ ...one, ...filter }));
    expect(draw(logits, vocabulary, asked)).toEqual(asked.map((one, i) => reference(row(i), one)));
  });

  test("a row draws the same alone and among others of every kind", () => {
    const asked = rows.map((one, i) => ({ ...one, ...[{}, { topK: 9 }, { topP: 0.7 }, { temperature: 0 }][i % 4] }));
    const together = draw(logits, vocabulary, asked);
    expect(asked.map((one, i) => draw(row(i), vocabulary, [one])[0] as number)).toEqual(together);
  });

  test("a large vocabulary gives the specified draw", () => {
    const many = randomValues(8, 50001, 2);
    for (const position of [0, 1, 2]) {
      const one: Row = { position, temperature: 1.5, seed: 7n };
      expect(draw(many, 50001, [one])).toEqual([reference(many, one)]);
    }
  });

  test("equal logits: top_k keeps the lowest ids, top_p the fewest", () => {
    const equal = new Float32Array(100);
    const draws = (filter: Row) => {
      const seen = new Set<number>();
      for (let position = 0; position < 200; position++) {
        seen.add(draw(equal, 100, [{ temperature: 1, position, ...filter }])[0] as number);
      }
      return [...seen].sort((a, b) => a - b);
    };
    expect(draws({ topK: 3 })).toEqual([0, 1, 2]);
    expect(draws({ topP: 0.035 })).toEqual([0, 1, 2, 3]);
    expect(draws({ minP: 1 }).length).toBeGreaterThan(50);
  });

  test("frequencies are the probabilities", () => {
    const few = [0, 1, 2, -1];
    const count = 4000;
    const asked = Array.from({ length: count }, (_, position) => ({ temperature: 0.8, position, seed: 42n }));
    const tokens = draw(Array.from({ length: count }, () => few).flat(), 4, asked);
    const weights = few.map((logit) => Math.exp(logit / 0.8));
    const total = weights.reduce((a, b) => a + b, 0);
    weights.forEach((weight, id) => {
      const seen = tokens.filter((token) => token === id).length / count;
      expect(Math.abs(seen - weight / total)).toBeLessThan(0.025);
    });
  });

  test("rows of nothing but NaN and minus infinity give the lowest id", () => {
    const nothing = [Number.NaN, Number.NEGATIVE_INFINITY, Number.NaN, Number.NEGATIVE_INFINITY];
    for (const filter of [{}, { topK: 2 }, { topP: 0.5 }, { minP: 0.5 }]) {
      expect(draw(nothing, 4, [{ temperature: 1, ...filter }])).toEqual([0]);
    }
    expect(draw([Number.NaN, 3, Number.NEGATIVE_INFINITY], 3, [{ temperature: 1, topP: 0.9 }])).toEqual([1]);
  });
});

test("tokens go to the token table where they have a slot", () => {
  device.fill(table.pointer, 0xff, table.bytes);
  draw([0, 1, 1, 0, 0, 1], 2, [
    { slot: 2, position: 5 },
    { slot: -1, position: 7 },
    { slot: 7, position: 63 },
  ]);
  const content = decode(device.download(table.pointer, table.bytes), DType.I32);
  const written = [...content.entries()].filter(([, token]) => token !== -1);
  expect(written).toEqual([
    [2 * length + 5, 1],
    [7 * length + 63, 1],
  ]);
});
