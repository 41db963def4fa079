/**
 * A device that computes nothing but minds everything: its tables and KV rows behave as a GPU's do. A KV row holds a
 * hash of all tokens up to its own, so a step can check at the time it runs that each context row is the right one,
 * and the sampled token is a function of that hash, the request's sampling and the position. Launches are queued and
 * run late, in order: what is overwritten or given away too early is found out.
 */
import { Batch, PATCH_WORDS, ROW_WORDS, SAMPLING_WORDS, TablePatches } from "../../../src/engine/batch.ts";
import { BIAS_WORDS, LOGPROB_WORDS, LogitRows, PENALTY_WORDS } from "../../../src/engine/logit-rows.ts";
import type { StepEngine, StepLogprobs, StepTime } from "../../../src/engine/types.ts";
import { Finish, type FinishCode, MAX_LOGIT_ENTRIES, type Request } from "../../../src/message/types.ts";
import { biased, logprobOf, mix, penalized, type Scored, scoredBy, topOf } from "./simulated-logits.ts";

export const EOS = 0;
const ROOT_HASH = 0x1234567;
const POISON = -0x5a5a5a5;

export interface SimulatedOptions {
  pageSize: number;
  numPages: number;
  maxSequences: number;
  maxTokens: number;
  maxContext: number;
  vocabulary: number;
  /** Share of sampled tokens that are EOS. */
  eosRate: number;
  /** Words of page-table patches a step; left out: as many as the real engine has. */
  maxPageValues?: number;
  /** Rows of logits a step; left out: maxSequences. */
  maxSamples?: number;
  /** Asked before each call: true runs a queued step then, and not only when it must have run. */
  runsEarly: () => boolean;
}

/** One launched step, as a test wants to see it. */
export interface LoggedStep {
  decodeRows: number;
  tokens: number;
  rows: { slot: number; start: number; count: number; samples: boolean }[];
}

const NO_LOGPROBS: StepLogprobs = {
  top: 0,
  logprobs: new Float32Array(0),
  topIds: new Int32Array(0),
  topLogprobs: new Float32Array(0),
};

interface Slot {
  batch: Batch;
  tokens: Int32Array;
  launched: boolean;
  logprobs: StepLogprobs;
}

/** The token drawn after a prefix with this hash, the next one that is not banned. */
function draw(
  hash: number,
  sampling: Int32Array,
  position: number,
  options: SimulatedOptions,
  banned: ReadonlySet<number>,
): number {
  let token = drawFreely(hash, sampling, position, options);
  while (banned.has(token)) token = (token + 1) % options.vocabulary;
  return token;
}

function drawFreely(hash: number, sampling: Int32Array, position: number, options: SimulatedOptions): number {
  const random = sampling[2] !== 0;
  const key = random ? mix(mix(mix(hash, sampling[6]), sampling[7]), position) : mix(hash, 77);
  if ((key >>> 8) % 1000 < options.eosRate * 1000) return EOS;
  return 1 + ((mix(key, 5) >>> 1) % (options.vocabulary - 1));
}

/** What a request gives: the answer's tokens, why it ended, and the logprobs that it asked for. */
export interface LoneRun {
  tokens: number[];
  finish: FinishCode;
  logprobs: Scored[];
  promptLogprobs: Scored[];
}

/** What a request gives when nothing else exists. */
export function loneRun(request: Request, options: SimulatedOptions): LoneRun {
  const { vocabulary } = options;
  const batch = makeBatch({ ...options, maxSequences: 1 }, 0);
  batch.add(0, 0, 1, false, request.sampling);
  const run: LoneRun = { tokens: [], finish: Finish.none, logprobs: [], promptLogprobs: [] };
  const all: number[] = [];
  let hash = ROOT_HASH;
  for (const token of request.tokens) {
    if (request.promptLogprobs >= 0 && all.length > 0) {
      run.promptLogprobs.push(scoredBy(hash, token, request.promptLogprobs, vocabulary));
    }
    hash = mix(hash, token);
    all.push(token);
  }
  const ends = [...request.stopTokenIds, ...(request.ignoreEos ? [] : [EOS])];
  while (run.finish === Finish.none) {
    const { hash: changed, banned } = changedBy(hash, request, all, ends);
    const token = draw(changed, batch.samplingRows, all.length, options, banned);
    if (request.logprobs >= 0) run.logprobs.push(scoredBy(hash, token, request.logprobs, vocabulary));
    run.tokens.push(token);
    all.push(token);
    hash = mix(hash, token);
    if (ends.includes(token)) run.finish = Finish.stop;
    else if (run.tokens.length === request.maxTokens) run.finish = Finish.length;
  }
  return run;
}

