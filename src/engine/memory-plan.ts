import type { Checkpoint, ModelConfig } from "../checkpoint/types.ts";
import type { EngineOptions } from "../message/types.ts";
import type { DeviceProperties } from "../native/device.ts";
import { bytesOf, DType } from "../native/tensor.ts";

/** What a device serves with where the command line leaves a field out. */
interface DeviceDefaults {
  maxRunningRequests: number;
  maxPrefillLength: number;
  graphMaxBatchSize: number;
  memoryRatio: number;
}

/** Sequences that run at the same time where the command line leaves that out. */
export const DEFAULT_RUNNING_REQUESTS = { gpu: 256, cpu: 64 } as const;

/** A GPU has memory of its own to fill and a launch cost that graphs save; a CPU has neither. */
function deviceDefaults(gpu: boolean): DeviceDefaults {
  return gpu
    ? {
        maxRunningRequests: DEFAULT_RUNNING_REQUESTS.gpu,
        maxPrefillLength: 8192,
        graphMaxBatchSize: 256,
        memoryRatio: 0.9,
      }
    : { maxRunningRequests: DEFAULT_RUNNING_REQUESTS.cpu, maxPrefillLength: 512, graphMaxBatchSize: 0, memoryRatio: 0 };
}

/** What a CPU gives the KV pool at the least, and the share of the free memory that a whole context may take there. */
const CPU_POOL_BYTES = 2 ** 29;
const CPU_CONTEXT_SHARE = 0.25;

/** Tokens of context without which a pool is of no use. */
const LEAST_CONTEXT = 16;

/** Rows of logits where a step has the tokens: so prompts get their logprobs in chunks that are not tiny. */
const LEAST_SAMPLES = 64;

/** Sizes that are known before anything is allocated. */
export interface StepLimits {
  maxSequences: number;
  /** Rows of a step at most. */
  maxTokens: number;
  /** Rows of a step whose logits are wanted at most: fewer than maxTokens. */
  maxSamples: number;
  graphMaxBatchSize: number;
}

export function stepLimits(options: EngineOptions, properties: DeviceProperties): StepLimits {
  const defaults = deviceDefaults(!properties.floatActivations);
  const maxSequences = options.maxRunningRequests || defaults.maxRunningRequests;
  const graphMaxBatchSize = options.graphMaxBatchSize < 0 ? defaults.graphMaxBatchSize : options.graphMaxBatchSize;
  // Every running sequence decodes in every step, and prefill always has room to go on.
  const maxTokens = Math.max(options.maxPrefillLength || defaults.maxPrefillLength, maxSequences + 1);
  return {
    maxSequences,
    maxTokens,
    maxSamples: Math.max(maxSequences, Math.min(LEAST_SAMPLES, maxTokens - 1)),
    graphMaxBatchSize: Math.min(graphMaxBatchSize, maxSequences),
  };
}

/**
 * Bytes of a model's weights on a device, but for what it pads them with.
 * @throws Error when they do not fit, saying by how much: a CPU takes memory when it is written, and too much would be
 * noticed by the kernel, which kills.
 */
export function planWeights(
  { config, tensors }: Pick<Checkpoint, "config" | "tensors">,
  dtype: DType,
  activationType: DType,
  properties: Pick<DeviceProperties, "freeMemory" | "name" | "keeps">,
): number {
  const unread = config.tieWordEmbeddings ? "lm_head.weight" : "";
  const bytes =
    tensors.size === 0
      ? bytesOf(dtype, matrixValues(config))
      : [...tensors.values()].reduce((sum, { name, type, shape }) => {
          const stored = DType[type];
          const kept = stored >= DType.Q8_0 && properties.keeps(stored) ? stored : dtype;
          const count = shape.reduce((product, length) => product * length, 1);
          return sum + (name === unread ? 0 : bytesOf(shape.length > 1 ? kept : activationType, count));
        }, 0);
  const { freeMemory, name } = properties;
  if (bytes <= freeMemory) return bytes;
  const [needed, free, lacking] = [bytes, freeMemory, bytes - freeMemory].map(
    (value) => `${(value / 1e9).toFixed(1)} GB`,
  );
  throw new Error(`the weights need ${needed}, ${free} are free: ${lacking} too little (${name})`);
}

/** Values of all matrices. */
function matrixValues(config: ModelConfig): number {
  const { vocabularySize, hiddenSize, intermediateSize, numLayers, numHeads, numKvHeads, headDim } = config;
  const attention = (2 * numHeads + 2 * numKvHeads) * headDim * hiddenSize;
  const tables = (config.tieWordEmbeddings ? 1 : 2) * vocabularySize * hiddenSize;
  return numLayers * (attention + 3 * intermediateSize * hiddenSize) + tables;
}

export interface PoolPlan {
  numPages: number;
  /** The least of model, override and pool, in tokens. */
  maxContext: number;
  /** Bytes of the pool, with the page that padding rows write to. */
  bytes: number;
}

/**
 * Pages of the KV pool, and with them the longest sequence.
 * @throws Error when not even a small context fits, saying by how much.
 */
export function planPool(
  config: ModelConfig,
  cacheType: DType,
  options: EngineOptions,
  properties: DeviceProperties,
  maxSequences: number,
): PoolPlan {
  const { pageSize } = options;
  const tokenBytes = 2 * config.numLayers * bytesOf(cacheType, config.numKvHeads * config.headDim);
  const pageBytes = tokenBytes * pageSize;
  const wanted = Math.min(options.maxSequenceLength || config.maxPosition, config.maxPosition);
  const free = properties.freeMemory;
  const gpu = !properties.floatActivations;
  const ratio = options.memoryRatio || deviceDefaults(gpu).memoryRatio;
  const budget =
    ratio > 0
      ? free * ratio
      : Math.min(free * 0.9, Math.max(CPU_POOL_BYTES, Math.min(wanted * tokenBytes, free * CPU_CONTEXT_SHARE)));
  // More pages than all sequences can hold at their longest would never be used, but by the prefix cache of a GPU.
  const useful = gpu ? Number.POSITIVE_INFINITY : Math.ceil(wanted / pageSize) * maxSequences;
  const numPages = options.numPages || Math.min(Math.floor(budget / pageBytes) - 1, useful);
  const bytes = (numPages + 1) * pageBytes;
  const least = Math.ceil(Math.min(wanted, LEAST_CONTEXT) / pageSize);
  if (numPages < least) {
    const what = options.numPages ? `--num-pages ${numPages}` : `${gib(budget)} of device memory`;
    throw new Error(
      `the KV pool is too small: ${what} does not hold ${least} pages of ${pageBytes} bytes. ` +
        "Use a larger --num-pages or --memory-ratio, or a smaller model",
    );
  }
  if (bytes > free) {
    throw new Error(
      `the KV pool of ${numPages} pages needs ${gib(bytes)}, ${gib(free)} of device memory are free: ` +
        "use a smaller --num-pages",
    );
  }
  return { numPages, maxContext: Math.min(wanted, numPages * pageSize), bytes };
}

/** Bytes as GiB with two digits. */
export const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(2)} GiB`;
