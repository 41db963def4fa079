import type { Pointer } from "bun:ffi";
import type { Arena, Device } from "../native/device.ts";
import { logitBias, logprobs, penalize, sample } from "../native/ops.ts";
import { advance, bytesOf, DType, type Tensor } from "../native/tensor.ts";
import type { DeviceBatch } from "./device-batch.ts";
import type { StagingLayout, StepSlot } from "./staging.ts";
import type { StepLogprobs } from "./types.ts";

/**
 * From a step's logits to its results in pinned memory: biases, penalties, drawing, logprobs. What a batch does not ask
 * for is not enqueued.
 *
 * Results in words, for `rows` logprobs of which each has `top` alternatives:
 *
 *   tokens [maxSamples] | logprobs [rows] | ids [rows, top] | their logprobs [rows, top]
 */
export class Sampler {
  private readonly results: Pointer;
  /** Working memory of msgl_penalize, zero between its runs. */
  private readonly seen: Tensor;
  private readonly copiedLogits: Tensor;
  private readonly maxSamples: number;

  /** @param copyAt Mark of the arena from which on a copy of the largest step's logits has room. */
  constructor(
    private readonly device: Device,
    private readonly batch: DeviceBatch,
    layout: StagingLayout,
    arena: Arena,
    copyAt: number,
    private readonly vocabularySize: number,
  ) {
    const { maxSequences, maxSamples } = layout.limits;
    this.maxSamples = maxSamples;
    this.results = device.alloc(bytesOf(DType.I32, layout.resultWords));
    this.seen = device.tensor(DType.I32, [maxSequences, 2, Math.ceil(vocabularySize / 32)]);
    device.fill(this.seen.pointer, 0, this.seen.bytes);
    arena.release(copyAt);
    this.copiedLogits = arena.tensor(DType.F32, [maxSamples, vocabularySize]);
  }

  /** Enqueues all of it. logits: [samples, vocabulary], which biases and penalties change. */
  sample(slot: StepSlot, logits: Tensor): void {
    const { device, batch, results } = this;
    const { parts, tokenTable } = batch;
    const wanted = slot.batch.logits;
    let raw = logits;
    if (wanted.keepsRaw) {
      raw = this.copiedLogits.head(slot.batch.samples);
      device.copy(raw.pointer, logits.pointer, logits.bytes);
    }
    if (wanted.biases > 0) logitBias(device, logits, parts.biases, wanted.biases);
    if (wanted.penalties > 0) {
      penalize(device, logits, this.seen.pointer, tokenTable, parts.penalties, wanted.penalties);
    }
    sample(device, results, tokenTable, logits, parts.sampling, slot.batch);
    let words = slot.batch.samples;
    if (wanted.logprobs > 0) {
      const at = this.resultsAt(slot);
      const part = (word: number) => advance(results, bytesOf(DType.I32, word));
      const parted = { logprobs: part(at.logprobs), topIds: part(at.topIds), topLogprobs: part(at.topLogprobs) };
      logprobs(device, parted, raw, results, parts.logprobs, wanted.logprobs, at.top);
      words = at.end;
    }
    device.copy(slot.resultsPointer, results, bytesOf(DType.I32, words));
  }

  /** The logprobs of a step that is done. */
  logprobs(slot: StepSlot): StepLogprobs {
    const { results } = slot;
    const at = this.resultsAt(slot);
    const floats = (from: number, to: number) => new Float32Array(results.buffer, from * 4, to - from);
    return {
      top: at.top,
      logprobs: floats(at.logprobs, at.topIds),
      topIds: results.subarray(at.topIds, at.topLogprobs),
      topLogprobs: floats(at.topLogprobs, at.end),
    };
  }

  private resultsAt(slot: StepSlot) {
    const { logprobs: rows, top: asked } = slot.batch.logits;
    const top = Math.min(asked, this.vocabularySize);
    const logprobs = this.maxSamples;
    const topIds = logprobs + rows;
    const topLogprobs = topIds + rows * top;
    return { top, logprobs, topIds, topLogprobs, end: topLogprobs + rows * top };
  }
}
