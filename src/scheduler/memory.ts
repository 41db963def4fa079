import { PagePool } from "../cache/page-pool.ts";
import { NaiveCache, type PrefixCache } from "../cache/prefix-cache.ts";
import { RadixCache } from "../cache/radix-cache.ts";
import type { TablePatches } from "../engine/batch.ts";
import type { StepEngine } from "../engine/types.ts";
import type { Sequence } from "./sequence.ts";

/**
 * Slots and pages of the running sequences. The device does everything in launch order, so pages that are given back
 * may be used by the next launch, whatever the steps in flight still read or write in them.
 */
export class SequenceMemory {
  private readonly pool: PagePool;
  private readonly cache: PrefixCache;
  private readonly pageSize: number;
  private readonly freeSlots: number[] = [];

  constructor(
    engine: StepEngine,
    cache: "radix" | "naive",
    private readonly maxRunning: number,
  ) {
    this.pageSize = engine.pageSize;
    this.pool = new PagePool(engine.numPages);
    this.cache = cache === "radix" ? new RadixCache(engine.pageSize) : new NaiveCache();
    for (let slot = maxRunning - 1; slot >= 0; slot--) this.freeSlots.push(slot);
  }

  /** Pages of `positions` tokens. */
  pagesFor(positions: number): number {
    return Math.ceil(positions / this.pageSize);
  }

  /** Pages that only the cache holds, and pages that sequences hold. */
  get cachedPages(): number {
    return this.cache.evictablePages;
  }
  get usedPages(): number {
    return this.pool.size - this.available;
  }

  /** Pages that can be had without preempting anyone. */
  get available(): number {
    return this.pool.free + this.cache.evictablePages;
  }

  /**
   * Gives a waiting sequence a slot and what the cache knows of its tokens, at most all but the last; false if its whole
   * length and a page for each of `running` sequences are not available.
   */
  start(sequence: Sequence, running: number): boolean {
    const needed = this.pagesFor(sequence.length);
    sequence.reservePages(needed);
    // What is cached is not computed, so that nothing could be told of it.
    const known = sequence.scores ? sequence.scored : sequence.length - 1;
    const limit = Math.floor(known / this.pageSize);
    const prefix = this.cache.match(sequence.namespace, sequence.tokens, limit, sequence.pages);
    if (needed - prefix.depth + running > this.available) {
      this.cache.unlock(prefix);
      return false;
    }
    sequence.state = "prefill";
    sequence.slot = this.freeSlots.pop()!;
    sequence.prefix = prefix;
    sequence.pageCount = prefix.depth;
    sequence.pagesWritten = 0;
    sequence.computed = prefix.depth * this.pageSize;
    sequence.tokensWritten = sequence.firstToken;
    return true;
  }

  /** Its next position lies on a page that it does not have yet. */
  needsPage(sequence: Sequence): boolean {
    return sequence.computed === sequence.pageCount * this.pageSize;
  }

  /** Positions that it could compute next without touching the last `reserve` available pages. */
  positionsFor(sequence: Sequence, reserve: number): number {
    const pages = sequence.pageCount + Math.max(0, this.available - reserve);
    return pages * this.pageSize - sequence.computed;
  }

  /** Evicts until `count` pages are free, which must be available. */
  makeFree(count: number): void {
    if (count > this.pool.free) this.cache.evict(count - this.pool.free, this.pool);
  }

  /** Gives a sequence `count` more pages, which must be available. */
  take(sequence: Sequence, count: number): void {
    if (count <= 0) return;
    this.makeFree(count);
    sequence.reservePages(sequence.pageCount + count);
    this.pool.take(sequence.pages, sequence.pageCount, count);
    sequence.pageCount += count;
  }

  /** Brings up to `room` more of its pages to the device's page table; true if all of them are there. */
  writePages(sequence: Sequence, patches: TablePatches, room: number): boolean {
    const from = sequence.pagesWritten;
    const to = Math.min(sequence.pageCount, from + room);
    patches.write(sequence.slot, from, sequence.pages, from, to);
    sequence.pagesWritten = to;
    return to === sequence.pageCount;
  }

