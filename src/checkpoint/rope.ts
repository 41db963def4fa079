import { isObject } from "./read.ts";
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
  const parameters = new RopeParameters(raw, maxPosition, file);
  const partial = parameters.values.partial_rotary_factor ?? raw.partial_rotary_factor ?? 1;
  if (partial !== 1) throw parameters.unsupported(`partial_rotary_factor ${JSON.stringify(partial)}`);
  if ("full_attention" in parameters.values || "sliding_attention" in parameters.values) {
    throw parameters.unsupported("rotary embedding by kind of layer");
  }
  const theta = parameters.number("rope_theta", typeof raw.rope_theta === "number" ? raw.rope_theta : 10000);
  return { theta, scaling: readScaling(parameters) };
}

function readScaling(parameters: RopeParameters): RopeScaling {
  const type = parameters.values.rope_type ?? parameters.values.type ?? "default";
  switch (type) {
    case "default":
      return { type: "none" };
    case "linear":
      return { type: "linear", factor: parameters.number("factor") };
    case "llama3":
      return readLlama3(parameters);
    case "yarn":
      return readYarn(parameters);
    default:
      throw parameters.unsupported(`rotary scaling ${JSON.stringify(type)}`);
  }
}

function readLlama3(parameters: RopeParameters): RopeScaling {
  const lowFreqFactor = parameters.number("low_freq_factor");
  const highFreqFactor = parameters.number("high_freq_factor");
  if (highFreqFactor <= lowFreqFactor) throw parameters.error("high_freq_factor must be above low_freq_factor");
  const originalMaxPosition = parameters.original();
  return { type: "llama3", factor: parameters.number("factor"), lowFreqFactor, highFreqFactor, originalMaxPosition };
}

function readYarn(parameters: RopeParameters): RopeScaling {
  if (parameters.values.truncate === false) throw parameters.unsupported("yarn with truncate false");
  const originalMaxPosition = parameters.original();
  const factor = parameters.number("factor", parameters.maxPosition / originalMaxPosition);
  const { mscale, mscale_all_dim } = parameters.values;
  const scale =
    isFilled(mscale) && isFilled(mscale_all_dim)
      ? yarnScale(factor, parameters.number("mscale")) / yarnScale(factor, parameters.number("mscale_all_dim"))
      : yarnScale(factor);
  return {
    type: "yarn",
    factor,
    originalMaxPosition,
    betaFast: parameters.number("beta_fast", 32),
    betaSlow: parameters.number("beta_slow", 1),
    attentionFactor: parameters.number("attention_factor", scale),
  };
}

/** The object that holds the parameters of rotary embedding, under the name that the file has for it. */
class RopeParameters {
  readonly values: Record<string, unknown>;
  readonly #field: string;
  readonly #original: unknown;

  constructor(
    raw: Record<string, unknown>,
    readonly maxPosition: number,
    readonly file: string,
  ) {
    this.#field = isFilled(raw.rope_scaling) ? "rope_scaling" : "rope_parameters";
    this.#original = raw.original_max_position_embeddings;
    const values = raw[this.#field] ?? {};
    if (!isObject(values)) throw new CheckpointError(`${file}: ${this.#field} must be an object`);
    this.values = values;
  }

  number(name: string, fallback?: number): number {
    const value = this.values[name] ?? fallback;
    if (typeof value === "number" && Number.isFinite(value) && value > 0) return value;
    throw this.error(`${name} must be a number above 0, not ${JSON.stringify(value)}`);
  }

  /** The length before stretching; beside the object it wins, as in transformers. */
  original(): number {
    if (typeof this.#original === "number") return this.#original;
    return this.number("original_max_position_embeddings", this.maxPosition);
  }

  error(what: string): CheckpointError {
    return new CheckpointError(`${this.file}: ${this.#field}.${what}`);
  }

  unsupported(what: string): CheckpointError {
    const kinds = "default, linear, llama3 or yarn";
    return new CheckpointError(`${this.file}: ${what} is not supported; ${this.#field} may be ${kinds}`);
  }
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
