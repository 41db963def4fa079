import type { LogitBias, Penalties } from "../message/types.ts";
import { MSGL_MAX_TOP_LOGPROBS } from "../native/symbols.ts";

/** Words of a msgl_penalties, of an entry of msgl_logit_bias, and of a msgl_logprob_row. */
export const PENALTY_WORDS = 8;
export const BIAS_WORDS = 3;
export const LOGPROB_WORDS = 2;

/** Most words that a row of logprobs comes back as: its own, and id and logprob of each alternative. */
export const LOGPROB_RESULT_WORDS = 1 + 2 * MSGL_MAX_TOP_LOGPROBS;

/** What a sequence wants done to its logits before a token is drawn, and told of them. */
export interface LogitOptions {
  promptLength: number;
  penalties: Penalties | null;
  bias: LogitBias | null;
  /** Ids that cannot be drawn as long as the sequence is shorter than minLength. */
  banned: readonly number[];
  minLength: number;
  /** Alternatives to report with the token's logprob; -1: no logprobs. */
  logprobs: number;
}

/**
 * What is done to the logits of a step and told of them, staged in the order of its sample rows. Most steps have
 * nothing of it, and pay nothing.
 */
export class LogitRows {
  penalties = 0;
  biases = 0;
  logprobs = 0;
  /** Most alternatives that a row wants. */
  top = 0;
  /** Some row whose logprobs are wanted is changed: they are of the logits before that. */
  keepsRaw = false;
  private readonly penaltyFloats: Float32Array;
  private readonly biasFloats: Float32Array;

  constructor(
    /** [maxSequences, PENALTY_WORDS] */
    readonly penaltyRows: Int32Array,
    /** [maxSamples, LOGPROB_WORDS] */
    readonly logprobRows: Int32Array,
    /** [maxSequences * MAX_LOGIT_ENTRIES, BIAS_WORDS] */
    readonly biasEntries: Int32Array,
  ) {
    const floats = (words: Int32Array) => new Float32Array(words.buffer, words.byteOffset, words.length);
    this.penaltyFloats = floats(penaltyRows);
    this.biasFloats = floats(biasEntries);
  }

  get empty(): boolean {
    return this.penalties + this.biases + this.logprobs === 0;
  }

  clear(): void {
    this.penalties = this.biases = this.logprobs = this.top = 0;
    this.keepsRaw = false;
  }

  /** Adds what `options` want of row `row` of the logits, from which token `length` of the sequence in `slot` is drawn. */
  add(row: number, slot: number, length: number, options: LogitOptions): void {
    const { penalties, bias, logprobs } = options;
    const changed = this.penalties + this.biases;
    if (penalties !== null) this.addPenalties(row, slot, length, options.promptLength, penalties);
    if (bias !== null) for (let i = 0; i < bias.ids.length; i++) this.addBias(row, bias.ids[i], bias.values[i]);
    if (length < options.minLength) for (const id of options.banned) this.addBias(row, id, Number.NEGATIVE_INFINITY);
    if (logprobs < 0) return;
    if (this.penalties + this.biases > changed) this.keepsRaw = true;
    this.addLogprob(row, -1, logprobs);
  }

  /** Asks for a token's logprob by row `row` of the logits, -1: the one that is drawn, with `top` alternatives. */
  addLogprob(row: number, token: number, top: number): void {
    const at = this.logprobs++ * LOGPROB_WORDS;
    this.logprobRows[at] = row;
    this.logprobRows[at + 1] = token;
    if (top > this.top) this.top = top;
  }

  private addPenalties(row: number, slot: number, length: number, promptLength: number, penalties: Penalties): void {
    const at = this.penalties++ * PENALTY_WORDS;
    this.penaltyRows[at] = row;
    this.penaltyRows[at + 1] = slot;
    this.penaltyRows[at + 2] = promptLength;
    this.penaltyRows[at + 3] = length;
    this.penaltyFloats[at + 4] = penalties.repetition;
    this.penaltyFloats[at + 5] = penalties.presence;
    this.penaltyFloats[at + 6] = penalties.frequency;
    this.penaltyRows[at + 7] = 0;
  }

  private addBias(row: number, id: number, value: number): void {
    const at = this.biases++ * BIAS_WORDS;
    this.biasEntries[at] = row;
    this.biasEntries[at + 1] = id;
    this.biasFloats[at + 2] = value;
  }
}
