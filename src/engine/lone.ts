import type { Sampling } from "../message/types.ts";
import { GREEDY } from "./batch.ts";
import type { Engine } from "./engine.ts";

export interface LoneOptions {
  /** Tokens of the prompt that a step computes; all of them where it is left out. */
  chunk?: number;
  sampling?: Sampling;
  /** Continue with these instead of with what is drawn: teacher forcing. */
  forced?: readonly number[];
}

/** What was drawn after each token, and the logits [vocabulary] it was drawn from. */
export interface LoneResult {
  tokens: number[];
  logits: Float32Array[];
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
  const { chunk = prompt.length, sampling = GREEDY, forced } = options;
  const pages = Array.from({ length: Math.ceil((prompt.length + count) / engine.pageSize) }, (_, page) => page);
  const result: LoneResult = { tokens: [], logits: [] };
  const { tokens, logits } = result;
  let computed = 0;
  while (tokens.length < count) {
    const ids = [...prompt, ...(forced ?? tokens).slice(0, tokens.length)];
    const end = Math.min(computed + chunk, ids.length);
    const last = end === ids.length;
    const batch = engine.nextBatch();
    if (computed === 0) batch.pagePatches.write(0, 0, pages, 0, pages.length);
    batch.tokenPatches.write(0, computed, ids, computed, end);
    batch.add(0, computed, end - computed, last && tokens.length > 0, last ? sampling : null);
    engine.launch(batch);
    computed = end;
    if (!last) continue;
    tokens.push(engine.collect(batch)[0] as number);
    logits.push(engine.logits());
  }
  return result;
}

/** Logarithm of the probability that softmax(logits) gives a token. */
export function logprob(logits: Float32Array, token: number): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (const value of logits) largest = Math.max(largest, value);
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - largest);
  return (logits[token] as number) - largest - Math.log(sum);
}