  /** Gives the whole pages of a finished prefill to the cache. Its duplicates stay until rewrite() replaces them. */
  keep(sequence: Sequence): void {
    const whole = Math.floor(sequence.computed / this.pageSize);
    sequence.rewriteFrom = sequence.prefix!.depth;
    const { prefix, tokens, pages, duplicates } = sequence;
    sequence.prefix = this.cache.insert(prefix!, tokens, pages, whole, duplicates);
  }

  /**
   * Points up to `room` columns of the page table to the cache's pages and gives the duplicates that stood there back.
   * Returns true if any were. The patches are applied before the step's rows read or write.
   */
  rewrite(sequence: Sequence, patches: TablePatches, room: number): boolean {
    const { duplicates, rewriteFrom: from } = sequence;
    const count = Math.min(duplicates.length, room);
    if (count <= 0) return false;
    patches.write(sequence.slot, from, sequence.pages, from, from + count);
    sequence.rewriteFrom += count;
    this.pool.give(duplicates, 0, count);
    duplicates.splice(0, count);
    return true;
  }

  /** Takes everything back from a sequence. What is surely computed of its known tokens goes to the cache. */
  release(sequence: Sequence): void {
    // The last token, if it was sampled, is computed only if a further step was launched: it is left out in any case.
    const whole = Math.floor(Math.min(sequence.computed, sequence.length - 1) / this.pageSize);
    const { tokens, pages, duplicates } = sequence;
    const prefix = this.cache.insert(sequence.prefix!, tokens, pages, whole, duplicates);
    this.pool.give(pages, prefix.depth, sequence.pageCount);
    this.pool.give(duplicates, 0, duplicates.length);
    this.cache.unlock(prefix);
    this.freeSlots.push(sequence.slot);
    duplicates.length = 0;
    sequence.prefix = null;
    sequence.slot = -1;
    sequence.pageCount = sequence.pagesWritten = sequence.computed = 0;
  }

  /** Empties the cache of everything that is not locked. */
  flush(): void {
    this.cache.evict(this.cache.evictablePages, this.pool);
  }

  /** What Scheduler.checkInvariants would find when nothing runs, by counts alone. @throws Error if pages are lost. */
  checkIdle(): void {
    const { pool, cache, freeSlots, maxRunning } = this;
    if (this.available === pool.size && cache.evictablePages === cache.heldPages && freeSlots.length === maxRunning)
      return;
    throw new Error(
      `nothing runs, but of ${pool.size} pages ${pool.free} are free and ${cache.heldPages} cached, ` +
        `${cache.heldPages - cache.evictablePages} of them locked; ${freeSlots.length} of ${maxRunning} slots are free`,
    );
  }

  /** See Scheduler.checkInvariants. */
  check(running: readonly Sequence[]): void {
    const owners = new Array<string>(this.pool.size).fill("");
    const claim = (owner: string) => (page: number) => {
      if (owners[page] !== "") throw new Error(`page ${page} belongs to ${owners[page]} and to ${owner}`);
      owners[page] = owner;
    };
    this.pool.check(claim("the free list"));
    this.cache.check(
      running.map((sequence) => sequence.prefix!),
      claim("the cache"),
    );
    const slots = new Set(this.freeSlots);
    for (const sequence of running) {
      const own = claim(`sequence ${sequence.uid}`);
      sequence.pages.subarray(sequence.prefix!.depth, sequence.pageCount).forEach(own);
      sequence.duplicates.forEach(own);
      slots.add(sequence.slot);
    }
    const lost = owners.indexOf("");
    if (lost >= 0) throw new Error(`page ${lost} is lost`);
    if (slots.size !== this.maxRunning || this.freeSlots.length + running.length !== this.maxRunning) {
      throw new Error(`slots are lost or shared: ${this.freeSlots.length} free, ${running.length} in use`);
    }
  }
}
