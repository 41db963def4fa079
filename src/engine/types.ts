/**
 * The engine room: a model on a device. The scheduler sees it through StepEngine: it fills a Batch, launches it, and
 * later collects its tokens. Read batch.ts (what a step is), engine.ts (how it runs), then sampler.ts (from its
 * logits to tokens).
 */
import type { Batch, BatchLimits } from "./batch.ts";

/**
 * The logprobs of a step, in the order of its LogitRows.logprobs: logprobs [rows], and topIds and topLogprobs
 * [rows, top], descending. Valid as long as the step's tokens.
 */
export interface StepLogprobs {
  top: number;
  logprobs: Float32Array;
  topIds: Int32Array;
  topLogprobs: Float32Array;
}

/** Milliseconds that a step took on the device, and that the device had nothing to do before it; 0: not measured. */
export interface StepTime {
  busy: number;
  idle: number;
}

export interface StepEngine {
  readonly limits: BatchLimits;
  /** Rows of the device's page table and token table that sequences may use: slots 0 .. maxSequences - 1. */
  readonly maxSequences: number;
  /** Pages 0 .. numPages - 1 of the pool. */
  readonly numPages: number;
  readonly pageSize: number;
  /** Longest sequence in tokens. */
  readonly maxContext: number;
  readonly eosTokenIds: readonly number[];
  /** A cleared batch. There are three; a fourth call waits until the device has done with the oldest. */
  nextBatch(): Batch;
  /** Uploads and enqueues the step: table patches, forward, sampling, the tokens' way back. Returns at once. */
  launch(batch: Batch): void;
  /** True if collect(batch) would not wait. */
  ready(batch: Batch): boolean;
  /** Waits for a launched step. Its tokens, one for each sample index; valid until the batch is handed out again. */
  collect(batch: Batch): Int32Array;
  /** The logprobs of a step that was collected. */
  logprobs(batch: Batch): StepLogprobs;
  /** How long a step took that was collected before another one is. */
  time(batch: Batch): StepTime;
}
