import type { CachedPrefix } from "../cache/prefix-cache.ts";
import type { Score } from "../engine/batch.ts";
import type { LogitOptions } from "../engine/logit-rows.ts";
import type { StepEngine } from "../engine/types.ts";
import { Finish, type FinishCode, MAX_LOGIT_ENTRIES, type Request, type Sampling } from "../message/types.ts";

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
  /** Up to here the device's token table has what the sequence needs of it. */
  tokensWritten = 0;
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
  readonly namespace: string;
  /** Null: its tokens are drawn from the model's logits, and nothing is told of them. */
  readonly logits: LogitOptions | null;
  /** Alternatives to report with the logprobs of the prompt; -1: none are wanted. */
  readonly promptLogprobs: number;
  /** Positions from whose logits the logprob of the prompt's next token was taken. */
  scored = 0;
  private readonly priority: number;
  private readonly queuedAt: number;
  private readonly stopTokenIds: readonly number[];

  /** @param arrival Increases from one request to the next. */
  constructor(
    request: Request,
    eosTokenIds: readonly number[],
    private readonly arrival: number,
  ) {
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
    this.namespace = request.namespace;
    this.priority = request.priority;
    this.promptLogprobs = request.promptLogprobs;
    this.logits = logitOptions(request, this.stopTokenIds);
  }

  /** All that it gives goes the way of logprobs. */
  get reportsLogprobs(): boolean {
    return this.promptLogprobs >= 0 || (this.logits !== null && this.logits.logprobs >= 0);
  }

  /** Logprobs of its prompt are still to be computed. Until then it is no longer than the prompt. */
  get scores(): boolean {
    return this.promptLogprobs >= 0 && this.scored < this.promptLength - 1;
  }

  /** What its next chunk tells of the prompt. */
  nextScore(): Score | null {
    return this.scores ? { tokens: this.tokens, from: this.scored, top: this.promptLogprobs } : null;
  }

  /** First position whose token the device must know, besides those that are computed: penalties count them. */
  get firstToken(): number {
    const penalties = this.logits?.penalties ?? null;
    if (penalties === null) return this.computed;
    return penalties.repetition === 1 ? Math.min(this.computed, this.promptLength) : 0;
  }

  /** It is served before `other`: by priority, then by arrival. */
  precedes(other: Sequence): boolean {
    return this.priority < other.priority || (this.priority === other.priority && this.arrival < other.arrival);
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

function logitOptions(request: Request, endIds: readonly number[]): LogitOptions | null {
  const { penalties, logitBias: bias, logprobs, minTokens } = request;
  if (penalties === null && bias === null && logprobs < 0 && minTokens === 0) return null;
  const promptLength = request.tokens.length;
  const banned = minTokens > 0 ? [...new Set(endIds)] : [];
  return { promptLength, penalties, bias, banned, minLength: promptLength + minTokens, logprobs };
}

/** Why an engine can never serve a request; null: it can. */
export function refusalOf(
  request: Request,
  { maxContext, numPages, pageSize, eosTokenIds }: StepEngine,
): string | null {
  const { tokens, maxTokens, minTokens, stopTokenIds, logitBias } = request;
  const context = Math.min(maxContext, numPages * pageSize);
  if (tokens.length < 1 || maxTokens < 1 || tokens.length + maxTokens > context) {
    const asked = `a prompt of ${tokens.length} tokens and ${maxTokens} more`;
    return `${asked} cannot be served: at least one each, at most ${context} together`;
  }
  const banned = minTokens > 0 ? stopTokenIds.length + eosTokenIds.length : 0;
  const entries = banned + (logitBias?.ids.length ?? 0);
  return entries > MAX_LOGIT_ENTRIES ? `${entries} logits are to be changed, ${MAX_LOGIT_ENTRIES} can be` : null;
}

/** Adds a sequence to a list where it belongs by rank. */
export function insertRanked(list: Sequence[], sequence: Sequence): void {
  let at = list.length;
  while (at > 0 && sequence.precedes(list[at - 1])) at--;
  list.splice(at, 0, sequence);
}

function grow(array: Int32Array, size: number): Int32Array {
  const larger = new Int32Array(size);
  larger.set(array);
  return larger;
}
