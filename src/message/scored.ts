/**
 * The way of what is large: all that a step gave requests that asked for logprobs, packed into one array of words, which
 * crosses threads without a copy. One record after the other:
 *
 *   uid | token | finish | cachedTokens | waited | the token's rows | the prompt's rows
 *
 * where rows are: count, top, then tokens [count], logprobs [count], topIds [count, top], topLogprobs [count, top] with
 * the bits of float32; a count of 0 stands for null.
 */
import type { FinishCode, LogprobRows, ScoredOutput } from "./types.ts";

const FIRST_WORDS = 1024;

/** The scheduler's end: gathers a step's records. */
export class ScoredWriter {
  private words = new Int32Array(FIRST_WORDS);
  private length = 0;

  add({ uid, token, finish, cachedTokens, waited, logprobs, promptLogprobs }: ScoredOutput): void {
    this.append([uid, token, finish, cachedTokens, waited]);
    this.addRows(logprobs);
    this.addRows(promptLogprobs);
  }

  /** What was added since it was called last, in an array of its own; null if nothing was. */
  take(): Int32Array<ArrayBuffer> | null {
    if (this.length === 0) return null;
    const taken = this.words.slice(0, this.length);
    this.length = 0;
    return taken;
  }

  private addRows(rows: LogprobRows | null): void {
    if (rows === null) {
      this.append([0, 0]);
      return;
    }
    const bits = (values: Float32Array) => new Int32Array(values.buffer, values.byteOffset, values.length);
    this.append([rows.tokens.length, rows.top]);
    this.append(rows.tokens);
    this.append(bits(rows.logprobs));
    this.append(rows.topIds);
    this.append(bits(rows.topLogprobs));
  }

  private append(words: ArrayLike<number>): void {
    const end = this.length + words.length;
    if (end > this.words.length) {
      const larger = new Int32Array(Math.max(end, 2 * this.words.length));
      larger.set(this.words.subarray(0, this.length));
      this.words = larger;
    }
    this.words.set(words, this.length);
    this.length = end;
  }
}

/** Main's end: calls `accept` for each record, whose rows are views of `words`. */
export function readScored(words: Int32Array<ArrayBuffer>, accept: (output: ScoredOutput) => void): void {
  const floats = new Float32Array(words.buffer, words.byteOffset, words.length);
  let at = 0;
  const rows = (): LogprobRows | null => {
    const count = words[at++];
    const top = words[at++];
    if (count === 0) return null;
    const [logprobs, topIds] = [at + count, at + 2 * count];
    const topLogprobs = topIds + count * top;
    const tokens = at;
    at = topLogprobs + count * top;
    return {
      tokens: words.subarray(tokens, logprobs),
      logprobs: floats.subarray(logprobs, topIds),
      top,
      topIds: words.subarray(topIds, topLogprobs),
      topLogprobs: floats.subarray(topLogprobs, at),
    };
  };
  while (at < words.length) {
    const [uid, token, finish, cachedTokens, waited] = words.subarray(at, at + 5);
    at += 5;
    const logprobs = rows();
    const promptLogprobs = rows();
    accept({ uid, token, finish: finish as FinishCode, cachedTokens, waited, logprobs, promptLogprobs });
  }
}
