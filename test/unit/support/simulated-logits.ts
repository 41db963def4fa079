/** What the simulated device makes of a row of "logits", which are the hash of all tokens before: numbers that tell apart. */
import type { LogprobRows, Penalties } from "../../../src/message/types.ts";

export function mix(hash: number, word: number): number {
  let h = Math.imul(hash ^ word, 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
  return h ^ (h >>> 13);
}

const bits = (value: number): number => new Int32Array(Float32Array.of(value).buffer)[0];

/** A hash that depends on all that penalties depend on. */
export function penalized(
  hash: number,
  { repetition, presence, frequency }: Penalties,
  tokens: ArrayLike<number>,
  promptLength: number,
): number {
  let h = [repetition, presence, frequency].map(bits).reduce(mix, hash);
  const from = repetition === 1 ? promptLength : 0;
  for (let i = from; i < tokens.length; i++) {
    if (tokens[i] < 0) throw new Error(`penalties need a token at position ${i} that the device was not given`);
    h = mix(h, tokens[i]);
  }
  return mix(h, promptLength);
}

/** A hash that depends on the biases, whatever their order, and the ids that are banned. */
export function biased(hash: number, entries: Iterable<readonly [id: number, value: number]>) {
  const banned = new Set<number>();
  let sum = 0;
  for (const [id, value] of entries) {
    if (value === Number.NEGATIVE_INFINITY) banned.add(id);
    else sum = (sum + mix(id, bits(value))) | 0;
  }
  return { hash: sum === 0 ? hash : mix(hash, sum), banned };
}

export const logprobOf = (hash: number, token: number): number => -(mix(mix(hash, 3), token) >>> 10) / 2 ** 16;
export const topOf = (hash: number, rank: number, vocabulary: number): number =>
  (mix(mix(hash, 9), rank) >>> 1) % vocabulary;

/** A token's row of logprobs as plain values. */
export interface Scored {
  token: number;
  logprob: number;
  top: (readonly [id: number, logprob: number])[];
}

export function scoredBy(hash: number, token: number, top: number, vocabulary: number): Scored {
  const ids = Array.from({ length: top }, (_, rank) => topOf(hash, rank, vocabulary));
  return { token, logprob: logprobOf(hash, token), top: ids.map((id) => [id, logprobOf(hash, id)] as const) };
}

export function rowsOf({ tokens, logprobs, top, topIds, topLogprobs }: LogprobRows): Scored[] {
  return Array.from(tokens, (token, row) => ({
    token,
    logprob: logprobs[row],
    top: Array.from({ length: top }, (_, i) => [topIds[row * top + i], topLogprobs[row * top + i]] as const),
  }));
}