function changedBy(hash: number, request: Request, all: readonly number[], ends: readonly number[]) {
  const { penalties, logitBias, minTokens, tokens } = request;
  const entries = Array.from(logitBias?.ids ?? [], (id, i) => [id, logitBias!.values[i]] as const);
  if (all.length < tokens.length + minTokens) for (const id of ends) entries.push([id, Number.NEGATIVE_INFINITY]);
  return biased(penalties === null ? hash : penalized(hash, penalties, all, tokens.length), entries);
}

function makeBatch(options: SimulatedOptions, index: number): Batch {
  const { pageSize, maxSequences, maxTokens, maxContext } = options;
  const maxPageValues = options.maxPageValues ?? maxTokens + 2 * Math.ceil(maxContext / pageSize);
  const maxSamples = options.maxSamples ?? maxSequences;
  const maxTokenValues = Math.max(maxTokens, maxContext);
  const limits = { maxSequences, maxSamples, maxTokens, maxPageValues, maxTokenValues, pageSize };
  const words = (count: number) => new Int32Array(count);
  const patches = 2 * maxSequences * PATCH_WORDS;
  return new Batch(
    index,
    limits,
    words(maxSequences * ROW_WORDS),
    words(maxSamples * SAMPLING_WORDS),
    words(maxSequences),
    words(maxSequences),
    new TablePatches(words(patches), words(maxPageValues)),
    new TablePatches(words(patches), words(maxTokenValues)),
    new LogitRows(
      words(maxSequences * PENALTY_WORDS),
      words(maxSamples * LOGPROB_WORDS),
      words(Math.min(maxSequences * MAX_LOGIT_ENTRIES, 1000) * BIAS_WORDS),
    ),
  );
}

/** A table [rows, stride] of words on the device. */
class Table {
  readonly words: Int32Array;
  constructor(
    rows: number,
    readonly stride: number,
  ) {
    this.words = new Int32Array(rows * stride).fill(POISON);
  }

  at(row: number, column: number): number {
    return this.words[row * this.stride + column];
  }

  /** The patches of a step run side by side: none may touch a word of another. */
  write({ count, patches, values }: TablePatches): void {
    const written = new Set<number>();
    for (let i = 0; i < count; i++) {
      const [row, column, length, offset] = patches.subarray(i * PATCH_WORDS, (i + 1) * PATCH_WORDS);
      if (column + length > this.stride) throw new Error("a patch runs out of its row");
      for (let k = 0; k < length; k++) {
        const word = row * this.stride + column + k;
        if (written.has(word)) throw new Error(`two patches of one step write column ${column + k} of slot ${row}`);
        written.add(word);
        this.words[word] = values[offset + k];
      }
    }
  }
}

export class SimulatedEngine implements StepEngine {
  readonly limits;
  readonly maxSequences: number;
  readonly numPages: number;
  readonly pageSize: number;
  readonly maxContext: number;
  readonly eosTokenIds = [EOS];
  readonly log: LoggedStep[] = [];
  launches = 0;
  collects = 0;
  private readonly slots: Slot[];
  private next = 0;
  private readonly queue: Slot[] = [];
  private readonly pageTable: Table;
  private readonly tokenTable: Table;
  /** KV rows [numPages * pageSize]: hash up to the token, hash before it, and the last step that wrote it. */
  private readonly hashes: Int32Array;
  private readonly before: Int32Array;
  private readonly writtenIn: Int32Array;
  private executed = 0;

  constructor(readonly options: SimulatedOptions) {
    const { pageSize, numPages, maxSequences, maxContext } = options;
    this.maxSequences = maxSequences;
    this.numPages = numPages;
    this.pageSize = pageSize;
    this.maxContext = maxContext;
    this.slots = [0, 1, 2].map((index) => ({
      batch: makeBatch(options, index),
      tokens: new Int32Array(options.maxSamples ?? maxSequences),
      launched: false,
      logprobs: NO_LOGPROBS,
    }));
    this.limits = this.slots[0].batch.limits;
    this.pageTable = new Table(maxSequences, Math.ceil(maxContext / pageSize));
    // One row more: what is drawn where only logprobs are wanted.
    this.tokenTable = new Table(maxSequences + 1, maxContext);
    this.hashes = new Int32Array(numPages * pageSize).fill(POISON);
    this.before = new Int32Array(numPages * pageSize).fill(POISON);
    this.writtenIn = new Int32Array(numPages * pageSize).fill(-1);
  }

