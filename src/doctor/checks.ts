/** The table of checks, and those of what has no cache: embedding, products, norms, activations, sampling. */
import type { DeviceProperties } from "../native/device.ts";
import * as ops from "../native/ops.ts";
import { DType } from "../native/tensor.ts";
import { attentionChecks } from "./attention-checks.ts";
import { type Check, check, EPSILON, EXACT, type Lab, nameOf, type Prepared, randomValues } from "./lab.ts";
import { logitsChecks } from "./logits-checks.ts";
import { memoryChecks } from "./memory-checks.ts";

/** The checks of a device for models of a type. */
export function checksFor(properties: DeviceProperties, model: DType): Check[] {
  // Where activations are float32, models of other types differ only in their weights and cache.
  const others = Object.values(DType).filter((dtype) => properties.floatActivations && dtype !== model);
  const weights = others.filter((dtype) => properties.keeps(dtype));
  const caches = others.filter((dtype) => dtype === DType.F16 || dtype === DType.BF16);
  return [
    ...memoryChecks(model),
    ...[model, ...weights].map(embedding),
    ...[1, 8, 64, 300].flatMap((rows) => [linear(rows, 768, 1024, model), linear(rows, 768, 1024, model, "bias")]),
    linear(3, 200, 328, model, "bias"), // sizes that few kernels' tiles divide
    ...[1, 8, 64].map((rows) => linear(rows, 2003, 1024, model, "logits")),
    ...weights.flatMap((dtype) => [1, 8, 64].map((rows) => linear(rows, 512, 1024, dtype))),
    ...[1, 8, 11, 64].flatMap((rows) => fused(rows, 768, 1024, model)),
    ...fused(16, 4096, 512, model),
    ...rowOps(1, 1024),
    ...rowOps(64, 4096),
    ...rowOps(300, 576),
    gathering(5, 64, 1024),
    ...attentionChecks(model, caches, properties.capability > 0),
    ...logitsChecks,
    ...SAMPLINGS.map(sampling),
  ];
}

function embedding(dtype: DType): Check {
  const [rows, columns, tokens] = [1000, 768, 67];
  return check("embedding", `${tokens} of [${rows}, ${columns}] ${nameOf(dtype)}`, (lab) => {
    const weight = lab.weight(rows, columns, dtype);
    const ids = lab.ints([-1, rows, ...Array.from({ length: tokens - 2 }, (_, i) => (i * 37) % rows)]);
    const out = lab.output([tokens, columns]);
    return { run: () => ops.embedding(lab.device, out, ids, weight), results: [lab.result(out, EXACT)] };
  });
}

function linear(rows: number, n: number, k: number, dtype: DType, how?: "bias" | "logits"): Check {
  const text = how === undefined ? "" : how === "bias" ? " + bias" : " to F32";
  return check("linear", `${rows} x [${n}, ${k}] ${nameOf(dtype)}${text}`, (lab) => {
    const [x, weight] = [lab.input(1, [rows, k]), lab.weight(n, k, dtype)];
    const bias = how === "bias" ? lab.input(2, [n], 20) : null; // as large as the sums
    const out = lab.output([rows, n], how === "logits" ? DType.F32 : lab.activation);
    // Two roundings: of the result, and of partial sums where several blocks share a product.
    return { run: () => ops.linear(lab.device, out, x, weight, bias), results: [lab.result(out, 2)] };
  });
}

/** Products with what stands around them. */
function fused(rows: number, n: number, k: number, dtype: DType): Check[] {
  const shape = `${rows} x [${n}, ${k}] ${nameOf(dtype)}`;
  const operands = (lab: Lab) => {
    const norm = { weight: lab.input(2, [k], 2), epsilon: EPSILON };
    return { x: lab.input(1, [rows, k], 3), norm, weight: lab.weight(n, k, dtype), normed: lab.output([rows, k]) };
  };
  // Of the normalised row, the product and the result.
  return [
    check("linear_add", shape, (lab) => {
      const { x, weight } = operands(lab);
      const [out, scratch] = [lab.input(3, [rows, n], 20), lab.output([rows, n])];
      return { run: () => ops.linearAdd(lab.device, out, scratch, x, weight, null), results: [lab.result(out, 3)] };
    }),
    check("norm_linear", shape, (lab) => {
      const { x, norm, weight, normed } = operands(lab);
      const out = lab.output([rows, n]);
      return {
        run: () => ops.normLinear(lab.device, out, normed, x, norm, weight, null),
        results: [lab.result(out, 3)],
      };
    }),
    check("norm_gated_linear", shape, (lab) => {
      const { x, norm, weight, normed } = operands(lab);
      const [out, gateUp] = [lab.output([rows, n / 2]), lab.output([rows, n])];
      const run = () => ops.normGatedLinear(lab.device, out, gateUp, normed, x, norm, weight);
      return { run, results: [lab.result(out, 4)] };
    }),
  ];
}

