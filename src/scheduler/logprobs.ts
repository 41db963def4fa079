import type { Batch } from "../engine/batch.ts";
import { LOGPROB_WORDS } from "../engine/logit-rows.ts";
import type { StepEngine } from "../engine/types.ts";
import type { LogprobRows } from "../message/types.ts";

/** Copies rows from .. to - 1 of a collected step's logprobs, with `top` alternatives (as many as there are). */
export function takeLogprobs(
  engine: StepEngine,
  batch: Batch,
  sampled: Int32Array,
  from: number,
  to: number,
  top: number,
): LogprobRows {
  const step = engine.logprobs(batch);
  const kept = Math.min(top, step.top);
  const rows: LogprobRows = {
    tokens: new Int32Array(to - from),
    logprobs: step.logprobs.slice(from, to),
    top: kept,
    topIds: new Int32Array((to - from) * kept),
    topLogprobs: new Float32Array((to - from) * kept),
  };
  for (let row = from; row < to; row++) {
    const [sample, token] = batch.logits.logprobRows.subarray(row * LOGPROB_WORDS, (row + 1) * LOGPROB_WORDS);
    rows.tokens[row - from] = token >= 0 ? token : sampled[sample];
    const at = row * step.top;
    rows.topIds.set(step.topIds.subarray(at, at + kept), (row - from) * kept);
    rows.topLogprobs.set(step.topLogprobs.subarray(at, at + kept), (row - from) * kept);
  }
  return rows;
}
