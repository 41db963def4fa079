/**
 * The scheduler room: which tokens of which sequences the device computes next.
 * Read sequence.ts (what a request is here), this file (a step), flight.ts (one on its way), memory.ts (whose pages),
 * then loop.ts (the thread).
 */
import { type Batch, PATCH_WORDS, type TablePatches } from "../engine/batch.ts";
import type { StepEngine } from "../engine/types.ts";
import { NO_TOKEN, type TokenOutput } from "../message/ring.ts";
import { type EngineOptions, Finish, type FinishCode, type Request, Statistic } from "../message/types.ts";
import { Flight, NOTHING_TOLD, type Told } from "./flight.ts";
import { SequenceMemory } from "./memory.ts";
import { insertRanked, refusalOf, Sequence } from "./sequence.ts";

/** `maxRunningRequests` and `maxPrefillLength`: 0 is what the engine was built for. */
export type SchedulerOptions = Pick<EngineOptions, "maxRunningRequests" | "maxPrefillLength" | "cache" | "overlap">;

/** Where tokens go. */
export interface OutputSink extends TokenOutput {
  /** Why a request was refused; its record with Finish.error follows. */
  reject?(uid: number, message: string): void;
}

/**
 * Serves requests by rank (priority, then arrival) on a StepEngine, in steps of at most maxPrefillLength tokens: a row
 * of one token for each running sequence, then chunks of prompts. Pages are taken as they are needed, not reserved.
 *
 * `waiting` and `running` are in order of rank; the first that waits starts, the last that runs is preempted.
 *
 * Why every request ends. Every step that has decode rows brings each of them a token, and they are bounded; the first
 * that runs is not preempted unless requests that precede it come. A step without decode rows and without a chunk
 * cannot happen while something waits or runs: with nothing else running, every page that is not the sequence's own is
 * free or can be evicted, and its whole length was checked to fit the pool when it was added.
 * Why it does not thrash. A sequence (re)starts when its length and a page for each running sequence are available.
 * Once it is preempted and the others have taken their pages, what is available is at most its own pages, so it comes
 * back only after another sequence has ended (or given back duplicates, once after its prefill), or after one that ran
 * has been preempted as well. That one precedes it, so it has to come back before, and the same holds for it: as long
 * as none ends and none comes, no preempted sequence starts again.
 */
export class Scheduler {
  readonly statistics: Int32Array;
  private readonly memory: SequenceMemory;
  /** Tokens of a step. */
  private readonly budget: number;
  private readonly maxRunning: number;
  private readonly sequences = new Map<number, Sequence>();
  private readonly waiting: Sequence[] = [];
  private readonly running: Sequence[] = [];
  /** The running sequence whose prompt is computed in chunks: the one that started last. */
  private prefilling: Sequence | null = null;
  /** The first in the queue does not fit, and nothing has been given back since it was tried. */
  private blocked = false;
  private someEnded = false;
  private arrivals = 0;
  /** Nothing was to be done since the last step. */
  private rested = true;
  private inFlight: Flight | null = null;
  private spareFlight = new Flight();
  private nextFlight = new Flight();
  /** Handed out by the engine and not launched. */
  private spareBatch: Batch | null = null;

  /** @param statistics Words by Statistic, written once a step. */
  constructor(
    private readonly engine: StepEngine,
    private readonly options: SchedulerOptions,
    private readonly output: OutputSink,
    statistics: Int32Array = new Int32Array(Statistic.words),
  ) {
    const { limits } = engine;
    this.statistics = statistics;
    this.budget = Math.min(options.maxPrefillLength || limits.maxTokens, limits.maxTokens);
    // No more sequences than the budget has tokens: then every one that runs advances in every step.
    const slots = Math.min(engine.maxSequences, limits.maxSequences, this.budget);
    this.maxRunning = Math.min(options.maxRunningRequests || slots, slots);
    this.memory = new SequenceMemory(engine, options.cache, this.maxRunning);
    if (limits.maxPageValues < Math.max(this.memory.pagesFor(engine.maxContext), this.maxRunning)) {
      throw new RangeError(`page-table staging of ${limits.maxPageValues} words does not hold one sequence's pages`);
    }
    if (limits.maxTokenValues < engine.maxContext) {
      throw new RangeError(`token-table staging of ${limits.maxTokenValues} words does not hold one sequence's tokens`);
    }
  }

