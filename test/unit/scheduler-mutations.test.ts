/** The random driver proves itself: each of these defects, planted in a sound scheduler, must make it fail. */
import { expect, test } from "bun:test";
import type { PagePool } from "../../src/cache/page-pool.ts";
import type { CachedPrefix, PrefixCache } from "../../src/cache/prefix-cache.ts";
import { RadixCache } from "../../src/cache/radix-cache.ts";
import type { Batch, TablePatches } from "../../src/engine/batch.ts";
import type { SequenceMemory } from "../../src/scheduler/memory.ts";
import type { Sequence } from "../../src/scheduler/sequence.ts";
import type { SimulatedEngine } from "./support/simulated-engine.ts";
import { drive, type Setup } from "./support/traffic.ts";

const SEEDS = 1500;

type Method<Arguments extends unknown[], Result> = (...args: Arguments) => Result;

/** What the defects reach into. */
interface Node extends CachedPrefix {
  locks: number;
}
interface Cache extends PrefixCache {
  split: Method<[Node, number], Node>;
  lock: Method<[Node], void>;
}
type Memory = Omit<SequenceMemory, "cache" | "pool"> & { pool: PagePool; cache: Cache };
interface Internals {
  memory: Memory;
  inFlight: unknown;
  spareBatch: Batch | null;
  blocked: boolean;
  sequences: Map<number, Sequence>;
  waiting: Sequence[];
  add: Setup["scheduler"]["add"];
  findDecodePages: Method<[], number>;
  addChunk: Method<[unknown, Batch, Sequence], boolean>;
  launch: Method<[{ batch: Batch }], void>;
  preempt: Method<[Sequence], void>;
  collectInFlight: Method<[], void>;
  forgetEnded: Method<[], void>;
}

interface Target {
  scheduler: Internals;
  memory: Memory;
  /** null: the scenario has no radix tree. */
  radix: Cache | null;
  engine: SimulatedEngine;
}

/** Replaces a method of one object by what `make` makes of it. */
function wrap<T extends object, K extends keyof T>(target: T, name: K, make: (original: T[K]) => T[K]): void {
  const original = target[name] as unknown as (...args: unknown[]) => unknown;
  target[name] = make(original.bind(target) as unknown as T[K]);
}

const writesNothing = { write() {} } as unknown as TablePatches;

