/** What the hardware would allow: bytes that must move over its bandwidth, operations over its matrix rate, whichever is more. */
import type { ModelConfig } from "../checkpoint/types.ts";
import type { EngineInfo } from "../message/types.ts";
import type { Device } from "../native/device.ts";
import { type DeviceKind, openDevice } from "../native/open-device.ts";
import { linear } from "../native/ops.ts";
import { bytesOf, DType } from "../native/tensor.ts";
import { Weight } from "../native/weight.ts";
import type { WorkItem } from "./workload.ts";

/** What a device reaches. */
export interface Limits {
  /** Bytes a second. */
  bandwidth: number;
  /** Floating point operations a second in matrix products of the model's type. */
  matrixRate: number;
}

/** What a model costs. */
export interface Cost {
  /** Bytes of weights that a step reads, whatever its size. */
  weightBytes: number;
  /** Bytes of keys and values a token. */
  kvBytes: number;
  /** Operations a token in matrix products, without the LM head; and those of the head. */
  tokenOperations: number;
  headOperations: number;
  /** Operations of attention a pair of query and key. */
  pairOperations: number;
}

/** What the shares of a report are taken of. */
export interface Roofline {
  cost: Cost;
  limits: Limits;
}

/** The cost of a loaded model. The embedding table is not read where it is not the LM head's too. */
export function modelCost(config: ModelConfig, info: EngineInfo): Cost {
  const { hiddenSize, intermediateSize, numLayers, numHeads, numKvHeads, headDim, vocabularySize } = config;
  const attention = hiddenSize * headDim * (2 * numHeads + 2 * numKvHeads);
  const layers = numLayers * (attention + 3 * hiddenSize * intermediateSize);
  const head = hiddenSize * vocabularySize;
  const kept = layers + head * (config.tieWordEmbeddings ? 1 : 2);
  return {
    weightBytes: (info.weightBytes * (layers + head)) / kept,
    kvBytes: info.poolBytes / ((info.numPages + 1) * info.pageSize),
    tokenOperations: 2 * layers,
    headOperations: 2 * head,
    pairOperations: 4 * numLayers * numHeads * headDim,
  };
}

/** Seconds that a decode step of `sequences` takes at least, with `context` tokens of context together. */
export function decodeLimit(cost: Cost, limits: Limits, sequences: number, context: number): number {
  const bytes = cost.weightBytes + context * cost.kvBytes;
  const operations = sequences * (cost.tokenOperations + cost.headOperations) + context * cost.pairOperations;
  return Math.max(bytes / limits.bandwidth, operations / limits.matrixRate);
}

/** Seconds that the prompts take at least, one token sampled from each. */
export function prefillLimit(cost: Cost, limits: Limits, lengths: readonly number[]): number {
  let operations = 0;
  for (const length of lengths) {
    operations +=
      length * cost.tokenOperations + cost.headOperations + ((length * (length + 1)) / 2) * cost.pairOperations;
  }
  return Math.max(cost.weightBytes / limits.bandwidth, operations / limits.matrixRate);
}

/** Seconds that a workload takes at least where all its sequences run at the same time. */
export function workloadLimit(cost: Cost, limits: Limits, items: readonly WorkItem[]): number {
  let seconds = prefillLimit(
    cost,
    limits,
    items.map(({ tokens }) => tokens.length),
  );
  const steps = Math.max(...items.map(({ maxTokens }) => maxTokens));
  for (let step = 1; step < steps; step++) {
    const running = items.filter(({ maxTokens }) => maxTokens > step);
    const context = running.reduce((sum, { tokens }) => sum + tokens.length + step, 0);
    seconds += decodeLimit(cost, limits, running.length, context);
  }
  return seconds;
}

/** Sizes that fill the device's caches many times over: a weight [rows, columns], and the rows of a product. */
const SIZES = {
  gpu: { rows: 131072, columns: 8192, product: { tokens: 8192, rows: 8192, columns: 8192 } },
  cpu: { rows: 32768, columns: 2048, product: { tokens: 256, rows: 2048, columns: 2048 } },
};
const RUNS = 6;

/** Measures a device with nothing else on it, in bfloat16. The bandwidth is the best of a copy and of a product with one row. */
export function measureLimits(kind: DeviceKind | "auto", threads: number): Limits {
  const { device } = openDevice(kind, threads);
  try {
    const type = DType.BF16;
    const { floatActivations } = device.properties();
    const sizes = floatActivations ? SIZES.cpu : SIZES.gpu;
    const activation = floatActivations ? DType.F32 : type;
    const read = product(device, 1, sizes.rows, sizes.columns, type, activation);
    const matrix = product(device, sizes.product.tokens, sizes.product.rows, sizes.product.columns, type, activation);
    const bytes = bytesOf(type, sizes.rows * sizes.columns);
    const source = device.alloc(bytes);
    const destination = device.alloc(bytes);
    const copy = quickest(device, () => device.copy(destination, source, bytes));
    return {
      bandwidth: 1000 * Math.max(bytes / read, (2 * bytes) / copy),
      matrixRate: (1000 * 2 * sizes.product.tokens * sizes.product.rows * sizes.product.columns) / matrix,
    };
  } finally {
    device.close();
  }
}

/** Milliseconds of a product of `tokens` rows with a random weight [rows, columns]. */
function product(
  device: Device,
  tokens: number,
  rows: number,
  columns: number,
  type: DType,
  activation: DType,
): number {
  const weight = new Weight(device, [{ rows, dtype: type }], columns);
  weight.random(0, 1);
  const x = device.tensor(activation, [tokens, columns]);
  const result = device.tensor(activation, [tokens, rows]);
  device.random(x, 1, 1);
  const milliseconds = quickest(device, () => linear(device, result, x, weight, null));
  device.free(x.pointer);
  device.free(result.pointer);
  return milliseconds;
}

/** Milliseconds of the quickest of a few runs of `work` on the device. */
function quickest(device: Device, work: () => void): number {
  const begin = device.event();
  const end = device.event();
  let best = Number.POSITIVE_INFINITY;
  for (let run = 0; run < RUNS; run++) {
    device.record(begin);
    work();
    device.record(end);
    device.wait(end);
    best = Math.min(best, device.elapsed(begin, end));
  }
  return best;
}
