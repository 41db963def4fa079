import { afterAll, describe, expect, test } from "bun:test";
import { addRmsNorm, gather, rmsNorm, rotaryStore, siluMul } from "../../src/native/ops.ts";
import { DType } from "../../src/native/tensor.ts";
import {
  activation,
  bits,
  exact,
  expandStep,
  get,
  openDevice,
  put,
  putInts,
  randomValues,
  relativeError,
  rounded,
  rows,
  tolerance,
} from "./harness.ts";

const device = openDevice();
afterAll(() => device.close());
const epsilon = 1e-5;

function normalized(x: ArrayLike<number>, weight: ArrayLike<number>): Float64Array {
  const size = weight.length;
  return Float64Array.from(x, (value, i) => {
    const begin = i - (i % size);
    let sum = 0;
    for (let j = 0; j < size; j++) sum += (x[begin + j] as number) ** 2;
    return (value / Math.sqrt(sum / size + epsilon)) * (weight[i % size] as number);
  });
}

describe.each([1, 64, 576, 1000, 4096])("rows of %d", (size) => {
  const tokens = 7;
  const x = rounded(randomValues(size, tokens * size, 3), activation);
  const weight = rounded(randomValues(size + 1, size, 2), activation);

  test("rms_norm", () => {
    const result = device.tensor(activation, [tokens, size]);
    rmsNorm(device, result, put(device, x, [tokens, size]), put(device, weight, [size]), epsilon);
    expect(relativeError(get(device, result), normalized(x, weight))).toBeLessThan(tolerance(activation));
  });

  test("add_rms_norm", () => {
    const before = rounded(randomValues(size + 2, tokens * size), activation);
    const residual = put(device, before, [tokens, size]);
    const result = device.tensor(activation, [tokens, size]);
    addRmsNorm(device, result, residual, put(device, x, [tokens, size]), put(device, weight, [size]), epsilon);
    const sums = rounded(
      Float64Array.from(before, (value, i) => value + (x[i] as number)),
      activation,
    );
    expect(relativeError(get(device, residual), sums)).toBeLessThan(tolerance(activation));
    expect(relativeError(get(device, result), normalized(sums, weight))).toBeLessThan(tolerance(activation));
  });

  test("silu_mul", () => {
    const gateUp = rounded(randomValues(size + 3, tokens * 2 * size, 20), activation);
    const result = device.tensor(activation, [tokens, size]);
    siluMul(device, result, put(device, gateUp, [tokens, 2 * size]));
    const expected = Float64Array.from({ length: tokens * size }, (_, i) => {
      const at = Math.floor(i / size) * 2 * size + (i % size);
      const gate = gateUp[at] as number;
      return (gate / (1 + Math.exp(-gate))) * (gateUp[at + size] as number);
    });
    expect(relativeError(get(device, result), expected)).toBeLessThan(tolerance(activation));
  });

  test("gather", () => {
    const order = [6, 0, 3, 3];
    const result = device.tensor(activation, [order.length, size]);
    gather(device, result, put(device, x, [tokens, size]), putInts(device, order));
    const expected = order.flatMap((row) => [...x.subarray(row * size, (row + 1) * size)]);
    expect([...get(device, result)]).toEqual(expected);
  });
});

test("silu_mul takes the largest numbers", () => {
  const large = activation === DType.F16 ? 6e4 : 1e30;
  const gates = [-large, -200, -88, 0, 88, 200, large];
  const result = device.tensor(activation, [1, gates.length]);
  siluMul(device, result, put(device, [...gates, ...gates.map(() => 1)], [1, 2 * gates.length]));
  const actual = get(device, result);
  gates.forEach((gate, i) => {
    expect(Math.abs((actual[i] as number) - Math.max(gate, 0))).toBeLessThanOrEqual(Math.max(gate, 0) * 4e-3 + 1e-6);
  });
});

interface Heads {
  heads: number;
  kvHeads: number;
  headDim: number;
  rotaryDim: number;
  norm: boolean;
  cache: DType;
}

/** rotary_store in float64: the queries [tokens, heads * headDim] and the keys and values [tokens, kvHeads * headDim]. */
function storeReference(
  shape: Heads,
  qkv: Float64Array,
  positions: number[],
  table: Float64Array,
  norms: Float64Array[],
) {
  const { heads, kvHeads, headDim, rotaryDim, norm } = shape;
  const half = rotaryDim / 2;
  const width = (heads + 2 * kvHeads) * headDim;
  const parts: [number[], number[], number[]] = [[], [], []];
  positions.forEach((position, token) => {
    for (let h = 0; h < heads + 2 * kvHeads; h++) {
      const part = h < heads ? 0 : h < heads + kvHeads ? 1 : 2;
      let x = qkv.slice(token * width + h * headDim, token * width + (h + 1) * headDim);
      if (norm && part < 2) x = new Float64Array(normalized(x, norms[part] as Float64Array));
      const y = x.slice();
      for (let i = 0; i < half && part < 2; i++) {
        const [a, b] = [x[i] as number, x[i + half] as number];
        const [cos, sin] = [
          table[position * rotaryDim + i] as number,
          table[position * rotaryDim + half + i] as number,
        ];
        y[i] = a * cos - b * sin;
        y[i + half] = b * cos + a * sin;
      }
      parts[part].push(...y);
    }
  });
  return parts;
}