const defects: Record<string, (target: Target) => void> = {
  "duplicate pages are given back before their row is rewritten": ({ memory }) =>
    wrap(memory, "keep", (keep) => (sequence) => {
      keep(sequence);
      memory.pool.give(sequence.duplicates, 0, sequence.duplicates.length);
      sequence.duplicates.length = 0;
    }),
  "duplicate pages are given back and their row is never rewritten": ({ memory }) =>
    wrap(memory, "rewrite", (rewrite) => (sequence, _, room) => rewrite(sequence, writesNothing, room)),
  "duplicate pages are forgotten": ({ memory }) =>
    wrap(memory, "release", (release) => (sequence) => {
      sequence.duplicates.length = 0;
      release(sequence);
    }),
  "an unlock is skipped": ({ radix }) => radix && wrap(radix, "unlock", () => () => {}),
  "a match does not lock": ({ radix }) => radix && wrap(radix, "lock", () => () => {}),
  "a split drops the locks": ({ radix }) =>
    radix &&
    wrap(radix, "split", (split) => (node, count) => {
      const upper = split(node, count);
      upper.locks = 0;
      return upper;
    }),
  "a new page is not written to the page table": ({ memory }) =>
    wrap(memory, "writePages", (write) => (sequence, patches, room) => {
      return write(sequence, sequence.pagesWritten > 0 ? writesNothing : patches, room);
    }),
  "cached pages are not written to the page table": ({ memory }) =>
    wrap(memory, "start", (start) => (sequence, running) => {
      const started = start(sequence, running);
      sequence.pagesWritten = sequence.pageCount;
      return started;
    }),
  "a chunk's last token is not uploaded": ({ engine }) =>
    wrap(engine, "nextBatch", (nextBatch) => () => {
      const batch = nextBatch();
      const { tokenPatches } = batch;
      batch.tokenPatches.write = (row, column, source, from, to) =>
        Object.getPrototypeOf(tokenPatches).write.call(tokenPatches, row, column, source, from, to - 1);
      return batch;
    }),
  "the last sampled token is cached": ({ memory }) =>
    wrap(memory, "release", (release) => (sequence) => {
      const { length } = sequence;
      if (sequence.state === "decode") {
        sequence.computed = Math.min(length, sequence.pageCount * pageSizeOf(memory));
        sequence.length++;
      }
      release(sequence);
      sequence.length = length;
    }),
  "a prompt is cached before it is launched": ({ scheduler, memory }) =>
    wrap(scheduler, "addChunk", (addChunk) => (flight, batch, sequence) => {
      const ended = addChunk(flight, batch, sequence);
      if (ended) {
        sequence.state = "decode";
        memory.keep(sequence);
      }
      return ended;
    }),
  "a fully cached prompt leaves nothing to compute": ({ radix }) =>
    radix && wrap(radix, "match", (match) => (name, tokens, limit, pages) => match(name, tokens, limit + 1, pages)),
  "a sequence is preempted while a row is in flight": ({ scheduler }) =>
    wrap(scheduler, "findDecodePages", (find) => () => {
      const { inFlight } = scheduler;
      scheduler.inFlight = null;
      const pages = find();
      scheduler.inFlight = inFlight;
      return pages;
    }),
  "pages of a sequence that ended are used in a step that still has its row": ({ scheduler, memory }) =>
    wrap(memory, "take", (take) => (sequence, count) => {
      scheduler.collectInFlight();
      take(sequence, count);
    }),
  "a row is launched beyond the length limit": ({ scheduler }) =>
    wrap(scheduler, "add", (add) => (request) => {
      add(request);
      const sequence = scheduler.sequences.get(request.uid);
      if (sequence === undefined) return;
      Object.defineProperty(sequence, "decodes", { get: () => sequence.state === "decode" && !sequence.aborted });
    }),
  "staging is filled again while its step is in flight": ({ scheduler }) =>
    wrap(scheduler, "launch", (launch) => (flight) => {
      launch(flight);
      scheduler.spareBatch = flight.batch;
    }),
  "a preempted sequence loses its answer": ({ scheduler }) =>
    wrap(scheduler, "preempt", (preempt) => (sequence) => {
      sequence.length = sequence.promptLength;
      preempt(sequence);
    }),
  "an end does not let the queue go on": ({ scheduler }) =>
    wrap(scheduler, "forgetEnded", (forget) => () => {
      const { blocked } = scheduler;
      forget();
      scheduler.blocked = blocked;
    }),
  "penalties do not see the tokens of a cached prefix": ({ memory }) =>
    wrap(memory, "start", (start) => (sequence, running) => {
      const started = start(sequence, running);
      sequence.tokensWritten = sequence.computed;
      return started;
    }),
  "a preempted prompt is told of again": ({ scheduler }) =>
    wrap(scheduler, "preempt", (preempt) => (sequence) => {
      sequence.scored = 0;
      preempt(sequence);
    }),
  "a prompt's logprobs are lost where its prefix is cached": ({ memory }) =>
    wrap(memory, "start", (start) => (sequence, running) => {
      const { scored } = sequence;
      sequence.scored = sequence.promptLength;
      const started = start(sequence, running);
      sequence.scored = scored;
      return started;
    }),
  "a request does not stand where its priority says": ({ scheduler }) =>
    wrap(scheduler, "preempt", (preempt) => (sequence) => {
      preempt(sequence);
      scheduler.waiting.splice(scheduler.waiting.indexOf(sequence), 1);
      scheduler.waiting.push(sequence);
    }),
  "preemption keeps the pages": ({ memory, scheduler }) =>
    wrap(scheduler, "preempt", (preempt) => (sequence) => {
      sequence.pageCount = Math.max(sequence.prefix!.depth, sequence.pageCount - 1);
      sequence.computed = Math.min(sequence.computed, sequence.pageCount * pageSizeOf(memory));
      preempt(sequence);
    }),
};

const pageSizeOf = (memory: Memory) => (memory as unknown as { pageSize: number }).pageSize;

/** First seed at which the driver fails. */
function firstFailure(defect: (target: Target) => void): { seed: number; message: string } | null {
  for (let seed = 1; seed <= SEEDS; seed++) {
    try {
      drive(seed, ({ scheduler, engine }) => {
        const internals = scheduler as unknown as Internals;
        const { memory } = internals;
        const radix = (memory.cache as unknown) instanceof RadixCache ? memory.cache : null;
        defect({ scheduler: internals, memory, radix, engine });
      });
    } catch (error) {
      return { seed, message: (error as Error).message };
    }
  }
  return null;
}

for (const [name, defect] of Object.entries(defects)) {
  test(`the driver finds that ${name}`, () => {
    const failure = firstFailure(defect);
    expect(failure).not.toBeNull();
    if (process.env.SHOW_FAILURES) console.log(name, "\n  ", failure?.message.split("\n")[0]);
  }, 60_000);
}

test("the driver passes when nothing is damaged", () => {
  expect(firstFailure(() => {})).toBeNull();
}, 60_000);
