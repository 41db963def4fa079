import type { Batch } from "../engine/batch.ts";
import { LOGPROB_WORDS } from "../engine/logit-rows.ts";
import type { StepEngine, StepLogprobs } from "../engine/types.ts";
import type { LogprobRows, Sampling } from "../message/types.ts";
import type { Sequence } from "./sequence.ts";

/** What a step tells of a sequence besides its token. */
export interface Told {
  /** The token's; null if there is none, or it is not wanted. */
  logprobs: LogprobRows | null;
  promptLogprobs: LogprobRows | null;
}

export const NOTHING_TOLD: Told = { logprobs: null, promptLogprobs: null };

/** A step on its way: its batch, and the sequences whose rows are in it. */
export class Flight {
  batch: Batch | null = null;
  /** Of rows 0 .. count - 1 of the batch. */
  readonly sequences: Sequence[] = [];
  /** Each row's sample index, -1 if it does not sample. */
  readonly samples: number[] = [];
  count = 0;
  /** There was nothing to do before: the device did not wait for the host. */
  rested = false;
  /** Where each row's logprobs begin among the step's. */
  private readonly logprobs: number[] = [];

  /** Adds the next `count` positions of a sequence; with `sampling`, the token after them is drawn. */
  add(sequence: Sequence, count: number, decode: boolean, sampling: Sampling | null): void {
    const batch = this.batch!;
    const index = this.count++;
    const { slot, computed, logits } = sequence;
    this.sequences[index] = sequence;
    this.logprobs[index] = batch.logits.logprobs;
    this.samples[index] = batch.add(slot, computed, count, decode, sampling, logits, sequence.nextScore());
    sequence.computed += count;
    sequence.inFlight++;
  }

  /** What the collected step tells of row `index`; tokens: those that were drawn. */
  told(index: number, engine: StepEngine, tokens: Int32Array): Told {
    const { promptLogprobs, logits } = this.sequences[index];
    const from = this.logprobs[index];
    const to = index + 1 < this.count ? this.logprobs[index + 1] : this.batch!.logits.logprobs;
    if (from === to) return NOTHING_TOLD;
    const step = engine.logprobs(this.batch!);
    const wanted = this.samples[index] >= 0 && logits !== null ? logits.logprobs : -1;
    const end = wanted >= 0 ? to - 1 : to;
    return {
      promptLogprobs: from < end ? this.take(step, tokens, from, end, promptLogprobs) : null,
      logprobs: end < to ? this.take(step, tokens, end, to, wanted) : null,
    };
  }

  /** Copies rows from .. to - 1 of the step's logprobs, with `top` alternatives (as many as there are). */
  private take(step: StepLogprobs, tokens: Int32Array, from: number, to: number, top: number): LogprobRows {
    const { logprobRows } = this.batch!.logits;
    const kept = Math.min(top, step.top);
    const count = to - from;
    const rows: LogprobRows = {
      tokens: new Int32Array(count),
      logprobs: step.logprobs.slice(from, to),
      top: kept,
      topIds: new Int32Array(count * kept),
      topLogprobs: new Float32Array(count * kept),
    };
    for (let i = 0; i < count; i++) {
      const at = (from + i) * LOGPROB_WORDS;
      const token = logprobRows[at + 1];
      rows.tokens[i] = token >= 0 ? token : tokens[logprobRows[at]];
      const first = (from + i) * step.top;
      rows.topIds.set(step.topIds.subarray(first, first + kept), i * kept);
      rows.topLogprobs.set(step.topLogprobs.subarray(first, first + kept), i * kept);
    }
    return rows;
  }
}
