import type { Pointer } from "bun:ffi";
import type { Device, Event } from "../native/device.ts";
import { advance } from "../native/tensor.ts";
import { Batch, type BatchLimits, PATCH_WORDS, ROW_WORDS, SAMPLING_WORDS, TablePatches } from "./batch.ts";

/** Bytes of an int32, the only thing staged. */
const WORD = 4;

/**
 * Where the parts of a step's upload lie, in words from its start. One copy carries all of it up to the last page
 * value, a second the token values, which only prefill has:
 *
 *   rows | sampling | page patches | token patches | page values ... | token values ...
 */
export class StagingLayout {
  readonly sampling: number;
  readonly pagePatches: number;
  readonly tokenPatches: number;
  readonly pageValues: number;
  readonly tokenValues: number;
  readonly words: number;

  constructor(readonly limits: BatchLimits) {
    // A patch may be empty of neighbours: at worst each value has its own, but never more than two a sequence.
    const patches = 4 * limits.maxSequences * PATCH_WORDS;
    const align = (words: number) => Math.ceil(words / 4) * 4;
    this.sampling = align(limits.maxSequences * ROW_WORDS);
    this.pagePatches = this.sampling + limits.maxSequences * SAMPLING_WORDS;
    this.tokenPatches = this.pagePatches + patches;
    this.pageValues = this.tokenPatches + patches;
    this.tokenValues = align(this.pageValues + limits.maxPageValues);
    this.words = align(this.tokenValues + limits.maxTokenValues);
  }

  get bytes(): number {
    return this.words * WORD;
  }
}

/** Pinned memory of one of the step slots, its batch, and the event after which it may be written again. */
export class StepSlot {
  readonly batch: Batch;
  /** The step's tokens once `done` is reached. */
  readonly tokens: Int32Array;
  readonly tokensPointer: Pointer;
  readonly done: Event;
  private readonly pointer: Pointer;

  constructor(
    private readonly device: Device,
    private readonly layout: StagingLayout,
    index: number,
  ) {
    const { limits } = layout;
    const staging = device.pinned(layout.bytes);
    const results = device.pinned(limits.maxSequences * WORD);
    const view = (from: number, to: number) => new Int32Array(staging.buffer, from * WORD, to - from);
    this.pointer = staging.pointer;
    this.tokens = new Int32Array(results.buffer);
    this.tokensPointer = results.pointer;
    this.done = device.event();
    this.batch = new Batch(
      index,
      limits,
      view(0, layout.sampling),
      view(layout.sampling, layout.pagePatches),
      new Int32Array(limits.maxSequences),
      new Int32Array(limits.maxSequences),
      new TablePatches(view(layout.pagePatches, layout.tokenPatches), view(layout.pageValues, layout.tokenValues)),
      new TablePatches(view(layout.tokenPatches, layout.pageValues), view(layout.tokenValues, layout.words)),
    );
  }

  /** Enqueues the copy of what the batch holds to `destination`, a device buffer of layout.bytes. */
  upload(destination: Pointer): void {
    const { layout, batch, pointer } = this;
    this.device.copy(destination, pointer, (layout.pageValues + batch.pagePatches.length) * WORD);
    const { length } = batch.tokenPatches;
    if (length === 0) return;
    const at = layout.tokenValues * WORD;
    this.device.copy(advance(destination, at), advance(pointer, at), length * WORD);
  }
}

/** Addresses of the uploaded parts on the device. */
export function stagedAt(layout: StagingLayout, base: Pointer) {
  const at = (words: number) => advance(base, words * WORD);
  return {
    rows: base,
    sampling: at(layout.sampling),
    pagePatches: at(layout.pagePatches),
    tokenPatches: at(layout.tokenPatches),
    pageValues: at(layout.pageValues),
    tokenValues: at(layout.tokenValues),
  };
}
