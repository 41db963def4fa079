import { afterAll, describe, expect, test } from "bun:test";
import type { Device } from "../../src/native/device.ts";
import { logitBias, logprobs, penalize } from "../../src/native/ops.ts";
import { DType, type Tensor } from "../../src/native/tensor.ts";
import { bytes, get, numbers, openDevice, put, putInts, randomValues } from "./harness.ts";

const device = openDevice(2);
afterAll(() => device.close());

const infinity = Number.POSITIVE_INFINITY;
const float = Math.fround;
/** Pseudo-random integers in [0, end). */
const integers = (seed: number) => {
  const next = numbers(seed);
  return (end: number) => Math.min(end - 1, Math.floor(((next() + 1) / 2) * end));
};
const shuffled = (count: number, seed: number) => {
  const next = numbers(seed);
  return Array.from({ length: count }, (_, i) => [next(), i] as const)
    .sort((a, b) => a[0] - b[0])
    .map(([, i]) => i);
};
const free = (...tensors: Tensor[]) => tensors.forEach((tensor) => void device.free(tensor.pointer));

describe("logit_bias", () => {
  function biased(logits: Float32Array, vocabulary: number, entries: readonly (readonly [number, number, number])[]) {
    const words = new Int32Array(entries.flatMap(([row, id]) => [row, id, 0]));
    const floats = new Float32Array(words.buffer);
    for (const [i, [, , value]] of entries.entries()) floats[3 * i + 2] = value;
    const tensor = put(device, logits, [logits.length / vocabulary, vocabulary], DType.F32);
    const list = putInts(device, words);
    logitBias(device, tensor, list.pointer, entries.length);
    const result = get(device, tensor);
    free(tensor, list);
    return result;
  }

  test.each([1, 7, 200, 5000])("adds %d values, each to its logit alone", (count) => {
    const [rows, vocabulary] = [13, 997];
    const logits = randomValues(1, rows * vocabulary, 8);
    const values = randomValues(2, count, 100);
    const places = shuffled(rows * vocabulary, 3).slice(0, count);
    const entries = places.map((at, i) => [Math.floor(at / vocabulary), at % vocabulary, values[i] as number] as const);
    const expected = Float64Array.from(logits);
    for (const [i, at] of places.entries()) expected[at] = float((logits[at] as number) + (values[i] as number));
    expect(biased(logits, vocabulary, entries)).toEqual(expected);
  });

  test("bans ids, in any order with a finite value of the same id", () => {
    const expected = Float64Array.of(1, -infinity, 3, -infinity, 6.5, -infinity);
    for (const entries of [
      [
        [0, 1, -infinity],
        [1, 0, 2],
        [1, 0, -infinity],
        [1, 1, 1.5],
        [1, 2, -infinity],
        [1, 2, -infinity],
      ],
      [
        [1, 2, -infinity],
        [1, 0, -infinity],
        [1, 1, 1.5],
        [1, 0, 2],
        [0, 1, -infinity],
      ],
    ] as [number, number, number][][]) {
      expect(biased(Float32Array.of(1, 2, 3, 4, 5, 6), 3, entries)).toEqual(expected);
    }
  });

  test("of nothing changes nothing", () => {
    expect(biased(Float32Array.of(1, 2), 2, [])).toEqual(Float64Array.of(1, 2));
  });
});

interface Penalty {
  row: number;
  slot: number;
  promptLength: number;
  length: number;
  repetition?: number;
  presence?: number;
  frequency?: number;
}

