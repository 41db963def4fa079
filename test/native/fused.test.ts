import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { linear, linearAdd, normGatedLinear, normLinear, rmsNorm, siluMul } from "../../src/native/ops.ts";
import { DType, type Tensor } from "../../src/native/tensor.ts";
import { activation, bits, exact, get, openDevice, put, randomValues, relativeError, rounded } from "./harness.ts";
import { randomWeight, valuesOf } from "./weights.ts";

const device = openDevice();
afterAll(() => device.close());
const epsilon = 1e-5;

/** x [m, k] times rows of w [n, k], in float64. */
function product(x: Float64Array, w: Float64Array, k: number): Float64Array {
  const [m, n] = [x.length / k, w.length / k];
  return Float64Array.from({ length: m * n }, (_, index) => {
    const [i, j] = [Math.floor(index / n), index % n];
    let sum = 0;
    for (let c = 0; c < k; c++) sum += (x[i * k + c] as number) * (w[j * k + c] as number);
    return sum;
  });
}

function normalized(x: Float64Array, weight: Float64Array): Float64Array {
  const k = weight.length;
  return Float64Array.from(x, (value, i) => {
    let sum = 0;
    for (let j = i - (i % k), end = j + k; j < end; j++) sum += (x[j] as number) ** 2;
    return (value / Math.sqrt(sum / k + epsilon)) * (weight[i % k] as number);
  });
}

// Three roundings of 8 or 24 bits: of the normalised row, the product and what is made of it.
const bound = exact ? 1e-5 : 2e-2;

// Rows for each of the kernels that a GPU has for few tokens and for many, and sizes that their tiles do not divide.
describe.each([1, 3, 8, 40])("%d tokens", (tokens) => {
  describe.each([
    [64, 128],
    [48, 200],
    [1056, 576],
    [256, 5184],
  ] as const)("a weight [%d, %d]", (n, k) => {
    const weight = randomWeight(device, [{ rows: n, dtype: activation }], k);
    const w = valuesOf(device, weight);
    const x = rounded(randomValues(1, tokens * k, 3), activation);
    const before = rounded(randomValues(2, tokens * n, 4), activation);
    const gains = rounded(randomValues(3, k, 2), activation);
    const biases = rounded(randomValues(4, n, 2), activation);
    const tensor = (...shape: number[]) => device.tensor(activation, shape);
    const input = put(device, x, [tokens, k]);
    const norm = { weight: put(device, gains, [k]), epsilon };
    const bias = put(device, biases, [n]);
    const error = (result: Tensor, expected: Float64Array) => relativeError(get(device, result), expected);
    let y: Float64Array; // rmsNorm(x) w^T
    beforeAll(() => {
      y = product(normalized(x, gains), w, k);
    }, 60_000);

    test.each([false, true])("linear_add, with a bias: %p", (biased) => {
      const out = put(device, before, [tokens, n]);
      linearAdd(device, out, tensor(tokens, n), input, weight, biased ? bias : null);
      const expected = product(x, w, k).map((v, i) => v + (before[i] as number) + (biased ? (biases[i % n] ?? 0) : 0));
      expect(error(out, expected)).toBeLessThan(bound);
    });

    test.each([
      [activation, false],
      [DType.F32, false],
      [activation, true],
    ] as const)("norm_linear to dtype %d, with a bias: %p", (dtype, biased) => {
      const out = device.tensor(dtype, [tokens, n]);
      normLinear(device, out, tensor(tokens, k), input, norm, weight, biased ? bias : null);
      const expected = y.map((v, i) => v + (biased ? (biases[i % n] ?? 0) : 0));
      expect(error(out, expected)).toBeLessThan(bound);
    });

    test("norm_gated_linear", () => {
      const out = tensor(tokens, n / 2);
      normGatedLinear(device, out, tensor(tokens, n), tensor(tokens, k), input, norm, weight);
      const expected = Float64Array.from({ length: (tokens * n) / 2 }, (_, i) => {
        const at = Math.floor(i / (n / 2)) * n + (i % (n / 2));
        const gate = y[at] as number;
        return (gate / (1 + Math.exp(-gate))) * (y[at + n / 2] as number);
      });
      expect(error(out, expected)).toBeLessThan(bound);
    });

    test.if(exact)("equal the ops that they consist of, bit for bit", () => {
      const [normed, gateUp, gated, whole] = [
        tensor(tokens, k),
        tensor(tokens, n),
        tensor(tokens, n / 2),
        tensor(tokens, n / 2),
      ];
      rmsNorm(device, normed, input, norm.weight, epsilon);
      linear(device, gateUp, normed, weight, null);
      siluMul(device, gated, gateUp);
      normGatedLinear(device, whole, tensor(tokens, n), tensor(tokens, k), input, norm, weight);
      expect(bits(device, whole)).toBe(bits(device, gated));
    });
  });
});
