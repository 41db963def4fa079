import type { Pointer } from "bun:ffi";
import { MAX_LOGIT_ENTRIES } from "../message/types.ts";
import type { Device, Event } from "../native/device.ts";
import { advance } from "../native/tensor.ts";
import { Batch, type BatchLimits, PATCH_WORDS, ROW_WORDS, SAMPLING_WORDS, TablePatches } from "./batch.ts";
import { BIAS_WORDS, LOGPROB_RESULT_WORDS, LOGPROB_WORDS, LogitRows, PENALTY_WORDS } from "./logit-rows.ts";

/** Bytes of an int32, the only thing staged. */
const WORD = 4;

/**
 * Where the parts of a step's upload lie, in words from its start. One copy carries all of it up to the last page
 * value, a second the token values, which only prefill has, a third what changes logits and asks for logprobs:
 *
 *   rows | sampling | page patches | token patches | page values ... | token values ... | penalties | logprobs | biases ...
 */
export class StagingLayout {
  readonly sampling: number;
  readonly pagePatches: number;
  readonly tokenPatches: number;
  readonly pageValues: number;
  readonly tokenValues: number;
  readonly penalties: number;
  readonly logprobs: number;
  readonly biases: number;
  readonly words: number;

  constructor(readonly limits: BatchLimits) {
    // A patch may be empty of neighbours: at worst each value has its own, but never more than two a sequence.
    const patches = 4 * limits.maxSequences * PATCH_WORDS;
    const align = (words: number) => Math.ceil(words / 4) * 4;
    this.sampling = align(limits.maxSequences * ROW_WORDS);
    this.pagePatches = this.sampling + limits.maxSamples * SAMPLING_WORDS;
    this.tokenPatches = this.pagePatches + patches;
    this.pageValues = this.tokenPatches + patches;
    this.tokenValues = align(this.pageValues + limits.maxPageValues);
    this.penalties = align(this.tokenValues + limits.maxTokenValues);
    this.logprobs = this.penalties + limits.maxSequences * PENALTY_WORDS;
    this.biases = align(this.logprobs + limits.maxSamples * LOGPROB_WORDS);
    this.words = this.biases + limits.maxSequences * MAX_LOGIT_ENTRIES * BIAS_WORDS;
  }

  get bytes(): number {
    return this.words * WORD;
  }

  /** Words of a step's results: a token for each row of logits, then logprobs. */
  get resultWords(): number {
    return this.limits.maxSamples * (1 + LOGPROB_RESULT_WORDS);
  }
}

/** Pinned memory of one of the step slots, its batch, and the event after which it may be written again. */
export class StepSlot {
  readonly batch: Batch;
  /** The step's results once `done` is reached: see StagingLayout.resultWords. */
  readonly results: Int32Array;
  readonly resultsPointer: Pointer;
  /** Before and after everything that the step enqueues. */
  readonly begin: Event;
  readonly done: Event;
  /** Of the step launched before this one; null: this was the first. */
  doneBefore: Event | null = null;
  private readonly pointer: Pointer;

  constructor(
    private readonly device: Device,
    private readonly layout: StagingLayout,
    index: number,
  ) {
    const { limits } = layout;
    const staging = device.pinned(layout.bytes);
    const results = device.pinned(layout.resultWords * WORD);
    const view = (from: number, to: number) => new Int32Array(staging.buffer, from * WORD, to - from);
    this.pointer = staging.pointer;
    this.results = new Int32Array(results.buffer);
    this.resultsPointer = results.pointer;
    this.begin = device.event();
    this.done = device.event();
    this.batch = new Batch(
      index,
      limits,
      view(0, layout.sampling),
      view(layout.sampling, layout.pagePatches),
      new Int32Array(limits.maxSequences),
      new Int32Array(limits.maxSequences),
      new TablePatches(view(layout.pagePatches, layout.tokenPatches), view(layout.pageValues, layout.tokenValues)),
      new TablePatches(view(layout.tokenPatches, layout.pageValues), view(layout.tokenValues, layout.penalties)),
      new LogitRows(
        view(layout.penalties, layout.logprobs),
        view(layout.logprobs, layout.biases),
        view(layout.biases, layout.words),
      ),
    );
  }

  /** Enqueues the copy of what the batch holds to `destination`, a device buffer of layout.bytes. */
  upload(destination: Pointer): void {
    const { layout, batch, pointer } = this;
    const copy = (from: number, words: number) =>
      this.device.copy(advance(destination, from * WORD), advance(pointer, from * WORD), words * WORD);
    copy(0, layout.pageValues + batch.pagePatches.length);
    if (batch.tokenPatches.length > 0) copy(layout.tokenValues, batch.tokenPatches.length);
    if (!batch.logits.empty) {
      copy(layout.penalties, layout.biases - layout.penalties + batch.logits.biases * BIAS_WORDS);
    }
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
    penalties: at(layout.penalties),
    logprobs: at(layout.logprobs),
    biases: at(layout.biases),
  };
}
