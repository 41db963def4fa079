/**
 * The checkpoint room: what lies on disk, described but not loaded. Pure TypeScript, no device.
 * Read types.ts (what a checkpoint is), then open.ts (how one is found and recognised).
 */

/** Element types of stored tensors, as msgl_dtype has them. */
export type StoredType = "F32" | "F16" | "BF16" | "Q8_0" | "Q4_0" | "Q4_1" | "Q4_K" | "Q6_K";

export interface TensorInfo {
  /** Hugging Face's name, e.g. "model.layers.0.self_attn.q_proj.weight", also for tensors from GGUF. */
  name: string;
  type: StoredType;
  /** Row-major, as Hugging Face has it: a Linear's weight is [out, in]. */
  shape: readonly number[];
  /** Absolute path of the file, first byte in it, and length in bytes. */
  file: string;
  offset: number;
  bytes: number;
  /**
   * GGUF stores the q and k rows of `llama` models in the order of interleaved rotary: within each head, row 2 i + h
   * of the file is row h * head_dim / 2 + i of the model. True where that has to be undone.
   */
  interleavedRows: boolean;
}

export type RopeScaling =
  | { type: "none" }
  | { type: "linear"; factor: number }
  | { type: "llama3"; factor: number; lowFreqFactor: number; highFreqFactor: number; originalMaxPosition: number }
  /** GGUF's form of llama3: what the frequency of each pair of dimensions is divided by, [head_dim / 2]. */
  | { type: "factors"; factors: Float32Array }
  | {
      type: "yarn";
      factor: number;
      originalMaxPosition: number;
      betaFast: number;
      betaSlow: number;
      attentionFactor: number;
    };

/** config.json, or GGUF's metadata, in one form. */
export interface ModelConfig {
  /** Key of the model registry: "llama", "mistral", "qwen2", "qwen3". */
  architecture: string;
  vocabularySize: number;
  hiddenSize: number;
  intermediateSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  rmsNormEpsilon: number;
  ropeTheta: number;
  ropeScaling: RopeScaling;
  /** Bias of the q, k and v products. */
  attentionBias: boolean;
  /** Bias of attention's output product (llama's and qwen3's attention_bias have it, qwen2 does not). */
  attentionOutputBias: boolean;
  tieWordEmbeddings: boolean;
  /** Longest sequence the model was made for. */
  maxPosition: number;
  /** Sliding window in tokens, or 0. A window smaller than maxPosition limits maxPosition to itself. */
  slidingWindow: number;
  /** The checkpoint's own type: "quantized" where its matrices are GGUF blocks. */
  dtype: "float32" | "bfloat16" | "float16" | "quantized";
}

/** generation_config.json: what requests that leave a field out get. */
export interface GenerationDefaults {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repetitionPenalty?: number;
}

/** What a tokenizer is built from: plain data, so that it can cross to a worker. */
export interface TokenizerSource {
  /** tokenizer.json, read from the folder or rebuilt from GGUF metadata. */
  tokenizerJson: Record<string, unknown>;
  tokenizerConfig: Record<string, unknown>;
  /** Jinja source of the default chat template, if there is one. */
  chatTemplate: string | null;
}

export interface Checkpoint {
  /** As the user gave it: shown in /v1/models. */
  name: string;
  /** Folder, or .gguf file. */
  path: string;
  format: "safetensors" | "gguf" | "config-only";
  config: ModelConfig;
  /** By Hugging Face name. Empty for "config-only". */
  tensors: ReadonlyMap<string, TensorInfo>;
  eosTokenIds: readonly number[];
  bosTokenId: number | null;
  generation: GenerationDefaults;
  /** Null where the folder has no tokenizer: such a model takes and gives token ids only. */
  tokenizer: TokenizerSource | null;
}

/** Anything wrong with what lies on disk: one clear line, exit code 1. */
export class CheckpointError extends Error {}
