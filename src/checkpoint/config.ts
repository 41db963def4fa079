import { z } from "zod";
import { readRope, stretchedLength } from "./rope.ts";
import { CheckpointError, type GenerationDefaults, type ModelConfig } from "./types.ts";

/** What transformers' configuration class of each architecture takes for a field that config.json leaves out. */
const ARCHITECTURES = {
  llama: { kvHeads: null, headDim: null, maxPosition: 2048, window: 0, bos: 1, eos: 2 },
  mistral: { kvHeads: 8, headDim: null, maxPosition: 131072, window: 4096, bos: 1, eos: 2 },
  qwen2: { kvHeads: 32, headDim: null, maxPosition: 32768, window: 4096, bos: null, eos: null },
  qwen3: { kvHeads: 32, headDim: 128, maxPosition: 32768, window: 4096, bos: null, eos: null },
} as const;

export type Architecture = keyof typeof ARCHITECTURES;
export const ARCHITECTURE_NAMES = Object.keys(ARCHITECTURES) as Architecture[];

/** What config.json and generation_config.json say. */
export interface ReadConfig {
  config: ModelConfig;
  /** False where config.json leaves the type to the weights. */
  dtypeIsKnown: boolean;
  /** Null: nothing was said, neither "none" nor which. */
  eosTokenIds: number[] | null;
  bosTokenId: number | null;
  defaultEosTokenIds: number[];
}

const count = (most: number) => {
  const error = `must be a whole number from 1 to ${most}`;
  return z.number({ error }).int({ error }).min(1, { error }).max(most, { error });
};
const tokenId = z.number().int({ error: "must be a token id" });
const tokenIds = z.union([tokenId, z.array(tokenId)], { error: "must be a token id or a list of them" }).nullish();

const configSchema = z.looseObject({
  vocab_size: count(1 << 22),
  hidden_size: count(1 << 18),
  intermediate_size: count(1 << 20),
  num_hidden_layers: count(1024),
  num_attention_heads: count(4096),
  num_key_value_heads: count(4096).nullish(),
  head_dim: count(1024).nullish(),
  max_position_embeddings: count(2 ** 30).nullish(),
  original_max_position_embeddings: count(2 ** 30).optional(),
  rms_norm_eps: z.number().min(0).max(1).nullish(),
  rope_theta: z.number().positive().max(1e18).nullish(),
  tie_word_embeddings: z.boolean().nullish(),
  attention_bias: z.boolean().nullish(),
  sliding_window: z.number().int().nonnegative().nullish(),
  use_sliding_window: z.boolean().nullish(),
  max_window_layers: z.number().int().nonnegative().nullish(),
  layer_types: z.array(z.string()).nullish(),
  torch_dtype: z.string().nullish(),
  dtype: z.string().nullish(),
  eos_token_id: tokenIds,
  bos_token_id: tokenIds,
});
type RawConfig = z.infer<typeof configSchema>;

const generationSchema = z.looseObject({
  temperature: z.number().nonnegative().nullish(),
  top_k: z.number().int().min(-1).nullish(),
  top_p: z.number().positive().max(1).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  repetition_penalty: z.number().positive().nullish(),
  eos_token_id: tokenIds,
  bos_token_id: tokenIds,
});

/**
 * Reads config.json in the form of transformers 4 or 5.
 * @param raw the parsed file
 * @param file its path, for messages
 * @throws CheckpointError naming the field that is missing, absurd, or asks for something that would be left out
 */
export function readConfig(raw: Record<string, unknown>, file: string): ReadConfig {
  const architecture = findArchitecture(raw, file);
  refuseUnsupported(raw, file);
  const parsed = check(configSchema, raw, file);
  const defaults = ARCHITECTURES[architecture];

  const numHeads = parsed.num_attention_heads;
  const kvDefault = parsed.num_key_value_heads === null ? null : defaults.kvHeads;
  const numKvHeads = parsed.num_key_value_heads ?? kvDefault ?? numHeads;
  const headDimDefault = parsed.head_dim === null ? null : defaults.headDim;
  const headDim = parsed.head_dim ?? headDimDefault ?? parsed.hidden_size / numHeads;
  checkHeads({ hiddenSize: parsed.hidden_size, numHeads, numKvHeads, headDim }, file);

  const maxPosition = parsed.max_position_embeddings ?? defaults.maxPosition;
  const rope = readRope(raw, maxPosition, file);
  const slidingWindow = readWindow(parsed, architecture, file);
  const stretched = stretchedLength(maxPosition, rope.scaling);
  const hasAttentionBias = (architecture === "llama" || architecture === "qwen3") && (parsed.attention_bias ?? false);
  const dtype = parsed.dtype ?? parsed.torch_dtype ?? null;
  return {
    config: {
      architecture,
      vocabularySize: parsed.vocab_size,
      hiddenSize: parsed.hidden_size,
      intermediateSize: parsed.intermediate_size,
      numLayers: parsed.num_hidden_layers,
      numHeads,
      numKvHeads,
      headDim,
      rmsNormEpsilon: parsed.rms_norm_eps ?? 1e-6,
      ropeTheta: rope.theta,
      ropeScaling: rope.scaling,
      attentionBias: architecture === "qwen2" || hasAttentionBias,
      attentionOutputBias: hasAttentionBias,
      tieWordEmbeddings: parsed.tie_word_embeddings ?? false,
      maxPosition: slidingWindow > 0 ? Math.min(stretched, slidingWindow) : stretched,
      slidingWindow,
      dtype: dtype === null ? "bfloat16" : readDtype(dtype, file),
    },
    dtypeIsKnown: dtype !== null,
    eosTokenIds: listIds(parsed.eos_token_id),
    bosTokenId: listIds(parsed.bos_token_id)?.[0] ?? (parsed.bos_token_id === null ? null : defaults.bos),
    defaultEosTokenIds: defaults.eos === null ? [] : [defaults.eos],
  };
}

