import type { Sampling } from "../message/types.ts";
import { GREEDY } from "./batch.ts";
import type { Engine } from "./engine.ts";
import type { LogitOptions } from "./logit-rows.ts";
import type { StepLogprobs } from "./types.ts";

export interface LoneOptions {
  /** Tokens of the prompt that a step computes; all of them where it is left out. */
  chunk?: number;
  sampling?: Sampling;
  /** What is done to the logits, and told of them. */
  logits?: LogitOptions;
  /** Alternatives to report with the logprob of each of the prompt's tokens; left out: no logprobs. */
  promptLogprobs?: number;
  /** Continue with these instead of with what is drawn: teacher forcing. */
  forced?: readonly number[];
}

/** What was drawn after each token, and the logits [vocabulary] it was drawn from. */
export interface LoneResult {
  tokens: number[];
  logits: Float32Array[];
  /** Of each chunk of the prompt and of each token, as far as they were asked for. */
  logprobs: StepLogprobs[];
}

/**
 * Runs one sequence alone in slot 0 on pages 0, 1, 2, ...: the plainest use of an engine, and what every other way of
 * running it is compared with. Nothing else may use the engine meanwhile.
 */
export function runLone(
  engine: Engine,
  prompt: readonly number[],
  count: number,
  options: LoneOptions = {},
): LoneResult {
  const { sampling = GREEDY, forced, promptLogprobs } = options;
  const scores = promptLogprobs !== undefined;
  const chunk = Math.min(options.chunk ?? prompt.length, scores ? engine.limits.maxSamples : prompt.length);
  const score = scores ? { tokens: Int32Array.from(prompt), from: 0, top: promptLogprobs } : null;
  const pages = Array.from({ length: Math.ceil((prompt.length + count) / engine.pageSize) }, (_, page) => page);
  const result: LoneResult = { tokens: [], logits: [], logprobs: [] };
  const { tokens, logits } = result;
  let computed = 0;
  while (tokens.length < count) {
    const ids = [...prompt, ...(forced ?? tokens).slice(0, tokens.length)];
    const end = Math.min(computed + chunk, ids.length);
    const last = end === ids.length;
    const decodes = tokens.length > 0;
    const batch = engine.nextBatch();
    if (computed === 0) batch.pagePatches.write(0, 0, pages, 0, pages.length);
    batch.tokenPatches.write(0, computed, ids, computed, end);
    const drawn = last ? sampling : null;
    const index = batch.add(
      0,
      computed,
      end - computed,
      last && decodes,
      drawn,
      options.logits,
      decodes ? null : score,
    );
    engine.launch(batch);
    computed = end;
    const sampled = engine.collect(batch);
    if (batch.logits.logprobs > 0) result.logprobs.push(copyOf(engine.logprobs(batch)));
    if (!last) continue;
    tokens.push(sampled[index] as number);
    const all = engine.logits();
    logits.push(all.slice(-all.length / batch.samples));
  }
  return result;
}

function copyOf({ top, logprobs, topIds, topLogprobs }: StepLogprobs): StepLogprobs {
  return { top, logprobs: logprobs.slice(), topIds: topIds.slice(), topLogprobs: topLogprobs.slice() };
}

/** Logarithm of the probability that softmax(logits) gives a token. */
export function logprob(logits: Float32Array, token: number): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (const value of logits) largest = Math.max(largest, value);
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - largest);
  return (logits[token] as number) - largest - Math.log(sum);
}