  /** Queues a request, or refuses one that can never fit. @throws Error if its uid lives already. */
  add(request: Request): void {
    const { uid } = request;
    if (this.sequences.has(uid)) throw new Error(`request ${uid} lives already`);
    const refusal = refusalOf(request, this.engine);
    if (refusal !== null) {
      this.output.reject?.(uid, refusal);
      this.output.push(uid, NO_TOKEN, Finish.error, 0, 0);
      return;
    }
    const sequence = new Sequence(request, this.engine.eosTokenIds, this.arrivals++);
    this.sequences.set(uid, sequence);
    insertRanked(this.waiting, sequence);
    if (this.waiting[0] === sequence) this.blocked = false;
    this.count(Statistic.waitingRequests, 1);
  }

  /** Ends a request early: now, or if it is on the device when the step in flight is read. Unknown uids are ignored. */
  abort(uid: number): void {
    const sequence = this.sequences.get(uid);
    if (sequence === undefined || sequence.aborted) return;
    if (this.prefilling === sequence) this.prefilling = null;
    if (sequence.inFlight > 0) {
      sequence.aborted = true;
      return;
    }
    if (sequence.state === "waiting") this.waiting.splice(this.waiting.indexOf(sequence), 1);
    this.end(sequence, NO_TOKEN, Finish.abort);
    this.forgetEnded();
  }

  /** Empties the prefix cache; false, and nothing is done, while requests wait or run. */
  flushCache(): boolean {
    if (this.sequences.size > 0) return false;
    this.collectInFlight();
    this.memory.flush();
    this.writeStatistics();
    return true;
  }

  /**
   * Launches a step and collects the one before (without overlap: the same one). Pushes at most two records a running
   * sequence. Returns false if there is nothing more to do.
   */
  step(): boolean {
    const next = this.prepare();
    if (next !== null) this.launch(next);
    const { overlap } = this.options;
    this.collectInFlight();
    this.inFlight = next;
    if (!overlap) this.collectInFlight();
    this.writeStatistics();
    if (this.sequences.size > 0 || this.inFlight !== null) return true;
    this.rested = true;
    this.memory.checkIdle();
    return false;
  }

  /** The next step's rows; null if there are none. Reads the step in flight only if pages run out. */
  private prepare(): Flight | null {
    if (this.running.length === 0 && this.waiting.length === 0) return null;
    const decodePages = this.findDecodePages();
    const flight = this.nextFlight;
    flight.batch = this.spareBatch ?? this.engine.nextBatch();
    this.spareBatch = null;
    flight.count = 0;
    this.addDecodeRows(flight, flight.batch, decodePages);
    this.addPrefillRows(flight, flight.batch);
    if (flight.count > 0) return flight;
    this.spareBatch = flight.batch;
    return null;
  }

  private launch(flight: Flight): void {
    const batch = flight.batch!;
    this.engine.launch(batch);
    this.nextFlight = this.spareFlight;
    this.spareFlight = flight;
    flight.rested = this.rested;
    this.rested = false;
    this.count(Statistic.steps, 1);
    for (let i = 0; i < flight.count; i++) {
      const sequence = flight.sequences[i];
      if (sequence.state !== "prefill" || flight.samples[i] === -1) continue;
      sequence.state = "decode";
      this.memory.keep(sequence);
      this.blocked = false;
    }
  }

  /**
   * Makes sure that the next step's decode rows can get the new pages they need, and returns how many. Evicting comes
   * first and disturbs nobody, then the step in flight is read, which may end a sequence, then the last by rank is preempted.
   */
  private findDecodePages(): number {
    const { memory, running } = this;
    for (;;) {
      let needed = 0;
      let duplicates = 0;
      for (let i = 0; i < running.length; i++) {
        const sequence = running[i];
        if (!sequence.decodes) continue;
        if (memory.needsPage(sequence)) needed++;
        duplicates += sequence.duplicates.length;
      }
      // Of the duplicates, as many as addDecodeRows has staging to replace.
      const freed = Math.min(duplicates, this.engine.limits.maxPageValues - running.length);
      if (needed <= memory.available + freed) return needed;
      if (this.inFlight !== null) this.collectInFlight();
      else this.preempt(running.at(-1)!);
    }
  }

