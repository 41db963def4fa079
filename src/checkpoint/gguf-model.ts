import { type Architecture, checkHeads } from "./config.ts";
import type { GgufFile, GgufTensor, GgufValue } from "./gguf.ts";
import { PositionedFile } from "./read.ts";
import { stretchedLength, yarnScale } from "./rope.ts";
import { refuseOverlaps } from "./safetensors.ts";
import { CheckpointError, type ModelConfig, type RopeScaling, type TensorInfo } from "./types.ts";

/** GGUF's architectures that are models here. Mistral's models come as `llama`, from which they do not differ. */
const ARCHITECTURES: readonly Architecture[] = ["llama", "qwen2", "qwen3"];

const LAYER_TENSORS: Record<string, string> = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
};
const OTHER_TENSORS: Record<string, string> = {
  token_embd: "model.embed_tokens",
  output_norm: "model.norm",
  output: "lm_head",
};
const ROPE_FACTORS = "rope_freqs.weight";

/** Metadata by key, checked. The keys of an architecture are asked for without its name. */
export class Metadata {
  readonly architecture: Architecture;

  /** @throws CheckpointError where the architecture is not supported */
  constructor(
    readonly values: ReadonlyMap<string, GgufValue>,
    readonly path: string,
  ) {
    const name = this.string("general.architecture");
    const found = ARCHITECTURES.find((architecture) => architecture === name);
    if (found === undefined) {
      throw new CheckpointError(
        `${path}: architecture ${JSON.stringify(name ?? null)} is not supported in GGUF; supported: ${ARCHITECTURES.join(", ")}`,
      );
    }
    this.architecture = found;
  }

  string(key: string): string | undefined {
    return this.#get(key, "string") as string | undefined;
  }

  boolean(key: string): boolean | undefined {
    return this.#get(key, "boolean") as boolean | undefined;
  }

  strings(key: string): string[] | undefined {
    const value = this.values.get(key);
    if (value === undefined || (Array.isArray(value) && (value.length === 0 || typeof value[0] === "string"))) {
      return value as string[] | undefined;
    }
    throw new CheckpointError(`${this.path}: ${key} must be a list of strings`);
  }

  numbers(key: string): ArrayLike<number> | undefined {
    const value = this.values.get(key);
    if (value === undefined || ArrayBuffer.isView(value)) return value as ArrayLike<number> | undefined;
    if (Array.isArray(value) && (value.length === 0 || typeof value[0] === "number")) return value as number[];
    throw new CheckpointError(`${this.path}: ${key} must be a number or a list of numbers`);
  }

  number(key: string): number | undefined {
    return this.#get(key, "number") as number | undefined;
  }

  /** A value of the architecture. A list with one number for each layer will do if all are the same. */
  parameter(key: string): number | undefined {
    const full = `${this.architecture}.${key}`;
    const value = this.values.get(full);
    if (value === undefined || typeof value === "number") return value;
    const list = Array.from(this.numbers(full)!);
    if (list.length > 0 && list.every((entry) => entry === list[0])) return list[0];
    throw new CheckpointError(`${this.path}: ${full} differs between layers, which is not supported`);
  }

  /** A size: a whole number from 1 to `most`. */
  size(key: string, most: number, fallback?: number): number {
    const value = this.parameter(key) ?? fallback;
    if (value !== undefined && Number.isInteger(value) && value >= 1 && value <= most) return value;
    throw new CheckpointError(
      `${this.path}: ${this.architecture}.${key} must be a whole number from 1 to ${most}, ` +
        (value === undefined ? "and is missing" : `not ${value}`),
    );
  }

  #get(key: string, type: "string" | "boolean" | "number"): GgufValue | undefined {
    const value = this.values.get(key);
    if (value === undefined || typeof value === type) return value;
    throw new CheckpointError(`${this.path}: ${key} must be a ${type}`);
  }
}

/** Puts GGUF's tensors under Hugging Face's names and shapes. */
export function ggufTensors(file: GgufFile, metadata: Metadata): Map<string, TensorInfo> {
  const tensors = new Map<string, TensorInfo>();
  for (const tensor of file.tensors) {
    if (tensor.name === ROPE_FACTORS) continue;
    const name = huggingFaceName(tensor.name);
    if (name === null) {
      throw new CheckpointError(`${metadata.path}: ${tensor.name} is no part of a ${metadata.architecture} model here`);
    }
    tensors.set(name, {
      name,
      type: tensor.type,
      shape: tensor.dimensions.toReversed(),
      file: metadata.path,
      offset: tensor.offset,
      bytes: tensor.bytes,
      interleavedRows: metadata.architecture === "llama" && /\.attn_[qk]\.(weight|bias)$/.test(tensor.name),
    });
  }
  refuseOverlaps([...tensors.values()], metadata.path);
  return tensors;
}

function huggingFaceName(name: string): string | null {
  const match = name.match(/^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$/);
  if (match === null) return null;
  const [, layer, part, kind] = match;
  const table = layer === undefined ? OTHER_TENSORS : LAYER_TENSORS;
  if (!Object.hasOwn(table, part)) return null;
  return layer === undefined ? `${table[part]}.${kind}` : `model.layers.${Number(layer)}.${table[part]}.${kind}`;
}

/**
 * The model's sizes from GGUF's metadata and tensors.
 * @throws CheckpointError naming the key that is missing or asks for something that is not supported
 */