  nextBatch(): Batch {
    this.maybeRun();
    const slot = this.slots[this.next];
    this.next = (this.next + 1) % this.slots.length;
    while (this.queue.includes(slot)) this.runOldest();
    slot.launched = false;
    slot.tokens.fill(POISON);
    slot.batch.rows.fill(POISON);
    slot.batch.pagePatches.values.fill(POISON);
    slot.batch.tokenPatches.values.fill(POISON);
    slot.batch.clear();
    return slot.batch;
  }

  launch(batch: Batch): void {
    const slot = this.slots[batch.slot];
    if (slot.launched) throw new Error("a batch was launched twice");
    slot.launched = true;
    this.launches++;
    this.queue.push(slot);
    this.log.push(describe(batch));
    this.maybeRun();
  }

  ready(batch: Batch): boolean {
    this.maybeRun();
    return !this.queue.includes(this.slots[batch.slot]);
  }

  collect(batch: Batch): Int32Array {
    this.collects++;
    const slot = this.slots[batch.slot];
    if (!slot.launched) throw new Error("a batch was collected that was not launched");
    while (this.queue.includes(slot)) this.runOldest();
    return slot.tokens;
  }

  logprobs(batch: Batch): StepLogprobs {
    return this.slots[batch.slot].logprobs;
  }

  time(): StepTime {
    return { busy: 0, idle: 0 };
  }

  private maybeRun(): void {
    if (this.queue.length > 0 && this.options.runsEarly()) this.runOldest();
  }

  private runOldest(): void {
    const slot = this.queue.shift()!;
    const { batch, tokens } = slot;
    const step = this.executed++;
    this.pageTable.write(batch.pagePatches);
    this.tokenTable.write(batch.tokenPatches);
    this.checkShape(batch);
    for (let i = 0; i < batch.sequences; i++) this.claimRows(batch, i, step);
    const hashes: number[] = [];
    for (let i = 0; i < batch.sequences; i++) this.forward(batch, i, step, hashes);
    const drawn = hashes.map((_, row) => this.sample(batch, row, hashes));
    // All are drawn before any is written.
    drawn.forEach((token, row) => {
      const [slot, position] = batch.samplingRows.subarray(row * SAMPLING_WORDS);
      this.tokenTable.words[slot * this.tokenTable.stride + position] = tokens[row] = token;
    });
    slot.logprobs = this.logprobsOf(batch, hashes, tokens);
  }

  private checkShape(batch: Batch): void {
    const { limits } = this;
    if (batch.sequences > limits.maxSequences || batch.tokens > limits.maxTokens) throw new Error("batch too large");
    const slots = new Set<number>();
    for (let i = 0; i < batch.sequences; i++) {
      const [slot, start, count] = batch.rows.subarray(i * ROW_WORDS);
      slots.add(slot);
      if (slot < 0 || slot >= this.maxSequences || count < 1 || start < 0) throw new Error("a row is malformed");
      if (start + count > this.maxContext) throw new Error("a row runs out of the context");
      if (i < batch.decodeSequences && count !== 1) throw new Error("a decode row has more than one token");
    }
    if (slots.size !== batch.sequences) throw new Error("two rows of a step are of one slot");
    if (batch.samples > limits.maxSamples) throw new Error("more rows of logits than there is room for");
  }

  private cacheRow(slot: number, position: number): number {
    const page = this.pageTable.at(slot, Math.floor(position / this.pageSize));
    if (page < 0 || page >= this.numPages) throw new Error(`slot ${slot} has no page for position ${position}`);
    return page * this.pageSize + (position % this.pageSize);
  }

  private claimRows(batch: Batch, index: number, step: number): void {
    const [slot, start, count] = batch.rows.subarray(index * ROW_WORDS);
    for (let position = start; position < start + count; position++) {
      const row = this.cacheRow(slot, position);
      if (this.writtenIn[row] === step) throw new Error(`two sequences of a step write to KV row ${row}`);
      this.writtenIn[row] = step;
    }
  }

