import { afterAll, describe, expect, test } from "bun:test";
import type { Device } from "../../src/native/device.ts";
import { embedding, linear } from "../../src/native/ops.ts";
import { bytesOf, type DType, type Tensor, DType as Types } from "../../src/native/tensor.ts";
import { Weight, type WeightPart } from "../../src/native/weight.ts";
import {
  activation,
  bits,
  encode,
  exact,
  get,
  library,
  libraryPath,
  openDevice,
  put,
  putInts,
  randomValues,
  relativeError,
  rounded,
  rows,
  tolerance,
} from "./harness.ts";
import {
  blockTypes,
  floatTypes,
  loaded,
  randomBlocks,
  randomWeight,
  valuesOf,
  weightFrom,
  weightTypes,
  withFile,
} from "./weights.ts";

const device = openDevice(2);
const single = openDevice(1);
afterAll(() => {
  device.close();
  single.close();
});

const kept = weightTypes(device);
const keptBlocks = kept.filter((dtype) => blockTypes.includes(dtype as (typeof blockTypes)[number]));

/** The product as a user of the op gets it. */
function product(on: Device, x: Tensor, weight: Weight, bias: Tensor | null = null): Tensor {
  const result = on.tensor(activation, [x.shape[0] as number, weight.rows]);
  linear(on, result, x, weight, bias);
  return result;
}

/** x[m, k] weight[n, k]^T + bias in float64. */
function reference(x: ArrayLike<number>, weight: ArrayLike<number>, k: number, bias?: ArrayLike<number>): Float64Array {
  const [m, n] = [x.length / k, weight.length / k];
  return Float64Array.from({ length: m * n }, (_, index) => {
    const [i, j] = [Math.floor(index / n), index % n];
    let sum = 0;
    for (let c = 0; c < k; c++) sum += (x[i * k + c] as number) * (weight[j * k + c] as number);
    return sum + (bias?.[j] ?? 0);
  });
}

describe.each(kept)("a weight of dtype %d", (dtype) => {
  const blocks = keptBlocks.includes(dtype);

  test.each(blocks ? [256, 768] : [1, 17, 64, 301])("times x of %d columns is the product", (k) => {
    for (const [m, n] of [
      [1, 7],
      [3, 50],
      [14, 33],
      [40, 16],
    ] as const) {
      const weight = randomWeight(device, [{ rows: n, dtype }], k);
      const x = rounded(randomValues(m, m * k), activation);
      const bias = rounded(randomValues(n, n), activation);
      const values = valuesOf(device, weight);
      const input = put(device, x, [m, k]);
      expect(relativeError(get(device, product(device, input, weight)), reference(x, values, k))).toBeLessThan(
        tolerance(activation),
      );
      const sum = product(device, input, weight, put(device, bias, [n]));
      expect(relativeError(get(device, sum), reference(x, values, k, bias))).toBeLessThan(tolerance(activation));
    }
  });

  test("times a unit vector is its column", () => {
    const [k, n] = [256, 21];
    const weight = randomWeight(device, [{ rows: n, dtype }], k, 4);
    const values = valuesOf(device, weight);
    const unit = Float32Array.from({ length: k * k }, (_, i) => (Math.floor(i / k) === i % k ? 1 : 0));
    for (const m of [1, 2, k]) {
      const columns = get(device, product(device, put(device, unit.subarray(0, m * k), [m, k]), weight));
      const expected = Float64Array.from(
        { length: m * n },
        (_, i) => values[(i % n) * k + Math.floor(i / n)] as number,
      );
      expect([...columns].map((value) => value + 0)).toEqual([...expected].map((value) => value + 0));
    }
  });

  test.if(exact)("gives each row the same bits in every number of rows and threads", () => {
    const [k, n, most] = blocks ? [768, 75, 512] : [2801, 39, 384]; // so many that x does not stay in the cache
    const x = randomValues(2, most * k);
    const [weight, again] = [device, single].map((on) => randomWeight(on, [{ rows: n, dtype }], k, 9));
    const input = put(device, x, [most, k]);
    const all = product(device, input, weight as Weight);
    expect(bits(single, product(single, put(single, x, [most, k]), again as Weight))).toBe(bits(device, all));
    for (let m = 1; m <= 33; m++) {
      const first = (m * 7) % 40;
      const some = product(device, rows(input, first, first + m), weight as Weight);
      expect(bits(device, some)).toBe(bits(device, rows(all, first, first + m)));
    }
  });

  test("has rows that the embedding gathers", () => {
    const [k, n] = [256, 40];
    const weight = randomWeight(device, [{ rows: n, dtype }], k, 6);
    const values = valuesOf(device, weight);
    const ids = [39, 0, 17, 17, -1, 40, 2_000_000_000, 16];
    const result = device.tensor(activation, [ids.length, k]);
    device.fill(result.pointer, 255, result.bytes);
    embedding(device, result, putInts(device, ids), weight);
    const expected = ids.flatMap((id) =>
      id >= 0 && id < n ? [...values.slice(id * k, id * k + k)] : Array<number>(k).fill(0),
    );
    expect([...get(device, result)]).toEqual(expected);
  });

  test("takes about the memory of its values", () => {
    const weight = new Weight(device, [{ rows: 64, dtype }], 1024);
    expect(weight.bytes).toBeGreaterThanOrEqual(bytesOf(dtype, 64 * 1024));
    expect(weight.bytes).toBeLessThan(bytesOf(dtype, 64 * 1024) * 1.1);
    device.check(library.msgl_weight_destroy(device.handle, weight.handle));
  });

  test("is random by its seed, within the scale", () => {
    const parts = [{ rows: 30, dtype }];
    const [a, b, c] = [1, 1, 2].map((seed) => valuesOf(device, randomWeight(device, parts, 512, seed)));
    expect(a).toEqual(b as Float64Array);
    expect(a).not.toEqual(c as Float64Array);
    const values = [...(a as Float64Array)];
    expect(values.every((value) => Number.isFinite(value) && Math.abs(value) <= 1.01)).toBe(true);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    expect(Math.abs(mean)).toBeLessThan(0.05);
    expect(Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length)).toBeGreaterThan(0.1);
  });
});