describe("penalize", () => {
  /** Applies them on the device, checks that `seen` is zero again, and returns the logits. */
  function penalized(logits: Float32Array, vocabulary: number, table: Int32Array, stride: number, asked: Penalty[]) {
    const words = new Int32Array(asked.length * 8);
    const floats = new Float32Array(words.buffer);
    asked.forEach(({ row, slot, promptLength, length, repetition = 1, presence = 0, frequency = 0 }, i) => {
      words.set([row, slot, promptLength, length], 8 * i);
      floats.set([repetition, presence, frequency], 8 * i + 4);
    });
    const tensor = put(device, logits, [logits.length / vocabulary, vocabulary], DType.F32);
    const tokens = put(device, table, [table.length / stride, stride], DType.I32);
    const seen = putInts(device, new Int32Array(asked.length * 2 * Math.ceil(vocabulary / 32)));
    const rows = putInts(device, words);
    penalize(device, tensor, seen.pointer, tokens, rows.pointer, asked.length);
    const result = get(device, tensor);
    expect(get(device, seen).every((word) => word === 0)).toBe(true);
    free(tensor, tokens, seen, rows);
    return result;
  }

  /** What minisgl.h says, in the order that it says it; each step rounded to the float32 that logits are. */
  function reference(logits: Float32Array, vocabulary: number, table: Int32Array, stride: number, asked: Penalty[]) {
    const result = logits.slice();
    for (const { row, slot, promptLength, length, repetition = 1, presence = 0, frequency = 0 } of asked) {
      const tokens = [...table.subarray(slot * stride, slot * stride + length)];
      const at = (id: number) => row * vocabulary + id;
      for (const id of new Set(tokens)) {
        const logit = result[at(id)] as number;
        result[at(id)] = logit > 0 ? logit / float(repetition) : logit * float(repetition);
      }
      const drawn = tokens.slice(promptLength);
      for (const id of new Set(drawn)) result[at(id)] = (result[at(id)] as number) - float(presence);
      for (const id of drawn) result[at(id)] = (result[at(id)] as number) - float(frequency);
    }
    return Float64Array.from(result);
  }

  const kinds: Partial<Penalty>[] = [
    { repetition: 1.3 },
    { repetition: 0.7 },
    { presence: 0.6 },
    { presence: -1.1 },
    { frequency: 0.37 },
    { frequency: -2 },
    { repetition: 1.1, presence: 0.5, frequency: 0.2 },
    {},
  ];

  test.each([
    [1, 1],
    [8, 31],
    [33, 32],
    [200, 1001],
  ])("%d rows of a vocabulary of %d", (count, vocabulary) => {
    const [slots, stride, rows] = [count + 3, 90, count + 5];
    const next = integers(count);
    const table = Int32Array.from(
      { length: slots * stride },
      () => next(Math.min(vocabulary, 40)) * (vocabulary > 100 ? 25 : 1),
    );
    const logits = randomValues(4, rows * vocabulary, 5);
    const [order, owners] = [shuffled(rows, 5), shuffled(slots, 6)];
    const asked = Array.from({ length: count }, (_, i): Penalty => {
      const length = 1 + next(stride);
      const promptLength = [next(length), length, 0][i % 3] as number;
      const place = { row: order[i] as number, slot: owners[i] as number };
      return { ...place, promptLength, length, ...kinds[i % kinds.length] };
    });
    expect(penalized(logits, vocabulary, table, stride, asked)).toEqual(
      reference(logits, vocabulary, table, stride, asked),
    );
  });

  test("a long context, in which many threads meet the same ids", () => {
    const [vocabulary, stride] = [49152, 131072];
    const next = integers(7);
    const table = Int32Array.from({ length: stride }, (_, i) => (i % 2 === 0 ? 49151 - (i % 6) : next(vocabulary)));
    const logits = randomValues(8, vocabulary, 5);
    for (const kind of [
      { repetition: 1.25 },
      { presence: 0.3 },
      { repetition: 1.25, presence: 0.3, frequency: 2 ** -9 },
    ]) {
      const asked = [{ row: 0, slot: 0, promptLength: 100_001, length: stride, ...kind }];
      expect(penalized(logits, vocabulary, table, stride, asked)).toEqual(
        reference(logits, vocabulary, table, stride, asked),
      );
    }
  });

  test("the signs of logits count, and what is banned stays so", () => {
    const logits = Float32Array.of(2, -2, 0, -infinity, 7);
    const asked = [{ row: 0, slot: 0, promptLength: 4, length: 4, repetition: 4, presence: 9, frequency: 9 }];
    expect(penalized(logits, 5, Int32Array.of(0, 1, 2, 3), 4, asked)).toEqual(
      Float64Array.of(0.5, -8, 0, -infinity, 7),
    );
  });
});

interface Wanted {
  row: number;
  token: number;
}

interface Logprobs {
  own: Float64Array;
  ids: Float64Array;
  top: Float64Array;
  /** All of it, to be compared exactly. */
  bits: string[];
}