  private addDecodeRows(flight: Flight, batch: Batch, newPages: number): void {
    const { running, memory } = this;
    const { pagePatches } = batch;
    for (let i = 0; i < running.length; i++) {
      const sequence = running[i];
      if (sequence.duplicates.length === 0 || !sequence.decodes) continue;
      // Each row may still need a patch for a new page.
      if (memory.rewrite(sequence, pagePatches, room(pagePatches, running.length))) this.blocked = false;
    }
    memory.makeFree(newPages);
    for (let i = 0; i < running.length; i++) {
      const sequence = running[i];
      if (!sequence.decodes) continue;
      if (memory.needsPage(sequence)) {
        memory.take(sequence, 1);
        memory.writePages(sequence, pagePatches, 1);
      }
      flight.add(sequence, 1, true, sequence.sampling);
    }
  }

  private addPrefillRows(flight: Flight, batch: Batch): void {
    if (this.prefilling !== null && !this.addChunk(flight, batch, this.prefilling)) return;
    while (!this.blocked && batch.tokens < this.budget && this.running.length < this.maxRunning) {
      const sequence = this.waiting[0];
      if (sequence === undefined) return;
      if (!this.memory.start(sequence, this.running.length)) {
        this.blocked = true;
        return;
      }
      this.waiting.shift();
      insertRanked(this.running, sequence);
      this.countStart(sequence);
      if (!this.addChunk(flight, batch, sequence)) return;
    }
  }

  /**
   * Adds as much of a prompt as budget, staging and pages allow, a page for each other running sequence left aside.
   * Returns true if that ends the prompt.
   */
  private addChunk(flight: Flight, batch: Batch, sequence: Sequence): boolean {
    const { memory } = this;
    const { pagePatches, tokenPatches } = batch;
    this.prefilling = sequence;
    const { computed: begin, tokensWritten } = sequence;
    const fits = memory.positionsFor(sequence, this.running.length - 1);
    const uploads = room(tokenPatches, 0) - (begin - tokensWritten);
    const samples = this.engine.limits.maxSamples - batch.samples;
    let count = Math.min(sequence.length - begin, this.budget - batch.tokens, uploads, fits);
    if (sequence.scores) count = Math.min(count, samples);
    if (count <= 0 || samples <= 0) return false;
    const end = begin + count;
    memory.take(sequence, memory.pagesFor(end) - sequence.pageCount);
    if (!memory.writePages(sequence, pagePatches, room(pagePatches, 0))) return false;
    tokenPatches.write(sequence.slot, tokensWritten, sequence.tokens, tokensWritten, end);
    const last = end === sequence.length;
    // Prompts of which one token is left to compute look like decode rows as long as no longer chunk stands before.
    const decode = last && count === 1 && batch.decodeSequences === batch.sequences;
    flight.add(sequence, count, decode, last ? sequence.sampling : null);
    sequence.tokensWritten = end;
    sequence.scored = Math.max(sequence.scored, Math.min(end, sequence.promptLength - 1));
    if (last) this.prefilling = null;
    return last;
  }

  /** Waits for the step in flight and takes in its tokens. */
  private collectInFlight(): void {
    const flight = this.inFlight;
    if (flight === null) return;
    this.inFlight = null;
    const tokens = this.engine.collect(flight.batch!);
    this.countTime(flight);
    for (let i = 0; i < flight.count; i++) {
      const sequence = flight.sequences[i];
      sequence.inFlight--;
      if (sequence.state === "ended") continue;
      if (!sequence.aborted) this.accept(flight, i, tokens);
      else if (sequence.inFlight === 0) this.end(sequence, NO_TOKEN, Finish.abort);
    }
    this.forgetEnded();
  }