export function ggufConfig(file: GgufFile, metadata: Metadata, tensors: ReadonlyMap<string, TensorInfo>): ModelConfig {
  refuseUnsupported(metadata);
  const embedding = tensors.get("model.embed_tokens.weight");
  if (embedding === undefined) throw new CheckpointError(`${metadata.path}: token_embd.weight is missing`);
  const numHeads = metadata.size("attention.head_count", 4096);
  const hiddenSize = metadata.size("embedding_length", 1 << 18);
  const headDim = metadata.parameter("attention.key_length") ?? hiddenSize / numHeads;
  const numKvHeads = metadata.size("attention.head_count_kv", 4096, numHeads);
  checkHeads({ hiddenSize, numHeads, numKvHeads, headDim }, metadata.path);
  for (const key of ["attention.value_length", "rope.dimension_count"]) {
    const length = metadata.parameter(key) ?? headDim;
    if (length !== headDim) {
      throw new CheckpointError(
        `${metadata.path}: ${metadata.architecture}.${key} ${length} is not the head's ${headDim}, which is not supported`,
      );
    }
  }
  const trained = metadata.size("context_length", 2 ** 30);
  const ropeTheta = metadata.parameter("rope.freq_base") ?? 10000;
  const ropeScaling = readScaling(file, metadata, headDim, trained);
  const stretched = stretchedLength(trained, ropeScaling);
  const slidingWindow = metadata.parameter("attention.sliding_window") ?? 0;
  return {
    architecture: metadata.architecture,
    vocabularySize: embedding.shape[0],
    hiddenSize,
    intermediateSize: metadata.size("feed_forward_length", 1 << 20),
    numLayers: metadata.size("block_count", 1024),
    numHeads,
    numKvHeads,
    headDim,
    rmsNormEpsilon: metadata.parameter("attention.layer_norm_rms_epsilon") ?? 1e-6,
    ropeTheta,
    ropeScaling,
    attentionBias: tensors.has("model.layers.0.self_attn.q_proj.bias"),
    attentionOutputBias: tensors.has("model.layers.0.self_attn.o_proj.bias"),
    tieWordEmbeddings: !tensors.has("lm_head.weight"),
    maxPosition: slidingWindow > 0 ? Math.min(stretched, slidingWindow) : stretched,
    slidingWindow,
    dtype: matrixType(file.tensors),
  };
}

/** Features that change what is computed and that no model here has. */
function refuseUnsupported(metadata: Metadata): void {
  const parts = metadata.number("split.count") ?? 1;
  if (parts > 1) {
    throw new CheckpointError(
      `${metadata.path}: a model split into ${parts} files is not supported: join them with "llama-gguf-split --merge"`,
    );
  }
  const neutral: Record<string, number> = {
    expert_count: 0,
    logit_scale: 1,
    embedding_scale: 1,
    residual_scale: 1,
    "attention.scale": 0,
    attn_logit_softcapping: 0,
    final_logit_softcapping: 0,
  };
  for (const [key, value] of Object.entries(neutral)) {
    const given = metadata.parameter(key) ?? value;
    if (given !== value && given !== 0) {
      throw new CheckpointError(`${metadata.path}: ${metadata.architecture}.${key} ${given} is not supported`);
    }
  }
}

function readScaling(file: GgufFile, metadata: Metadata, headDim: number, trained: number): RopeScaling {
  const type = metadata.string(`${metadata.architecture}.rope.scaling.type`) ?? "none";
  const parameter = (name: string) => metadata.parameter(`rope.scaling.${name}`);
  const factor = parameter("factor") ?? metadata.parameter("rope.scale_linear") ?? 1;
  const factors = file.tensors.find((tensor) => tensor.name === ROPE_FACTORS);
  if (factors !== undefined) {
    if (type !== "none") {
      throw new CheckpointError(
        `${metadata.path}: ${ROPE_FACTORS} together with rope.scaling.type ${type} is not supported`,
      );
    }
    return readFactors(factors, headDim, metadata.path);
  }
  if (type === "none" || (type === "linear" && factor === 1)) return { type: "none" };
  if (!(factor > 0)) throw new CheckpointError(`${metadata.path}: rope.scaling.factor ${factor} must be above 0`);
  if (type === "linear") return { type: "linear", factor };
  if (type !== "yarn" || parameter("yarn_log_multiplier")) {
    throw new CheckpointError(
      `${metadata.path}: rope.scaling.type ${type} is not supported; none, linear, llama3 (by ${ROPE_FACTORS}) and yarn are`,
    );
  }
  return {
    type: "yarn",
    factor,
    originalMaxPosition: parameter("original_context_length") ?? trained,
    betaFast: parameter("yarn_beta_fast") ?? 32,
    betaSlow: parameter("yarn_beta_slow") ?? 1,
    // llama.cpp multiplies the paper's scale by attn_factor.
    attentionFactor: yarnScale(factor) * (parameter("attn_factor") ?? parameter("yarn_attn_factor") ?? 1),
  };
}

function readFactors(tensor: GgufTensor, headDim: number, path: string): RopeScaling {
  if (tensor.type !== "F32" || tensor.bytes !== 2 * headDim) {
    throw new CheckpointError(`${path}: ${tensor.name} must be F32 [${headDim / 2}]`);
  }
  const file = new PositionedFile(path);
  try {
    const factors = new Float32Array(file.read(tensor.offset, tensor.bytes).buffer);
    if (factors.every((factor) => factor > 0 && factor < Number.POSITIVE_INFINITY)) return { type: "factors", factors };
    throw new CheckpointError(`${path}: ${tensor.name} holds a factor that is not above 0`);
  } finally {
    file.close();
  }
}

function matrixType(tensors: readonly GgufTensor[]): ModelConfig["dtype"] {
  const types = new Set(tensors.filter((tensor) => tensor.dimensions.length === 2).map((tensor) => tensor.type));
  if ([...types].some((type) => type.startsWith("Q"))) return "quantized";
  if (types.has("BF16")) return "bfloat16";
  return types.has("F16") ? "float16" : "float32";
}