function logprobsOf(
  on: Device,
  logits: Tensor,
  sampled: ArrayLike<number>,
  wanted: readonly Wanted[],
  top: number,
): Logprobs {
  const tokens = putInts(on, sampled);
  const rows = putInts(
    on,
    wanted.flatMap(({ row, token }) => [row, token]),
  );
  const own = on.tensor(DType.F32, [wanted.length]);
  const [ids, alternatives] = [DType.I32, DType.F32].map((dtype) => on.tensor(dtype, [wanted.length * top])) as [
    Tensor,
    Tensor,
  ];
  const results = { logprobs: own.pointer, topIds: ids.pointer, topLogprobs: alternatives.pointer };
  logprobs(on, results, logits, tokens.pointer, rows.pointer, wanted.length, top);
  const all = [own, ids, alternatives];
  const [a, b, c] = all.map((tensor) => get(on, tensor)) as [Float64Array, Float64Array, Float64Array];
  const bits = all.map((tensor) => Buffer.from(bytes(on, tensor)).toString("hex"));
  for (const tensor of [tokens, rows, ...all]) on.free(tensor.pointer);
  return { own: a, ids: b, top: c, bits };
}

/** log_softmax in float64. */
function logSoftmax(row: Float32Array): Float64Array {
  const largest = row.reduce((a, b) => Math.max(a, b), -infinity);
  const sum = row.reduce((total, logit) => total + Math.exp(logit - largest), 0);
  return Float64Array.from(row, (logit) => logit - largest - Math.log(sum));
}

const topOf = (row: Float32Array, count: number) =>
  Array.from(row.keys())
    .sort((a, b) => (row[b] as number) - (row[a] as number) || a - b)
    .slice(0, count);

/** Largest difference; where one is infinite the other must be so too. */
const distance = (actual: ArrayLike<number>, expected: ArrayLike<number>) =>
  Array.from(expected, (value, i) => (actual[i] === value ? 0 : Math.abs((actual[i] as number) - value))).reduce(
    (a, b) => (a > b ? a : Number.isNaN(b) ? infinity : b),
    0,
  );
// Exponentials and their sum are good to a few units of the last place, a result below 64 is rounded to 2^-18.
const bound = 8e-6;

