/**
 * What the scheduler chose for one step, written straight into pinned staging, from where the engine uploads it.
 * A batch belongs to a step slot: Engine.nextBatch() hands out a cleared one and takes it back by itself.
 */
import type { Sampling } from "../message/types.ts";
import type { LogitOptions, LogitRows } from "./logit-rows.ts";

/** Words of a row of `sequence_rows` (see msgl_expand). */
export const ROW_WORDS = 7;
/** Words of a patch of msgl_table_write. */
export const PATCH_WORDS = 4;
/** Words of a msgl_sampling. */
export const SAMPLING_WORDS = 8;

export const GREEDY: Sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0 };

export interface BatchLimits {
  maxSequences: number;
  /** Rows of logits, at least maxSequences. */
  maxSamples: number;
  maxTokens: number;
  /** Words that page-table and token-table patches of one step may carry. */
  maxPageValues: number;
  maxTokenValues: number;
  pageSize: number;
}

/** Runs of words for one table on the device: `patches` [count, 4], `values` [length]. */
export class TablePatches {
  count = 0;
  length = 0;
  constructor(
    readonly patches: Int32Array,
    readonly values: Int32Array,
  ) {}

  clear(): void {
    this.count = 0;
    this.length = 0;
  }

  /** Words that still fit. */
  get room(): number {
    return this.values.length - this.length;
  }

  /** Writes source[from .. to) to (row, column ...). Throws a RangeError when the staging is full. */
  write(row: number, column: number, source: ArrayLike<number>, from: number, to: number): void {
    const size = to - from;
    if (size <= 0) return;
    if (size > this.room || (this.count + 1) * PATCH_WORDS > this.patches.length) {
      throw new RangeError(`table staging is full: ${size} more words do not fit`);
    }
    const at = this.count++ * PATCH_WORDS;
    this.patches[at] = row;
    this.patches[at + 1] = column;
    this.patches[at + 2] = size;
    this.patches[at + 3] = this.length;
    for (let i = from; i < to; i++) this.values[this.length++] = source[i] as number;
  }
}

/** A prompt whose tokens' logprobs are wanted, with `top` alternatives. */
export interface Score {
  tokens: Int32Array;
  /** Position of the first token from whose logits that of the next is wanted. */
  from: number;
  top: number;
}

/** A batch in its step slot. Decode rows (count 1) are added first, then prefill chunks. */
export class Batch {
  sequences = 0;
  decodeSequences = 0;
  tokens = 0;
  samples = 0;
  pages = 0;
  /** Some row draws at random; some row filters (top-k, top-p, min-p). */
  random = false;
  filtered = false;
  private readonly samplingFloats: Float32Array;

  constructor(
    /** Index of the step slot it belongs to. */
    readonly slot: number,
    readonly limits: BatchLimits,
    /** [maxSequences, ROW_WORDS]: slot, start, count, token_begin, page_begin, sample_index, sample_count. */
    readonly rows: Int32Array,
    /** [maxSamples, SAMPLING_WORDS]: a msgl_sampling for each row of logits. */
    readonly samplingRows: Int32Array,
    readonly queryLengths: Int32Array,
    readonly contextLengths: Int32Array,
    /** Applied before the forward, in this order. */
    readonly pagePatches: TablePatches,
    readonly tokenPatches: TablePatches,
    readonly logits: LogitRows,
  ) {
    this.samplingFloats = new Float32Array(samplingRows.buffer, samplingRows.byteOffset, samplingRows.length);
  }

  clear(): void {
    this.sequences = this.decodeSequences = this.tokens = this.samples = this.pages = 0;
    this.random = this.filtered = false;
    this.pagePatches.clear();
    this.tokenPatches.clear();
    this.logits.clear();
  }

  /**
   * Adds positions start .. start + count - 1 of the sequence in `slot`. With `sampling`, the token after them is
   * drawn, as `options` want; returns its index among the step's tokens, else -1. The token is written to the token
   * table as well. With `score`, the known tokens after the chunk's from score.from on get logprobs, before those of
   * the token that is drawn.
   */
  add(
    slot: number,
    start: number,
    count: number,
    decode: boolean,
    sampling: Sampling | null,
    options: LogitOptions | null = null,
    score: Score | null = null,
  ): number {
    const index = this.sequences++;
    const context = start + count;
    const at = index * ROW_WORDS;
    const first = this.samples;
    if (score !== null) this.addScored(score, start, sampling === null ? context : context - 1);
    const sample = sampling === null ? -1 : this.addSample(slot, context, sampling);
    if (sample >= 0 && options !== null) this.logits.add(sample, slot, context, options);
    this.rows[at] = slot;
    this.rows[at + 1] = start;
    this.rows[at + 2] = count;
    this.rows[at + 3] = this.tokens;
    this.rows[at + 4] = this.pages;
    this.rows[at + 5] = this.samples > first ? first : -1;
    this.rows[at + 6] = this.samples - first;
    this.queryLengths[index] = count;
    this.contextLengths[index] = context;
    this.tokens += count;
    this.pages += Math.ceil(context / this.limits.pageSize);
    if (decode) this.decodeSequences++;
    return sample;
  }

  /** Rows of logits that only score: what is drawn from them goes to the token table's padding row. */
  private addScored({ tokens, from, top }: Score, start: number, end: number): void {
    for (let position = Math.max(from, start); position < end; position++) {
      const row = this.addSample(this.limits.maxSequences, 0, GREEDY);
      this.logits.addLogprob(row, tokens[position + 1], top);
    }
  }

  private addSample(slot: number, position: number, sampling: Sampling): number {
    const index = this.samples++;
    const at = index * SAMPLING_WORDS;
    const { temperature, topK, topP, minP, seed } = sampling;
    this.samplingRows[at] = slot;
    this.samplingRows[at + 1] = position;
    this.samplingFloats[at + 2] = temperature;
    this.samplingRows[at + 3] = topK;
    this.samplingFloats[at + 4] = topP;
    this.samplingFloats[at + 5] = minP;
    this.samplingRows[at + 6] = seed >>> 0;
    this.samplingRows[at + 7] = Math.floor(seed / 2 ** 32);
    if (temperature > 0) {
      this.random = true;
      if (topK > 0 || topP < 1 || minP > 0) this.filtered = true;
    }
    return index;
  }
}