  /** Takes in what a step gave to row `index`. */
  private accept(flight: Flight, index: number, tokens: Int32Array): void {
    const sequence = flight.sequences[index];
    const sample = flight.samples[index];
    const told = sequence.reportsLogprobs ? flight.told(index, this.engine, tokens) : NOTHING_TOLD;
    if (sample < 0) {
      if (told.promptLogprobs !== null) this.emit(sequence, NO_TOKEN, Finish.none, told);
      return;
    }
    this.count(Statistic.generatedTokens, 1);
    const token = tokens[sample];
    const finish = sequence.append(token);
    if (finish === Finish.none) this.emit(sequence, token, finish, told);
    else this.end(sequence, token, finish, told);
  }

  private end(sequence: Sequence, token: number, finish: FinishCode, told = NOTHING_TOLD): void {
    if (sequence.state !== "waiting") this.memory.release(sequence);
    sequence.state = "ended";
    this.sequences.delete(sequence.uid);
    this.emit(sequence, token, finish, told);
    this.someEnded = true;
  }

  /** What is large goes its own way, and with it all else of the request, so that it stays in order. */
  private emit(sequence: Sequence, token: number, finish: FinishCode, told: Told): void {
    const { output } = this;
    const { uid, waited } = sequence;
    const cachedTokens = Math.max(0, sequence.cachedTokens);
    if (output.pushScored === undefined || !sequence.reportsLogprobs) {
      output.push(uid, token, finish, cachedTokens, waited);
    } else {
      output.pushScored({ uid, token, finish, cachedTokens, waited, ...told });
    }
  }

  private forgetEnded(): void {
    if (!this.someEnded) return;
    this.someEnded = this.blocked = false;
    const { running } = this;
    let kept = 0;
    for (const sequence of running) if (sequence.state !== "ended") running[kept++] = sequence;
    running.length = kept;
  }

  /** Sends the last running sequence back to the queue. Nothing is in flight. */
  private preempt(sequence: Sequence): void {
    this.memory.release(sequence);
    sequence.state = "waiting";
    if (this.prefilling === sequence) this.prefilling = null;
    this.running.pop();
    insertRanked(this.waiting, sequence);
    this.blocked = false;
    this.count(Statistic.preemptions, 1);
  }

  private countStart(sequence: Sequence): void {
    if (sequence.cachedTokens >= 0) return;
    sequence.start(sequence.computed);
    this.count(Statistic.promptTokens, sequence.promptLength);
    this.count(Statistic.cachedTokens, sequence.cachedTokens);
  }

  private count(statistic: number, by: number): void {
    this.statistics[statistic] = (this.statistics[statistic] + by) & 0x7fffffff;
  }

  private countTime(flight: Flight): void {
    const { busy, idle } = this.engine.time(flight.batch!);
    this.count(Statistic.busyMicroseconds, Math.round(1000 * busy));
    if (!flight.rested) this.count(Statistic.idleMicroseconds, Math.round(1000 * idle));
  }

  private writeStatistics(): void {
    const { statistics, memory } = this;
    statistics[Statistic.runningRequests] = this.running.length;
    statistics[Statistic.waitingRequests] = this.waiting.length;
    statistics[Statistic.usedPages] = memory.usedPages;
    statistics[Statistic.cachedPages] = memory.cachedPages;
    statistics[Statistic.totalPages] = this.engine.numPages;
  }

  /**
   * Every page is free, in the cache, or owned by exactly one sequence; locks and slots are those of the running ones;
   * those that run and those that wait are in order of rank.
   * @throws Error that says what is wrong.
   */
  checkInvariants(): void {
    this.memory.check(this.running);
    for (const list of [this.running, this.waiting]) {
      if (list.some((sequence, i) => i > 0 && !list[i - 1].precedes(sequence))) throw new Error("the order is wrong");
    }
    for (const sequence of this.waiting) {
      if (sequence.prefix !== null || sequence.pageCount > 0) throw new Error(`${sequence.uid} waits with pages`);
    }
    if (this.running.length + this.waiting.length !== this.sequences.size) {
      throw new Error(`${this.sequences.size} sequences, but ${this.running.length} run, ${this.waiting.length} wait`);
    }
  }
}

/** Words that still fit, with a patch and a word kept back for each of `others`. */
function room(patches: TablePatches, others: number): number {
  const free = patches.patches.length / PATCH_WORDS - patches.count;
  return free > others ? Math.max(0, patches.room - others) : 0;
}