  /** Checks the row's context, writes its K/V, and appends the hashes of the positions whose logits are wanted. */
  private forward(batch: Batch, index: number, step: number, hashes: number[]): void {
    const [slot, start, count, , , sample, samples] = batch.rows.subarray(index * ROW_WORDS);
    if (samples > count || (samples > 0 && sample !== hashes.length)) throw new Error("a row's samples are misplaced");
    let hash = ROOT_HASH;
    for (let position = 0; position < start; position++) {
      const row = this.cacheRow(slot, position);
      const where = `slot ${slot}, position ${position} of ${start + count}`;
      if (this.writtenIn[row] === step) throw new Error(`${where}: another sequence of the same step writes here`);
      if (this.hashes[row] === POISON) throw new Error(`${where}: never computed`);
      if (this.before[row] !== hash) throw new Error(`${where}: holds another sequence's K/V`);
      hash = this.hashes[row];
    }
    for (let position = start; position < start + count; position++) {
      const token = this.tokenTable.at(slot, position);
      if (token < 0) throw new Error(`slot ${slot} has no token at position ${position}`);
      const row = this.cacheRow(slot, position);
      this.before[row] = hash;
      hash = mix(hash, token);
      this.hashes[row] = hash;
      if (position >= start + count - samples) hashes.push(hash);
    }
    if (samples === 0) return;
    const [sampledSlot, position] = batch.samplingRows.subarray((sample + samples - 1) * SAMPLING_WORDS);
    const drawn = sampledSlot === slot && position === start + count;
    if (!drawn && sampledSlot !== this.maxSequences) throw new Error("a sampling row is of another row");
    if (drawn && position >= this.maxContext) throw new Error("a token is sampled beyond the context");
  }

  private sample(batch: Batch, row: number, hashes: readonly number[]): number {
    const sampling = batch.samplingRows.subarray(row * SAMPLING_WORDS, (row + 1) * SAMPLING_WORDS);
    const { penaltyRows, penalties, biasEntries, biases } = batch.logits;
    let hash = hashes[row];
    for (let i = 0; i < penalties; i++) {
      const words = penaltyRows.slice(i * PENALTY_WORDS, (i + 1) * PENALTY_WORDS);
      const [at, slot, promptLength, length] = words;
      if (at !== row) continue;
      const [repetition, presence, frequency] = new Float32Array(words.buffer).subarray(4);
      if (slot !== sampling[0] || length !== sampling[1]) throw new Error("penalties are of another row");
      const { stride, words: table } = this.tokenTable;
      const tokens = table.subarray(slot * stride, slot * stride + length);
      hash = penalized(hash, { repetition, presence, frequency }, tokens, promptLength);
    }
    const entries: [number, number][] = [];
    for (let i = 0; i < biases; i++) {
      const words = biasEntries.slice(i * BIAS_WORDS, (i + 1) * BIAS_WORDS);
      if (words[0] === row) entries.push([words[1], new Float32Array(words.buffer)[2]]);
    }
    const changed = biased(hash, entries);
    return draw(changed.hash, sampling, sampling[1], this.options, changed.banned);
  }

  private logprobsOf(batch: Batch, hashes: readonly number[], tokens: Int32Array): StepLogprobs {
    const { logprobRows, logprobs: rows, top } = batch.logits;
    const { vocabulary } = this.options;
    const hashAt = (index: number) => hashes[logprobRows[index * LOGPROB_WORDS]];
    const tokenAt = (index: number) => {
      const [row, token] = logprobRows.subarray(index * LOGPROB_WORDS);
      return token >= 0 ? token : tokens[row];
    };
    const topIds = Int32Array.from({ length: rows * top }, (_, i) =>
      topOf(hashAt(Math.floor(i / top)), i % top, vocabulary),
    );
    return {
      top,
      logprobs: Float32Array.from({ length: rows }, (_, i) => logprobOf(hashAt(i), tokenAt(i))),
      topIds,
      topLogprobs: Float32Array.from(topIds, (id, i) => logprobOf(hashAt(Math.floor(i / top)), id)),
    };
  }
}

function describe(batch: Batch): LoggedStep {
  const rows = [];
  for (let i = 0; i < batch.sequences; i++) {
    const at = i * ROW_WORDS;
    rows.push({
      slot: batch.rows[at],
      start: batch.rows[at + 1],
      count: batch.rows[at + 2],
      samples: batch.rows[at + 6] > 0,
    });
  }
  return { decodeRows: batch.decodeSequences, tokens: batch.tokens, rows };
}
