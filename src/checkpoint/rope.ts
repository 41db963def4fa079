import { CheckpointError, type RopeScaling } from "./types.ts";

/** YaRN's default scale of the rotary cosines and sines (https://arxiv.org/abs/2309.00071, section 3.4). */
export function yarnScale(factor: number, multiplier = 1): number {
  return factor <= 1 ? 1 : 0.1 * multiplier * Math.log(factor) + 1;
}

/**
 * Reads rotary scaling as transformers does: `rope_scaling` of transformers 4 wins over `rope_parameters` of 5.
 * @param raw config.json
 * @throws CheckpointError for a kind of scaling that is not implemented, and for missing or odd parameters
 */
export function readRope(raw: Record<string, unknown>, maxPosition: number, file: string) {
  const field = isFilled(raw.rope_scaling) ? "rope_scaling" : "rope_parameters";
  const parameters = (raw[field] ?? {}) as Record<string, unknown>;
  if (typeof parameters !== "object" || Array.isArray(parameters)) {
    throw new CheckpointError(`${file}: ${field} must be an object`);
  }
  const number = (name: string, fallback?: number): number => {
    const value = parameters[name] ?? fallback;
    if (typeof value !== "number" || !Number.isFinite(value) || value <= 0) {
      throw new CheckpointError(`${file}: ${field}.${name} must be a number above 0, not ${JSON.stringify(value)}`);
    }
    return value;
  };
  const unsupported = (what: string) =>
    new CheckpointError(`${file}: ${what} is not supported; ${field} may be default, linear, llama3 or yarn`);

  if ("full_attention" in parameters || "sliding_attention" in parameters) {
    throw unsupported(`${field} by kind of layer`);
  }
  const partial = parameters.partial_rotary_factor ?? raw.partial_rotary_factor ?? 1;
  if (partial !== 1) throw unsupported(`partial_rotary_factor ${JSON.stringify(partial)}`);
  const theta = number("rope_theta", typeof raw.rope_theta === "number" ? raw.rope_theta : 10000);
  const originalDefault = raw.original_max_position_embeddings as number | undefined;
  const original = () =>
    originalDefault === undefined ? number("original_max_position_embeddings", maxPosition) : originalDefault;

  const type = parameters.rope_type ?? parameters.type ?? "default";
  let scaling: RopeScaling;
  switch (type) {
    case "default":
      scaling = { type: "none" };
      break;
    case "linear":
      scaling = { type: "linear", factor: number("factor") };
      break;
    case "llama3":
      scaling = {
        type: "llama3",
        factor: number("factor"),
        lowFreqFactor: number("low_freq_factor"),
        highFreqFactor: number("high_freq_factor"),
        originalMaxPosition: original(),
      };
      if (scaling.highFreqFactor <= scaling.lowFreqFactor) {
        throw new CheckpointError(`${file}: ${field}.high_freq_factor must be above low_freq_factor`);
      }
      break;
    case "yarn": {
      if (parameters.truncate === false) throw unsupported("yarn with truncate false");
      const factor = number("factor", maxPosition / original());
      const scales = isFilled(parameters.mscale) && isFilled(parameters.mscale_all_dim);
      const attentionDefault = scales
        ? yarnScale(factor, number("mscale")) / yarnScale(factor, number("mscale_all_dim"))
        : yarnScale(factor);
      scaling = {
        type: "yarn",
        factor,
        originalMaxPosition: original(),
        betaFast: number("beta_fast", 32),
        betaSlow: number("beta_slow", 1),
        attentionFactor: number("attention_factor", attentionDefault),
      };
      break;
    }
    default:
      throw unsupported(`rotary scaling ${JSON.stringify(type)}`);
  }
  return { theta, scaling };
}

/** What Python calls true: transformers skips an empty `rope_scaling` and an `mscale` of 0. */
function isFilled(value: unknown): boolean {
  return typeof value === "object" && value !== null ? Object.keys(value).length > 0 : Boolean(value);
}

/** The longest sequence that `scaling` was made for. YaRN's configurations often keep the length before stretching. */
export function stretchedLength(maxPosition: number, scaling: RopeScaling): number {
  if (scaling.type !== "yarn") return maxPosition;
  return Math.max(maxPosition, Math.floor(scaling.originalMaxPosition * scaling.factor));
}

/**
 * Finds the llama3 scaling behind the `rope_freqs.weight` of a GGUF: what each frequency is divided by.
 * Only the ratios of the scaling's parameters show in it, so one of the families in use is looked for.
 * @param factors [head_dim / 2]
 */
export function llama3FromFactors(
  factors: Float32Array,
  theta: number,
  originalMaxPosition: number | undefined,
  file: string,
): RopeScaling {
  const factor = Math.max(...factors);
  if (factors.every((f) => f === 1)) return { type: "none" };
  const originals = originalMaxPosition === undefined ? [8192, 4096, 2048, 16384, 32768] : [originalMaxPosition];
  for (const original of originals) {
    for (const [low, high] of [[1, 4] as const, [1, 32] as const]) {
      const expected = llama3Factors(factors.length, theta, factor, low, high, original);
      if (expected.every((f, i) => Math.abs(f - factors[i]) <= 1e-4 * f)) {
        return { type: "llama3", factor, lowFreqFactor: low, highFreqFactor: high, originalMaxPosition: original };
      }
    }
  }
  throw new CheckpointError(`${file}: rope_freqs.weight is no llama3 rotary scaling, the only kind supported here`);
}

function llama3Factors(count: number, theta: number, factor: number, low: number, high: number, original: number) {
  return Array.from({ length: count }, (_, i) => {
    const wavelength = 2 * Math.PI * theta ** (i / count);
    if (wavelength < original / high) return 1;
    if (wavelength > original / low) return factor;
    const smooth = (original / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
}