test.each(exact ? keptBlocks : [])(
  "blocks of dtype %d give the bits of the F32 weight that they decode to",
  (dtype) => {
    const [k, n] = [768, 37];
    const content = contentOf(dtype, n * k, 8);
    const [packed, floats] = [dtype, Types.F32].map((as) => weightFrom(device, content, k, dtype, as)) as [
      Weight,
      Weight,
    ];
    for (const m of [1, 2, 3, 4, 7, 12, 13, 64, 200]) {
      const x = put(device, randomValues(m, m * k), [m, k]);
      expect(bits(device, product(device, x, packed))).toBe(bits(device, product(device, x, floats)));
    }
  },
);

describe("a weight of several parts", () => {
  const parts: WeightPart[] = kept.map((dtype, i) => ({ rows: [33, 1, 16, 5][i % 4] as number, dtype }));

  test("is its parts one under the other", () => {
    const k = 256;
    const whole = new Weight(device, parts, k);
    const separate: number[][] = [[], [], [], [], []];
    const x = put(device, randomValues(3, 5 * k), [5, k]);
    let row = 0;
    for (const [i, part] of parts.entries()) {
      const content = contentOf(part.dtype, part.rows * k, i);
      withFile(content, (file) => {
        whole.load(file, row, part.rows, 0, bytesOf(part.dtype, k), part.dtype);
        loaded(device);
      });
      const alone = get(device, product(device, x, weightFrom(device, content, k, part.dtype)));
      for (const [m, values] of separate.entries()) values.push(...alone.slice(m * part.rows, (m + 1) * part.rows));
      row += part.rows;
    }
    const together = get(device, product(device, x, whole));
    if (exact) expect([...together]).toEqual(separate.flat());
    else expect(relativeError(together, separate.flat())).toBeLessThan(tolerance(activation));
  });

  test("is random as one: its floats do not depend on how rows are divided", () => {
    const k = 300;
    const as = (...rows: number[]) => rows.map((count) => ({ rows: count, dtype: activation }));
    const one = valuesOf(device, randomWeight(device, as(50), k));
    expect(valuesOf(device, randomWeight(device, as(3, 17, 30), k))).toEqual(one);
    const plain = device.tensor(Types.F32, [50 * k]);
    device.random(plain, 1, 0.5);
    expect([...rounded(get(device, plain), activation)]).toEqual([...one]);
  });
});