/** What works on rows of activations alone. */
function rowOps(tokens: number, size: number): Check[] {
  const shape = `[${tokens}, ${size}]`;
  const operands = (lab: Lab) => [lab.input(1, [tokens, size], 3), lab.input(2, [size], 2), lab.output([tokens, size])];
  return [
    check("rms_norm", shape, (lab) => {
      const [x, weight, out] = operands(lab);
      return { run: () => ops.rmsNorm(lab.device, out, x, weight, EPSILON), results: [lab.result(out, 1)] };
    }),
    check("add_rms_norm", shape, (lab) => {
      const [x, weight, out] = operands(lab);
      const residual = lab.input(3, [tokens, size]);
      return {
        run: () => ops.addRmsNorm(lab.device, out, residual, x, weight, EPSILON),
        results: [lab.result(residual, 1), lab.result(out, 2)], // the result's row is that of the rounded residual
      };
    }),
    check("silu_mul", shape, (lab) => {
      const [gateUp, out] = [lab.input(1, [tokens, 2 * size], 10), lab.output([tokens, size])];
      return { run: () => ops.siluMul(lab.device, out, gateUp), results: [lab.result(out, 1)] };
    }),
  ];
}

const gathering = (count: number, of: number, size: number) =>
  check("gather", `${count} of [${of}, ${size}]`, (lab) => {
    const rows = Array.from({ length: count }, (_, i) => (i * 29 + of - 1) % of);
    const [x, ids, out] = [lab.input(1, [of, size]), lab.ints(rows), lab.output([count, size])];
    const all = lab.read(x);
    const expected = rows.flatMap((row) => [...all.subarray(row * size, (row + 1) * size)]);
    return { run: () => ops.gather(lab.device, out, x, ids), results: [lab.result(out, EXACT, expected)] };
  });

interface Sampling {
  name: string;
  temperature: number;
  topK?: number;
  topP?: number;
  minP?: number;
}

const SAMPLINGS: readonly Sampling[] = [
  { name: "argmax", temperature: 0 },
  { name: "temperature", temperature: 0.8 },
  { name: "top_k", temperature: 1, topK: 20 },
  { name: "top_p", temperature: 0.9, topP: 0.9 },
  { name: "min_p", temperature: 1, minP: 0.1 },
  { name: "all filters", temperature: 1.2, topK: 50, topP: 0.8, minP: 0.02 },
];

function sampling({ name, temperature, topK = 0, topP = 1, minP = 0 }: Sampling): Check {
  const [count, vocabulary, stride] = [64, 32001, 80];
  return check("sample", `${name}, [${count}, ${vocabulary}]`, (lab): Prepared => {
    // In steps of 1/16, so that many logits are equal, the largest among them.
    const values = randomValues(5, count * vocabulary, 6).map((value) => Math.round(value * 16) / 16);
    const logits = lab.put(values, [count, vocabulary], DType.F32);
    const words = new Int32Array(count * 8);
    const floats = new Float32Array(words.buffer);
    for (let i = 0; i < count; i++) {
      words.set([i % 5 === 4 ? -1 : i, i, 0, topK], i * 8);
      floats[i * 8 + 2] = i % 8 === 7 ? 0 : temperature;
      floats.set([topP, minP], i * 8 + 4);
      words.set([i * 77, i * 1234567], i * 8 + 6);
    }
    const [rows, tokens] = [lab.ints(words), lab.output([count], DType.I32)];
    const table = lab.output([count, stride], DType.I32);
    const needs = { random: temperature > 0, filtered: topK > 0 || topP < 1 || minP > 0 };
    return {
      run: () => ops.sample(lab.device, tokens.pointer, table, logits, rows.pointer, needs),
      // The noise is the same on every device; other roundings would decide one of some 10^5 draws.
      results: [lab.result(tokens, EXACT), lab.result(table, EXACT)],
    };
  });
}
