/** Products give the same whichever algorithm a table names for them; those that a device cannot use are passed over. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { algorithmFile, loadAlgorithms, takeAlgorithms, tuneProduct, writeTable } from "../../src/native/algorithms.ts";
import { linear, linearAdd, normGatedLinear } from "../../src/native/ops.ts";
import { DType } from "../../src/native/tensor.ts";
import { activation, bits, exact, get, openDevice, put, randomValues, relativeError, rounded } from "./harness.ts";
import { randomWeight, valuesOf } from "./weights.ts";

const [tokens, n, k] = [100, 208, 584]; // divided by no tile
const epsilon = 1e-6;
const bound = exact ? 1e-5 : 2e-2;

const plans = [64, 128].flatMap((rows) =>
  [16, 32, 64, 128, 256].flatMap((tile) => [1, 3, 8].map((splits) => `tiled ${rows} ${tile} ${splits} 65536`)),
);
const refused = ["cublaslt 66 99999 1 0 0 0 35 0 2", "cublaslt 4242 1 1 0 0 0 1 0 0"];

const x = rounded(randomValues(1, tokens * k, 1), activation);
const before = rounded(randomValues(2, tokens * n, 4), activation);
const biases = rounded(randomValues(3, n, 2), activation);
const opened = openDevice();
afterAll(() => opened.close());

describe.each([...plans, ...refused])("with %s", (algorithm) => {
  const device = openDevice();
  afterAll(() => device.close());
  const table = ["plain", "add", "f32", "gated"].map((form) => `${n} ${k} ${tokens} ${form} ${algorithm} # 1.0 us`);
  const weight = randomWeight(device, [{ rows: n, dtype: activation }], k);
  const w = valuesOf(device, weight);
  const input = put(device, x, [tokens, k]);
  const bias = put(device, biases, [n]);
  const y = Float64Array.from({ length: tokens * n }, (_, index) => {
    const [i, j] = [Math.floor(index / n), index % n];
    let sum = 0;
    for (let c = 0; c < k; c++) sum += (x[i * k + c] as number) * (w[j * k + c] as number);
    return sum;
  });
  const biased = y.map((value, i) => value + (biases[i % n] as number));

  test("a table's lines are taken where there is a choice", () => {
    expect(takeAlgorithms(device, `# comment\n\n${table.join("\n")}\nnot a line\n`)).toBe(exact ? 0 : 4);
  });

  test.each([activation, DType.F32])("a product to dtype %d is right, and the same again", (dtype) => {
    const [first, second] = [device.tensor(dtype, [tokens, n]), device.tensor(dtype, [tokens, n])];
    linear(device, first, input, weight, bias);
    linear(device, second, input, weight, bias);
    expect(relativeError(get(device, first), biased)).toBeLessThan(bound);
    expect(bits(device, first)).toBe(bits(device, second));
  });

  test("a product that is added is right", () => {
    const out = put(device, before, [tokens, n]);
    linearAdd(device, out, device.tensor(activation, [tokens, n]), input, weight, bias);
    const expected = biased.map((value, i) => value + (before[i] as number));
    expect(relativeError(get(device, out), expected)).toBeLessThan(bound);
  });

  test("a gated product is right", () => {
    const out = device.tensor(activation, [tokens, n / 2]);
    const norm = { weight: put(device, new Float32Array(k).fill(1), [k]), epsilon };
    const [gateUp, normed] = [device.tensor(activation, [tokens, n]), device.tensor(activation, [tokens, k])];
    normGatedLinear(device, out, gateUp, normed, input, norm, weight);
    const expected = Float64Array.from({ length: (tokens * n) / 2 }, (_, index) => {
      const [i, j] = [Math.floor(index / (n / 2)), index % (n / 2)];
      let squares = 0;
      for (let c = 0; c < k; c++) squares += (x[i * k + c] as number) ** 2;
      const root = Math.sqrt(squares / k + epsilon);
      const gate = (y[i * n + j] as number) / root;
      return (gate / (1 + Math.exp(-gate))) * ((y[i * n + n / 2 + j] as number) / root);
    });
    expect(relativeError(get(device, out), expected)).toBeLessThan(bound);
  });
});

describe("tuning", () => {
  test.each(["plain", "add", "f32", "gated"] as const)("a %s product gives a line that the device takes", (form) => {
    const line = tuneProduct(opened, { n: 256, k: 512, form }, 32, activation);
    if (exact) return expect(line).toBe("");
    expect(line).toStartWith(`256 512 32 ${form} `);
    expect(takeAlgorithms(opened, line)).toBe(1);
  });

  test("is passed over for products that have but one algorithm", () => {
    expect(tuneProduct(opened, { n: 250, k: 512, form: "plain" }, 32, activation)).toBe("");
    expect(tuneProduct(opened, { n: 256, k: 512, form: "plain" }, 8, activation)).toBe("");
  });
});

describe("at the start", () => {
  const folder = mkdtempSync(join(tmpdir(), "minisgl-algorithms-"));
  const before = process.env.XDG_CACHE_HOME;
  afterAll(() => {
    rmSync(folder, { recursive: true });
    if (before === undefined) delete process.env.XDG_CACHE_HOME;
    else process.env.XDG_CACHE_HOME = before;
  });

  test("the user's table is taken after the program's, and does no harm where it cannot be read", () => {
    process.env.XDG_CACHE_HOME = "/dev/null/nowhere";
    const shipped = loadAlgorithms(opened);
    process.env.XDG_CACHE_HOME = folder;
    const line = `${n} ${k} ${tokens} plain tiled 64 64 1 65536`;
    writeTable(algorithmFile(opened.properties().name), `${line}\n`);
    expect(loadAlgorithms(opened)).toBe(exact ? 0 : shipped + 1);
  });
});
