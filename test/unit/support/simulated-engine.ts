/**
 * A device that computes nothing but minds everything: its tables and KV rows behave as a GPU's do. A KV row holds a
 * hash of all tokens up to its own, so a step can check at the time it runs that each context row is the right one,
 * and the sampled token is a function of that hash, the request's sampling and the position. Launches are queued and
 * run late, in order: what is overwritten or given away too early is found out.
 */
import { Batch, PATCH_WORDS, ROW_WORDS, SAMPLING_WORDS, TablePatches } from "../../../src/engine/batch.ts";
import type { StepEngine } from "../../../src/engine/types.ts";
import { Finish, type FinishCode, type Request } from "../../../src/message/types.ts";

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
  /** Asked before each call: true runs a queued step then, and not only when it must have run. */
  runsEarly: () => boolean;
}

/** One launched step, as a test wants to see it. */
export interface LoggedStep {
  decodeRows: number;
  tokens: number;
  rows: { slot: number; start: number; count: number; samples: boolean }[];
}

interface Slot {
  batch: Batch;
  tokens: Int32Array;
  launched: boolean;
}

function mix(hash: number, word: number): number {
  let h = Math.imul(hash ^ word, 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
  return h ^ (h >>> 13);
}

/** The token drawn after a prefix with this hash. */
function draw(hash: number, sampling: Int32Array, position: number, options: SimulatedOptions): number {
  const random = sampling[2] !== 0;
  const key = random ? mix(mix(mix(hash, sampling[6]), sampling[7]), position) : mix(hash, 77);
  if ((key >>> 8) % 1000 < options.eosRate * 1000) return EOS;
  return 1 + ((mix(key, 5) >>> 1) % (options.vocabulary - 1));
}

/** What a request gives when nothing else exists: the answer's tokens and why it ended. */
export function loneRun(request: Request, options: SimulatedOptions): { tokens: number[]; finish: FinishCode } {
  const batch = makeBatch({ ...options, maxSequences: 1 }, 0);
  batch.add(0, 0, 1, false, request.sampling);
  let hash = ROOT_HASH;
  for (const token of request.tokens) hash = mix(hash, token);
  const tokens: number[] = [];
  for (;;) {
    const token = draw(hash, batch.samplingRows, request.tokens.length + tokens.length, options);
    tokens.push(token);
    hash = mix(hash, token);
    if (request.stopTokenIds.includes(token) || (token === EOS && !request.ignoreEos)) {
      return { tokens, finish: Finish.stop };
    }
    if (tokens.length === request.maxTokens) return { tokens, finish: Finish.length };
  }
}

function makeBatch(options: SimulatedOptions, index: number): Batch {
  const { pageSize, maxSequences, maxTokens, maxContext } = options;
  const maxPageValues = options.maxPageValues ?? maxTokens + 2 * Math.ceil(maxContext / pageSize);
  const limits = { maxSequences, maxTokens, maxPageValues, maxTokenValues: maxTokens, pageSize };
  const words = (count: number) => new Int32Array(count);
  const patches = 2 * maxSequences * PATCH_WORDS;
  return new Batch(
    index,
    limits,
    words(maxSequences * ROW_WORDS),
    words(maxSequences * SAMPLING_WORDS),
    words(maxSequences),
    words(maxSequences),
    new TablePatches(words(patches), words(maxPageValues)),
    new TablePatches(words(patches), words(maxTokens)),
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
      tokens: new Int32Array(maxSequences),
      launched: false,
    }));
    this.limits = this.slots[0].batch.limits;
    this.pageTable = new Table(maxSequences, Math.ceil(maxContext / pageSize));
    this.tokenTable = new Table(maxSequences, maxContext);
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

  private maybeRun(): void {
    if (this.queue.length > 0 && this.options.runsEarly()) this.runOldest();
  }

  private runOldest(): void {
    const { batch, tokens } = this.queue.shift()!;
    const step = this.executed++;
    this.pageTable.write(batch.pagePatches);
    this.tokenTable.write(batch.tokenPatches);
    this.checkShape(batch);
    for (let i = 0; i < batch.sequences; i++) this.claimRows(batch, i, step);
    const last: number[] = [];
    for (let i = 0; i < batch.sequences; i++) last.push(this.forward(batch, i, step));
    for (let i = 0; i < batch.sequences; i++) this.sample(batch, i, last[i], tokens);
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

  /** Checks the row's context, writes its K/V, and returns the hash of the whole. */
  private forward(batch: Batch, index: number, step: number): number {
    const [slot, start, count] = batch.rows.subarray(index * ROW_WORDS);
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
    }
    return hash;
  }

  private sample(batch: Batch, index: number, hash: number, tokens: Int32Array): void {
    const row = batch.rows.subarray(index * ROW_WORDS, (index + 1) * ROW_WORDS);
    const sample = row[5];
    if (sample < 0) return;
    const sampling = batch.samplingRows.subarray(sample * SAMPLING_WORDS, (sample + 1) * SAMPLING_WORDS);
    const position = sampling[1];
    if (sampling[0] !== row[0] || position !== row[1] + row[2]) throw new Error("a sampling row is of another row");
    if (position >= this.maxContext) throw new Error("a token is sampled beyond the context");
    tokens[sample] = draw(hash, sampling, position, this.options);
    this.tokenTable.words[row[0] * this.tokenTable.stride + position] = tokens[sample];
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
      samples: batch.rows[at + 5] >= 0,
    });
  }
  return { decodeRows: batch.decodeSequences, tokens: batch.tokens, rows };
}
