import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import type { Device } from "../../src/native/device.ts";
import { attention, type HeadShape } from "../../src/native/ops.ts";
import { DType, type Tensor } from "../../src/native/tensor.ts";
import {
  activation,
  bits,
  exact,
  expandStep,
  get,
  numbers,
  openDevice,
  planFor,
  put,
  randomValues,
  relativeError,
  rounded,
  rows,
  type StepRow,
  tolerance,
} from "./harness.ts";

const device = openDevice();
afterAll(() => device.close());

/** Sequences with their whole contents, to be written into pools of any page size and asked in any step. */
class Contexts {
  readonly keys: Float64Array[];
  readonly values: Float64Array[];

  constructor(
    readonly shape: HeadShape,
    readonly cache: DType,
    readonly lengths: readonly number[],
  ) {
    const make = (salt: number, heads: number, dtype: DType, scale: number) =>
      lengths.map((n, i) => rounded(randomValues(100 * salt + i, n * heads * shape.headDim, scale), dtype));
    this.keys = make(2, shape.kvHeads, cache, 2);
    this.values = make(3, shape.kvHeads, cache, 1);
  }

  /** The queries of one position, [heads, headDim]. */
  query(sequence: number, position: number): Float64Array {
    const seed = 10_000 * (sequence + 1) + position;
    return rounded(randomValues(seed, this.shape.heads * this.shape.headDim, 3), activation);
  }

  /** Attention of one position in float64. */
  reference(sequence: number, position: number): number[] {
    const { heads, kvHeads, headDim } = this.shape;
    const q = this.query(sequence, position);
    const [k, v] = [this.keys[sequence], this.values[sequence]] as [Float64Array, Float64Array];
    const out: number[] = [];
    for (let h = 0; h < heads; h++) {
      const kv = Math.floor((h * kvHeads) / heads);
      const scores = Array.from({ length: position + 1 }, (_, t) => {
        let sum = 0;
        for (let d = 0; d < headDim; d++) {
          sum += (q[h * headDim + d] as number) * (k[(t * kvHeads + kv) * headDim + d] as number);
        }
        return sum / Math.sqrt(headDim);
      });
      const top = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - top));
      const total = weights.reduce((a, b) => a + b, 0);
      for (let d = 0; d < headDim; d++) {
        let sum = 0;
        for (let t = 0; t <= position; t++)
          sum += (weights[t] as number) * (v[(t * kvHeads + kv) * headDim + d] as number);
        out.push(sum / total);
      }
    }
    return out;
  }
}

interface Pool {
  keys: Tensor;
  values: Tensor;
  pages: number[][];
  pageSize: number;
}

/** Scatters the contexts over shuffled pages; what no sequence uses is not a number. */
function fillPool(on: Device, contexts: Contexts, pageSize: number): Pool {
  const width = contexts.shape.kvHeads * contexts.shape.headDim;
  const counts = contexts.lengths.map((length) => Math.ceil(length / pageSize));
  const total = counts.reduce((a, b) => a + b, 0) + 2;
  const next = numbers(7 * pageSize);
  const order = Array.from({ length: total }, (_, i) => [next(), i] as const).sort((a, b) => a[0] - b[0]);
  const ids = order.map(([, id]) => id);
  const pages = counts.map((count) => ids.splice(0, count));
  const scatter = (from: Float64Array[]) => {
    const pool = new Float64Array(total * pageSize * width).fill(exact ? Number.NaN : 0);
    from.forEach((content, i) => {
      for (let position = 0; position < (contexts.lengths[i] as number); position++) {
        const row = (pages[i]?.[Math.floor(position / pageSize)] as number) * pageSize + (position % pageSize);
        pool.set(content.subarray(position * width, (position + 1) * width), row * width);
      }
    });
    return put(on, pool, [total * pageSize, width], contexts.cache);
  };
  return { keys: scatter(contexts.keys), values: scatter(contexts.values), pages, pageSize };
}

/** One step over [sequence, start, count]; returns out[tokens, heads * headDim]. */
function attend(
  on: Device,
  contexts: Contexts,
  pool: Pool,
  step: readonly (readonly [number, number, number])[],
): Tensor {
  const { shape } = contexts;
  const width = shape.heads * shape.headDim;
  const stepRows: StepRow[] = step.map(([slot, start, count]) => {
    return { slot, start, count, pages: pool.pages[slot] as number[], samples: 1 };
  });
  const batch = expandStep(on, stepRows, pool.pageSize);
  const plan = planFor(on, shape, batch, pool.pageSize, contexts.cache);
  const queries = new Float64Array(batch.tokens * width);
  let at = 0;
  for (const [sequence, start, count] of step) {
    for (let position = start; position < start + count; position++, at += width) {
      queries.set(contexts.query(sequence, position), at);
    }
  }
  const out = on.tensor(activation, [batch.tokens, width]);
  const q = put(on, queries, [batch.tokens, width]);
  attention(on, out, q, pool.keys, pool.values, plan, batch, 1 / Math.sqrt(shape.headDim));
  on.synchronize();
  return out;
}