describe.each<Heads>([
  { heads: 9, kvHeads: 3, headDim: 64, rotaryDim: 64, norm: false, cache: activation },
  { heads: 4, kvHeads: 4, headDim: 128, rotaryDim: 128, norm: true, cache: exact ? DType.BF16 : activation },
  { heads: 8, kvHeads: 1, headDim: 72, rotaryDim: 36, norm: true, cache: exact ? DType.F16 : activation },
])("rotary_store with %o", (shape) => {
  const { heads, kvHeads, headDim, rotaryDim, norm, cache } = shape;
  const [pageSize, pages, tokens] = [3, 8, 7];
  const width = (heads + 2 * kvHeads) * headDim;
  const step = expandStep(device, [{ slot: 0, start: 4, count: tokens, pages: [5, 0, 7, 2], samples: 1 }], pageSize);
  const qkv = rounded(randomValues(1, tokens * width), activation);
  const angles = randomValues(2, 16 * (rotaryDim / 2), 3);
  const table = Float64Array.from({ length: 16 * rotaryDim }, (_, i) => {
    const half = rotaryDim / 2;
    const angle = angles[Math.floor(i / rotaryDim) * half + (i % half)] as number;
    return Math.fround(i % rotaryDim < half ? Math.cos(angle) : Math.sin(angle));
  });
  const norms = [3, 4].map((seed) => rounded(randomValues(seed, headDim, 2), activation));
  const q = device.tensor(activation, [tokens, heads, headDim]);
  const caches = [0, 1].map(() => device.tensor(cache, [pages * pageSize, kvHeads * headDim]));
  const [keys, values] = caches as [(typeof caches)[0], (typeof caches)[0]];
  const input = put(device, qkv, [tokens, width]);
  const rotary = put(device, table, [16, rotaryDim], DType.F32);
  const normTensors = norms.map((weight) => (norm ? put(device, weight, [headDim]) : null));

  const run = (first: number, last: number) => {
    const part = {
      ...step,
      positions: rows(step.positions, first, last),
      cacheRows: rows(step.cacheRows, first, last),
    };
    const [qNorm, kNorm] = normTensors as [typeof input | null, typeof input | null];
    const target = rows(q, first, last);
    rotaryStore(device, target, keys, values, rows(input, first, last), part, rotary, qNorm, kNorm, shape, epsilon);
  };

  test("equals the formula and leaves other rows alone", () => {
    for (const tensor of caches) device.fill(tensor.pointer, 0, tensor.bytes);
    run(0, tokens);
    const positions = Array.from({ length: tokens }, (_, i) => 4 + i);
    const [queries, ...expected] = storeReference(shape, qkv, positions, table, norms);
    expect(relativeError(get(device, q), queries)).toBeLessThan(tolerance(activation));
    caches.forEach((tensor, part) => {
      const size = kvHeads * headDim;
      const whole = new Float64Array(pages * pageSize * size);
      positions.forEach((position, i) => {
        const row = ([5, 0, 7, 2][Math.floor(position / pageSize)] as number) * pageSize + (position % pageSize);
        whole.set((expected[part] as number[]).slice(i * size, (i + 1) * size), row * size);
      });
      const actual = get(device, tensor);
      expect(relativeError(actual, whole)).toBeLessThan(Math.max(tolerance(cache), tolerance(activation)));
      whole.forEach((value, i) => {
        if (value === 0) expect(actual[i]).toBe(0);
      });
    });
  });

  test("is the same token by token", () => {
    const cleared = () => [q, ...caches].forEach((tensor) => void device.fill(tensor.pointer, 0, tensor.bytes));
    const results = () => [q, ...caches].map((tensor) => bits(device, tensor));
    cleared();
    run(0, tokens);
    const whole = results();
    cleared();
    for (let i = 0; i < tokens; i++) run(i, i + 1);
    expect(results()).toEqual(whole);
  });
});

test("a row is the same bit for bit alone and among others", () => {
  const [tokens, size] = [333, 577];
  const x = put(device, randomValues(1, tokens * 2 * size, 4), [tokens, 2 * size]);
  const weight = put(device, randomValues(2, 2 * size), [2 * size]);
  const [normed, multiplied] = [device.tensor(activation, x.shape), device.tensor(activation, [tokens, size])];
  rmsNorm(device, normed, x, weight, epsilon);
  siluMul(device, multiplied, x);
  const [one, other] = [device.tensor(activation, [1, 2 * size]), device.tensor(activation, [1, size])];
  for (const row of [0, 1, 100, 332]) {
    rmsNorm(device, one, rows(x, row, row + 1), weight, epsilon);
    siluMul(device, other, rows(x, row, row + 1));
    expect(bits(device, one)).toBe(bits(device, rows(normed, row, row + 1)));
    expect(bits(device, other)).toBe(bits(device, rows(multiplied, row, row + 1)));
  }
});

test("activations of a type that the device does not compute in are refused", () => {
  const wrong = exact ? DType.BF16 : DType.I32;
  const x = device.tensor(wrong, [1, 8]);
  expect(() => rmsNorm(device, x, x, x, epsilon)).toThrow(/rms_norm|dtype/);
});