describe("logprobs", () => {
  test.each([
    [1, 1, 1],
    [1, 20, 20],
    [3, 33, 5],
    [2, 49152, 20],
    [2, 151936, 20],
    [7, 100003, 20],
    [64, 4097, 1],
    [200, 1000, 20],
    [600, 515, 3],
  ])("%d rows of %d logits, the first %d", (count, vocabulary, top) => {
    const rows = Math.min(count, 40) + 3;
    const values = randomValues(vocabulary, rows * vocabulary, 12);
    const row = (index: number) => values.subarray(index * vocabulary, (index + 1) * vocabulary);
    const next = integers(count);
    const logits = put(device, values, [rows, vocabulary], DType.F32);
    const sampled = Int32Array.from({ length: rows }, () => next(vocabulary));
    const wanted = Array.from({ length: count }, (_, i) => ({
      row: next(rows),
      token: i % 3 === 0 ? -1 : next(vocabulary),
    }));
    const { own, ids, top: alternatives, bits } = logprobsOf(device, logits, sampled, wanted, top);
    const softmax = Array.from({ length: rows }, (_, i) => logSoftmax(row(i)));
    const best = Array.from({ length: rows }, (_, i) => topOf(row(i), top));
    const of = (index: number, id: number) => (softmax[index] as Float64Array)[id] as number;
    const token = (one: Wanted) => (one.token < 0 ? (sampled[one.row] as number) : one.token);
    expect(
      distance(
        own,
        wanted.map((one) => of(one.row, token(one))),
      ),
    ).toBeLessThan(bound);
    const expected = wanted.flatMap((one) => best[one.row] as number[]);
    expect([...ids]).toEqual(expected);
    const owners = wanted.flatMap((one) => Array.from({ length: top }, () => one.row));
    expect(
      distance(
        alternatives,
        expected.map((id, i) => of(owners[i] as number, id)),
      ),
    ).toBeLessThan(bound);
    // Again, without alternatives, and the last of them alone.
    expect(logprobsOf(device, logits, sampled, wanted, top).bits).toEqual(bits);
    expect(logprobsOf(device, logits, sampled, wanted, 0).bits[0]).toBe(bits[0] as string);
    const last = logprobsOf(device, logits, sampled, wanted.slice(-1), top);
    expect(last.bits).toEqual(bits.map((text) => text.slice(text.length - text.length / count)));
    free(logits);
  });

  test("of equal logits the lower ids come first, wherever they lie", () => {
    const vocabulary = 70_001;
    for (const places of [
      shuffled(vocabulary, 9).slice(0, 30),
      Array.from({ length: 30 }, (_, i) => 512 * i), // one thread's share
      Array.from({ length: 30 }, (_, i) => vocabulary - 1 - i),
      Array.from({ length: 30 }, (_, i) => 4 * i + 3),
    ]) {
      const values = new Float32Array(vocabulary).fill(-3);
      for (const [i, id] of places.entries()) values[id] = i < 25 ? 5 : 6;
      const logits = put(device, values, [1, vocabulary], DType.F32);
      const { ids, top } = logprobsOf(device, logits, [0], [{ row: 0, token: -1 }], 20);
      expect([...ids]).toEqual(topOf(values, 20));
      expect([...top].every((value, i) => i === 0 || value <= (top[i - 1] as number))).toBe(true);
      free(logits);
    }
  });

  test("zeros are equal whatever their sign, and all may be", () => {
    for (const values of [
      Float32Array.from({ length: 1000 }, (_, i) => (i % 3 === 0 ? 0 : -0)),
      new Float32Array(1000).fill(2.5),
    ]) {
      const logits = put(device, values, [1, 1000], DType.F32);
      const { ids, top, own } = logprobsOf(device, logits, [7], [{ row: 0, token: -1 }], 20);
      expect([...ids]).toEqual([...Array(20).keys()]);
      expect(distance([...top, ...own], Array(21).fill(-Math.log(1000)))).toBeLessThan(bound);
      free(logits);
    }
  });

  test("what is banned has no probability, and follows by id", () => {
    const values = new Float32Array(300).fill(-infinity);
    values.set([1, 3, 2], 150);
    const logits = put(device, values, [1, 300], DType.F32);
    const wanted = [151, 0, 299].map((token) => ({ row: 0, token }));
    const { own, ids, top } = logprobsOf(device, logits, [0], wanted, 5);
    const all = Math.log(Math.exp(1) + Math.exp(2) + Math.exp(3));
    expect(distance(own, [3 - all, -infinity, -infinity])).toBeLessThan(bound);
    expect([...ids.subarray(0, 5)]).toEqual([151, 152, 150, 0, 1]);
    expect(distance(top.subarray(0, 5), [3 - all, 2 - all, 1 - all, -infinity, -infinity])).toBeLessThan(bound);
    free(logits);
  });

  test("large logits and far ones lose nothing", () => {
    for (const [shift, step] of [
      [3e4, 1],
      [-3e4, 1],
      [0, 40],
      [1000, 300],
    ] as const) {
      const values = Float32Array.from({ length: 2000 }, (_, i) => shift + step * ((i * 7) % 11));
      const logits = put(device, values, [1, 2000], DType.F32);
      const { own, top } = logprobsOf(device, logits, [5], [{ row: 0, token: -1 }], 3);
      const expected = logSoftmax(values);
      const largest = topOf(values, 3).map((id) => expected[id] as number);
      // A difference of 3000 is rounded to 2^-13.
      expect(distance([...own, ...top], [expected[5] as number, ...largest])).toBeLessThan(step > 1 ? 2 ** -13 : bound);
      free(logits);
    }
  });

  test("the number of threads, or what else is asked, changes no bit", () => {
    const [rows, vocabulary] = [9, 5003];
    const values = randomValues(11, rows * vocabulary, 10);
    const wanted = Array.from({ length: rows }, (_, row) => ({ row, token: row * 500 }));
    const single = openDevice(1);
    const [one, two] = [single, device].map((on) =>
      logprobsOf(on, put(on, values, [rows, vocabulary], DType.F32), [], wanted, 4),
    ) as [Logprobs, Logprobs];
    expect(one.bits).toEqual(two.bits);
    single.close();
  });

  test("more alternatives than there can be are refused", () => {
    const logits = put(device, new Float32Array(30), [1, 30], DType.F32);
    for (const top of [21, -1]) {
      expect(() =>
        logprobs(
          device,
          { logprobs: logits.pointer, topIds: logits.pointer, topLogprobs: logits.pointer },
          logits,
          logits.pointer,
          logits.pointer,
          1,
          top,
        ),
      ).toThrow("logprobs");
    }
    free(logits);
  });
});