/** Reads generation_config.json; an empty one where there is none. */
export function readGenerationConfig(raw: Record<string, unknown> | null, file: string) {
  const parsed = check(generationSchema, raw ?? {}, file);
  const generation: GenerationDefaults = {
    temperature: parsed.temperature ?? undefined,
    topK: parsed.top_k === null || parsed.top_k === undefined ? undefined : Math.max(0, parsed.top_k),
    topP: parsed.top_p ?? undefined,
    minP: parsed.min_p ?? undefined,
    repetitionPenalty: parsed.repetition_penalty ?? undefined,
  };
  return {
    generation: Object.fromEntries(Object.entries(generation).filter(([, value]) => value !== undefined)),
    eosTokenIds: listIds(parsed.eos_token_id),
    bosTokenId: listIds(parsed.bos_token_id)?.[0] ?? null,
  };
}

/**
 * The relations between head counts that attention rests on.
 * @throws CheckpointError naming the field to change
 */
export function checkHeads(
  {
    hiddenSize,
    numHeads,
    numKvHeads,
    headDim,
  }: Pick<ModelConfig, "hiddenSize" | "numHeads" | "numKvHeads" | "headDim">,
  file: string,
): void {
  if (!Number.isInteger(headDim)) {
    throw new CheckpointError(
      `${file}: head_dim is not given, and hidden_size ${hiddenSize} is not a multiple of num_attention_heads ${numHeads}`,
    );
  }
  if (headDim < 2 || headDim > 1024) throw new CheckpointError(`${file}: head_dim ${headDim} is not from 2 to 1024`);
  if (headDim % 2 !== 0) throw new CheckpointError(`${file}: head_dim ${headDim} is odd; rotary embedding needs pairs`);
  if (numHeads % numKvHeads !== 0) {
    throw new CheckpointError(
      `${file}: num_attention_heads ${numHeads} is not a multiple of num_key_value_heads ${numKvHeads}`,
    );
  }
}

function findArchitecture(raw: Record<string, unknown>, file: string): Architecture {
  const named = Array.isArray(raw.architectures) ? raw.architectures.filter((name) => typeof name === "string") : [];
  const modelType = typeof raw.model_type === "string" ? raw.model_type : named[0]?.match(/^(\w+)ForCausalLM$/)?.[1];
  const found = ARCHITECTURE_NAMES.find((name) => name === modelType?.toLowerCase());
  if (found === undefined || (named.length > 0 && !named.some((name) => name.endsWith("ForCausalLM")))) {
    const what = [raw.model_type, ...named].filter((name) => typeof name === "string").join(", ") || "none named";
    throw new CheckpointError(
      `${file}: architecture not supported: ${what}. Supported: ${ARCHITECTURE_NAMES.join(", ")} (…ForCausalLM)`,
    );
  }
  return found;
}

/** Features that change what the model computes and that no model here has: leaving them out would be silently wrong. */
function refuseUnsupported(raw: Record<string, unknown>, file: string): void {
  const refuse = (field: string, why: string) => {
    throw new CheckpointError(`${file}: ${field} ${JSON.stringify(raw[field]).slice(0, 80)} is not supported: ${why}`);
  };
  if (raw.quantization_config) refuse("quantization_config", "take the unquantized checkpoint, or a GGUF file");
  if (raw.mlp_bias) refuse("mlp_bias", "the MLP has no bias here");
  if ((raw.hidden_act ?? "silu") !== "silu") refuse("hidden_act", "only silu is");
}

function readWindow(parsed: RawConfig, architecture: Architecture, file: string): number {
  const window =
    parsed.sliding_window === undefined ? ARCHITECTURES[architecture].window : (parsed.sliding_window ?? 0);
  if (architecture === "llama") return 0;
  if (architecture === "mistral") return window;
  const layers = parsed.layer_types;
  const other = layers?.find((type) => type !== "full_attention" && type !== "sliding_attention");
  if (other !== undefined) throw new CheckpointError(`${file}: layer_types ${JSON.stringify(other)} is not supported`);
  const slides = layers?.includes("sliding_attention") ?? (parsed.max_window_layers ?? 28) < parsed.num_hidden_layers;
  return parsed.use_sliding_window && slides ? window : 0;
}

function readDtype(name: string, file: string): ModelConfig["dtype"] {
  const plain = name.replace(/^torch\./, "");
  if (plain === "float32" || plain === "bfloat16" || plain === "float16") return plain;
  throw new CheckpointError(`${file}: dtype ${JSON.stringify(name)} is not supported: float32, bfloat16 or float16`);
}

function listIds(ids: number | number[] | null | undefined): number[] | null {
  if (ids === null || ids === undefined) return null;
  return (typeof ids === "number" ? [ids] : ids).filter((id) => id >= 0);
}

function check<T extends z.ZodType>(schema: T, raw: Record<string, unknown>, file: string): z.infer<T> {
  const result = schema.safeParse(raw);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const field = issue.path.join(".");
  const value = raw[String(issue.path[0])];
  const given = value === undefined ? "it is missing" : `it is ${JSON.stringify(value)?.slice(0, 80)}`;
  throw new CheckpointError(`${file}: ${field} ${issue.message.replace(/^Invalid input: /, "")}; ${given}`);
}
