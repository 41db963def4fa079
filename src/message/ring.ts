/**
 * The way of the tokens: a single-producer single-consumer ring in shared memory, from the scheduler thread to main.
 *
 *   word 0       records published so far (producer writes)    } modulo 2^32, each on a cache line of its own, so that
 *   word 16      records consumed so far (consumer writes)     } the two threads do not fight over one
 *   word 32 ...  capacity records of 5 words: uid, token, finish, cachedTokens, waited
 *
 * The producer publishes once a step: one store and one notify, however many tokens. It waits when the ring is full;
 * the consumer never does.
 */
import type { FinishCode, ScoredOutput } from "./types.ts";

const PUBLISHED = 0;
const CONSUMED = 16;
const HEADER_WORDS = 32;
const RECORD_WORDS = 5;

/** Stands for the token of a record that carries only a finish. */
export const NO_TOKEN = -1;

/** Where a scheduler puts what its steps gave. */
export interface TokenOutput {
  /**
   * One token of a sequence, NO_TOKEN if it ended without one.
   * @param finish Why the sequence ended with this record; Finish.none if it goes on.
   * @param cachedTokens Tokens of the prompt that were found in the prefix cache.
   * @param waited Microseconds from Request.queuedAt to the launch of the first step, below 2^31; 0 if there was none.
   */
  push(uid: number, token: number, finish: FinishCode, cachedTokens: number, waited: number): void;
  /** The same for a request that asked for logprobs. */
  pushScored?(output: ScoredOutput): void;
}

/** Receives the records in the order they were pushed. */
export type TokenInput = (uid: number, token: number, finish: FinishCode, cachedTokens: number, waited: number) => void;

/** Memory of a ring of `capacity` records, a power of two. */
export function createRing(capacity = 16384): SharedArrayBuffer {
  if (capacity < 1 || (capacity & (capacity - 1)) !== 0) throw new RangeError("capacity must be a power of two");
  return new SharedArrayBuffer((HEADER_WORDS + capacity * RECORD_WORDS) * 4);
}

/** The scheduler's end. */
export class RingProducer implements TokenOutput {
  readonly capacity: number;
  private readonly words: Int32Array;
  private readonly mask: number;
  private written: number;
  private published: number;

  /** @param onStall Called when the producer begins to wait for the consumer. */
  constructor(
    ring: SharedArrayBuffer,
    private readonly onStall: () => void = () => {},
  ) {
    this.words = new Int32Array(ring);
    this.capacity = (this.words.length - HEADER_WORDS) / RECORD_WORDS;
    this.mask = this.capacity - 1;
    this.published = this.written = Atomics.load(this.words, PUBLISHED);
  }

  /** Records that can be pushed without waiting. */
  get room(): number {
    return this.capacity - ((this.written - Atomics.load(this.words, CONSUMED)) | 0);
  }

  /** Waits until `records` (at most the capacity) fit. To be called between steps. */
  reserve(records: number): void {
    if (this.room >= records) return;
    this.publish();
    this.onStall();
    for (;;) {
      const consumed = Atomics.load(this.words, CONSUMED);
      if (this.room >= records) return;
      Atomics.wait(this.words, CONSUMED, consumed);
    }
  }

  push(uid: number, token: number, finish: FinishCode, cachedTokens: number, waited: number): void {
    this.reserve(1);
    const { words } = this;
    const at = HEADER_WORDS + (this.written & this.mask) * RECORD_WORDS;
    words[at] = uid;
    words[at + 1] = token;
    words[at + 2] = finish;
    words[at + 3] = cachedTokens;
    words[at + 4] = waited;
    this.written = (this.written + 1) | 0;
  }

  /** Hands everything pushed so far to the consumer and wakes it. */
  publish(): void {
    if (this.published === this.written) return;
    this.published = this.written;
    Atomics.store(this.words, PUBLISHED, this.published);
    Atomics.notify(this.words, PUBLISHED);
  }
}

/** Main's end. */
export class RingConsumer {
  private readonly words: Int32Array;
  private readonly mask: number;
  private consumed: number;
  private closed = false;

  constructor(ring: SharedArrayBuffer) {
    this.words = new Int32Array(ring);
    this.mask = (this.words.length - HEADER_WORDS) / RECORD_WORDS - 1;
    this.consumed = Atomics.load(this.words, CONSUMED);
  }

  /** Takes out what is published, calling `accept` for each record, and returns their number. */
  drain(accept: TokenInput): number {
    const { words, mask } = this;
    const published = Atomics.load(words, PUBLISHED);
    const count = (published - this.consumed) | 0;
    if (count === 0) return 0;
    for (let record = this.consumed; record !== published; record = (record + 1) | 0) {
      const at = HEADER_WORDS + (record & mask) * RECORD_WORDS;
      accept(words[at], words[at + 1], words[at + 2] as FinishCode, words[at + 3], words[at + 4]);
    }
    this.consumed = published;
    Atomics.store(words, CONSUMED, published);
    Atomics.notify(words, CONSUMED);
    return count;
  }

  /**
   * Drains until close(): again in the next turn of the event loop while records keep coming, else when the producer
   * publishes. `drained` runs after each drain that took something.
   */
  async run(accept: TokenInput, drained: () => void): Promise<void> {
    while (!this.closed) {
      if (this.drain(accept) > 0) {
        drained();
        await new Promise<void>((resolve) => setImmediate(resolve));
      } else {
        const published = Atomics.waitAsync(this.words, PUBLISHED, this.consumed);
        if (published.async) await published.value;
      }
    }
  }

  /** Ends run(). */
  close(): void {
    this.closed = true;
    Atomics.notify(this.words, PUBLISHED);
  }
}