const cacheTypes = exact ? [DType.F32, DType.F16, DType.BF16] : [activation];
const shapes: HeadShape[] = [
  { heads: 9, kvHeads: 3, headDim: 64 },
  { heads: 2, kvHeads: 2, headDim: 128 },
  { heads: 8, kvHeads: 1, headDim: 256 },
  { heads: 14, kvHeads: 2, headDim: 80 },
  ...(exact
    ? [
        { heads: 6, kvHeads: 3, headDim: 72 },
        { heads: 5, kvHeads: 1, headDim: 20 },
      ]
    : [
        // The largest group that our kernel takes, and one that is left to FlashInfer's.
        { heads: 16, kvHeads: 1, headDim: 64 },
        { heads: 24, kvHeads: 1, headDim: 128 },
      ]),
];

describe.each(shapes)("attention with %o", (shape) => {
  const width = shape.heads * shape.headDim;

  test.each(cacheTypes)("equals the formula, cache of dtype %d", (cache) => {
    const contexts = new Contexts(shape, cache, [1, 300, 64, 90, 63]);
    const pool = fillPool(device, contexts, 16);
    const step = [
      [0, 0, 1],
      [1, 299, 1],
      [2, 63, 1],
      [3, 0, 90],
      [4, 60, 3],
    ] as const;
    const actual = get(device, attend(device, contexts, pool, step));
    const expected = step.flatMap(([sequence, start, count]) =>
      Array.from({ length: count }, (_, i) => contexts.reference(sequence, start + i)).flat(),
    );
    expect(relativeError(actual, expected)).toBeLessThan(Math.max(tolerance(activation), 4e-6));
  });

  if (!exact) return;
  const contexts = new Contexts(shape, DType.F32, [700, 65]);
  let pool: Pool;
  let whole: Tensor;
  beforeAll(() => {
    pool = fillPool(device, contexts, 1);
    whole = attend(device, contexts, pool, [
      [0, 0, 700],
      [1, 0, 65],
    ]);
  });
  const row = (tensor: Tensor, first: number, last = first + 1) => bits(device, rows(tensor, first, last));

  test("a long context equals the formula", () => {
    for (const position of [63, 64, 255, 256, 699]) {
      const actual = get(device, rows(whole, position, position + 1));
      expect(relativeError(actual, contexts.reference(0, position))).toBeLessThan(4e-6);
    }
  });

  test("a decoded position has the bits that it has in a prefill", () => {
    for (const position of [0, 1, 62, 63, 64, 127, 255, 256, 257, 511, 512, 699]) {
      expect(row(attend(device, contexts, pool, [[0, position, 1]]), 0)).toBe(row(whole, position));
    }
  });

  test("chunks have the bits of the whole", () => {
    for (const [start, count] of [
      [0, 5],
      [5, 250],
      [255, 3],
      [258, 442],
      [690, 10],
    ] as const) {
      const chunk = attend(device, contexts, pool, [
        [1, 64, 1],
        [0, start, count],
      ]);
      expect(row(chunk, 0)).toBe(row(whole, 764));
      expect(row(chunk, 1, count + 1)).toBe(row(whole, start, start + count));
    }
  });

  test.each([3, 16, 1024])("pages of %d tokens change nothing", (pageSize) => {
    const paged = fillPool(device, contexts, pageSize);
    const again = attend(device, contexts, paged, [
      [0, 0, 700],
      [1, 0, 65],
    ]);
    expect(bits(device, again)).toBe(bits(device, whole));
    expect(row(attend(device, contexts, paged, [[0, 699, 1]]), 0)).toBe(row(whole, 699));
  });

  test("the number of threads changes nothing", () => {
    for (const threads of [1, 2, 3]) {
      const other = openDevice(threads);
      const again = attend(other, contexts, fillPool(other, contexts, 16), [
        [0, 0, 700],
        [1, 0, 65],
      ]);
      expect(bits(other, again)).toBe(bits(device, whole));
      other.close();
    }
    expect(width).toBe(whole.shape[1] as number);
  });
});

// On a GPU blocks have parts of several sequences, and a sequence is the work of several blocks, which merge.
test("64 sequences of up to 3,000 tokens decode as the formula says", () => {
  const lengths = Array.from({ length: 64 }, (_, i) => 1 + ((i * 1237) % 3000));
  const contexts = new Contexts({ heads: 8, kvHeads: 2, headDim: 64 }, cacheTypes[0] as DType, lengths);
  const pool = fillPool(device, contexts, 16);
  const out = attend(
    device,
    contexts,
    pool,
    lengths.map((length, sequence) => [sequence, length - 1, 1] as const),
  );
  lengths.forEach((length, sequence) => {
    const actual = get(device, rows(out, sequence, sequence + 1));
    expect(relativeError(actual, contexts.reference(sequence, length - 1))).toBeLessThan(2 * tolerance(activation));
  });
}, 60_000);

test("a step that the plan has no room for is refused", () => {
  const contexts = new Contexts({ heads: 2, kvHeads: 1, headDim: 64 }, cacheTypes[0] as DType, [8]);
  const batch = expandStep(device, [{ slot: 0, start: 0, count: 4, pages: [0], samples: 0 }], 16);
  const plan = planFor(device, contexts.shape, batch, 16, contexts.cache);
  const lengths = Int32Array.of(8, 8);
  expect(() => plan.update(lengths, lengths, 1, 0, false)).toThrow(/8 tokens/);
  expect(() => plan.update(Int32Array.of(1, 1), lengths, 2, 2, false)).toThrow(/2 sequences/);
});
