import type { CachedPrefix } from "../cache/prefix-cache.ts";
import { Finish, type FinishCode, type Request, type Sampling } from "../message/types.ts";

/** waiting: has no slot and no pages. prefill: part of its tokens is computed. decode: a token a step. */
export type SequenceState = "waiting" | "prefill" | "decode" | "ended";

const FIRST_CAPACITY = 64;

/** A request's tokens and pages. */
export class Sequence {
  state: SequenceState = "waiting";
  readonly uid: number;
  readonly sampling: Sampling;
  readonly promptLength: number;
  /** Length at which it ends at the latest, prompt included. */
  readonly maxLength: number;
  /** tokens[0 .. length) are known to the host; one more may be in flight. */
  tokens: Int32Array;
  length: number;
  /** Positions whose K/V write has been launched: the next row starts here. */
  computed = 0;
  /** Row of the device's page table and token table. */
  slot = -1;
  /** pages[0 .. pageCount): the first prefix.depth are the cache's, locked, the others its own. */
  pages: Int32Array;
  pageCount = 0;
  /** Columns of the device's page table that are written. */
  pagesWritten = 0;
  prefix: CachedPrefix | null = null;
  /** Own pages that the cache's have replaced, from column `rewriteFrom` on: the device still reads them. */
  readonly duplicates: number[] = [];
  rewriteFrom = 0;
  /** Rows launched and not collected. */
  inFlight = 0;
  aborted = false;
  /** Prompt tokens found in the cache when it first started; -1 before. */
  cachedTokens = -1;
  /** Microseconds from Request.queuedAt to its first start. */
  waited = 0;
  private readonly queuedAt: number;
  private readonly stopTokenIds: readonly number[];

  constructor(request: Request, eosTokenIds: readonly number[]) {
    const { tokens, maxTokens } = request;
    this.uid = request.uid;
    this.queuedAt = request.queuedAt;
    this.sampling = request.sampling;
    this.promptLength = this.length = tokens.length;
    this.maxLength = tokens.length + maxTokens;
    this.tokens = new Int32Array(Math.min(this.maxLength, tokens.length + FIRST_CAPACITY));
    this.tokens.set(tokens);
    this.pages = new Int32Array(FIRST_CAPACITY);
    this.stopTokenIds = request.ignoreEos ? request.stopTokenIds : [...request.stopTokenIds, ...eosTokenIds];
  }

  /** Rows of one token can be launched for it: it has not been seen to end, and is not at its length limit. */
  get decodes(): boolean {
    return this.state === "decode" && !this.aborted && this.computed + 1 < this.maxLength;
  }

  /** Notes its first start. */
  start(cachedTokens: number): void {
    this.cachedTokens = cachedTokens;
    const waited = (performance.timeOrigin + performance.now() - this.queuedAt) * 1000;
    this.waited = Math.min(Math.max(0, Math.round(waited)), 2 ** 31 - 1);
  }

  /** Adds a sampled token and says whether it is the last. */
  append(token: number): FinishCode {
    if (this.length === this.tokens.length) this.tokens = grow(this.tokens, Math.min(this.maxLength, 2 * this.length));
    this.tokens[this.length++] = token;
    if (this.stopTokenIds.includes(token)) return Finish.stop;
    return this.length === this.maxLength ? Finish.length : Finish.none;
  }

  /** Makes room for `count` page ids. */
  reservePages(count: number): void {
    if (count > this.pages.length) this.pages = grow(this.pages, Math.max(count, 2 * this.pages.length));
  }
}

function grow(array: Int32Array, size: number): Int32Array {
  const larger = new Int32Array(size);
  larger.set(array);
  return larger;
}