describe("loading a weight", () => {
  const [k, n] = [256, 40];

  test.each(floatTypes.filter((dtype) => kept.includes(dtype)))("converts any float to dtype %d", (to) => {
    for (const from of floatTypes) {
      const values = rounded([...randomValues(1, n * k - 4, 4), 1.00390625, 1.01171875, 6e-8, -0.5], from);
      const actual = valuesOf(device, weightFrom(device, encode(values, from), k, from, to));
      expect([...actual]).toEqual([...rounded(rounded(values, to), activation)]);
    }
  });

  test.each(kept)("of dtype %d takes rows in any order, with what lies between them left out", (dtype) => {
    const content = contentOf(dtype, n * k, 5);
    const rowBytes = bytesOf(dtype, k);
    const stride = rowBytes + 6;
    const spaced = new Uint8Array(3 + n * stride - 6).fill(255);
    for (let i = 0; i < n; i++) spaced.set(content.subarray(i * rowBytes, (i + 1) * rowBytes), 3 + i * stride);
    const weight = new Weight(device, [{ rows: n, dtype }], k);
    withFile(spaced, (file) => {
      for (const [first, count] of [
        [21, 19],
        [0, 5],
        [5, 16],
      ] as const) {
        weight.load(file, first, count, 3 + first * stride, stride, dtype);
      }
      loaded(device);
    });
    expect(valuesOf(device, weight)).toEqual(valuesOf(device, weightFrom(device, content, k, dtype)));
  });

  test("of many rows goes through all of them", () => {
    const [many, dtype] = [5000, exact ? Types.BF16 : activation];
    const values = rounded(randomValues(7, many * k), dtype);
    const before = device.loadProgress(0).bytes;
    const weight = weightFrom(device, encode(values, dtype), k, dtype);
    expect(device.loadProgress(0).bytes - before).toBe(many * k * 2);
    expect(valuesOf(device, weight)).toEqual(rounded(values, activation));
  });

  test("refuses what cannot be", () => {
    const create = (dtype: DType, columns: number) => () => new Weight(device, [{ rows: 4, dtype }], columns);
    expect(create(Types.I32, 64)).toThrow("dtype 3");
    if (keptBlocks.includes(Types.Q4_1)) expect(create(Types.Q4_1, 48)).toThrow("whole blocks of 32");
    if (keptBlocks.includes(Types.Q6_K)) expect(create(Types.Q6_K, 320)).toThrow("whole blocks of 256");
    const [floats, odd] = [create(Types.BF16, k)(), create(Types.BF16, 48)()];
    withFile(new Uint8Array(4 * k * 4), (file) => {
      const load = (weight: Weight, row: number, count: number, offset: number, rowBytes: number, dtype: DType) => () =>
        weight.load(file, row, count, offset, rowBytes, dtype);
      expect(load(floats, 0, 5, 0, k * 4, Types.F32)).toThrow("rows");
      expect(load(floats, -1, 2, 0, k * 4, Types.F32)).toThrow("rows");
      expect(load(floats, 0, 4, 0, k * 4 - 1, Types.F32)).toThrow("needed");
      expect(load(odd, 0, 4, 0, 60, Types.Q8_0)).toThrow("whole blocks");
      for (const offset of [1, -1, 4 * k * 4, 2 ** 52]) {
        expect(load(floats, 0, 4, offset, k * 4, Types.F32)).toThrow(`ends at byte ${4 * k * 4}`);
      }
      expect(load(floats, 0, 4, 0, 2 ** 62, Types.F32)).toThrow("ends at byte");
      if (keptBlocks.includes(Types.Q8_0)) {
        expect(load(create(Types.Q8_0, k)(), 0, 4, 0, k * 4, Types.F32)).toThrow("encoded");
      }
      loaded(device);
    });
  });
});

const isaPath = `${import.meta.dir}/linear.digest.ts`;
test.if(exact)(
  "every instruction set gives the same bits",
  () => {
    const digest = (isa: string) => {
      const env = { ...process.env, MINISGL_ISA: isa, MINISGL_TEST_LIBRARY: libraryPath, BUN_BE_BUN: "1" };
      const run = Bun.spawnSync([process.execPath, isaPath], { env });
      const output = run.stdout.toString() + run.stderr.toString();
      if (output.includes("cannot run on this machine")) return undefined;
      expect(output).toMatch(/^[0-9a-f]{64}\n$/);
      return output;
    };
    const best = digest("");
    expect(best).toBeDefined();
    for (const isa of ["portable", "avx2", "avx512"]) expect([best, undefined]).toContain(digest(isa));
    expect(digest("portable")).toBe(best as string);
    expect(digest("sse9")).toBeUndefined();
  },
  60_000,
);

function blockSize(dtype: DType): number {
  return dtype === Types.Q4_K || dtype === Types.Q6_K ? 256 : 32;
}

/** The bytes of a file with so many values. */
function contentOf(dtype: DType, count: number, seed: number): Uint8Array {
  if (floatTypes.includes(dtype as (typeof floatTypes)[number])) return encode(randomValues(seed, count), dtype);
  return randomBlocks(dtype, count / blockSize(dtype), seed);
}
