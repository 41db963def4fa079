import type { Pointer } from "bun:ffi";
import type { Device } from "../native/device.ts";
import { type ExpandedBatch, expand, tableWrite } from "../native/ops.ts";
import { advance, bytesOf, DType, type Tensor } from "../native/tensor.ts";
import { type BatchLimits, ROW_WORDS } from "./batch.ts";
import { type StagingLayout, type StepSlot, stagedAt } from "./staging.ts";

/**
 * The device's side of a batch: page table and token table (a row for each slot, and one for padding), the uploaded
 * words, and what they are expanded to.
 */
export class DeviceBatch {
  readonly expanded: ExpandedBatch;
  readonly tokenTable: Tensor;
  private readonly pageTable: Tensor;
  private readonly staged: Pointer;
  /** Addresses of the uploaded parts. */
  readonly parts: ReturnType<typeof stagedAt>;
  private readonly limits: BatchLimits;

  constructor(
    private readonly device: Device,
    layout: StagingLayout,
    maxContext: number,
    paddingPage: number,
  ) {
    const { limits } = layout;
    const { maxSequences, maxSamples, maxTokens, pageSize } = limits;
    const pagesPerSequence = Math.ceil(maxContext / pageSize);
    const words = (count: number) => device.tensor(DType.I32, [count]);
    this.limits = limits;
    this.staged = device.alloc(layout.bytes);
    this.parts = stagedAt(layout, this.staged);
    this.pageTable = device.tensor(DType.I32, [maxSequences + 1, pagesPerSequence]);
    this.tokenTable = device.tensor(DType.I32, [maxSequences + 1, maxContext]);
    // Rows that were never written must read as valid ids: padding rows and discarded rows do read them.
    for (const table of [this.pageTable, this.tokenTable]) device.fill(table.pointer, 0, table.bytes);
    const paddingRow = advance(this.pageTable.pointer, bytesOf(DType.I32, maxSequences * pagesPerSequence));
    device.upload(paddingRow, Int32Array.of(paddingPage));
    this.expanded = {
      ids: words(maxTokens),
      positions: words(maxTokens),
      cacheRows: words(maxTokens),
      sampleRows: words(maxSamples),
      queryBegin: words(maxSequences + 1),
      pageBegin: words(maxSequences + 1),
      pages: words(maxSequences * pagesPerSequence),
      lastPageLength: words(maxSequences),
    };
  }

  /** Enqueues the upload of a step and the writing of its table patches. */
  write(slot: StepSlot): void {
    const { device, parts } = this;
    const { pagePatches, tokenPatches } = slot.batch;
    slot.upload(this.staged);
    if (pagePatches.count > 0) {
      tableWrite(device, this.pageTable, parts.pagePatches, parts.pageValues, pagePatches.count);
    }
    if (tokenPatches.count > 0) {
      tableWrite(device, this.tokenTable, parts.tokenPatches, parts.tokenValues, tokenPatches.count);
    }
  }

  /** Enqueues the expansion of the uploaded rows. */
  expand(sequences: number, tokens: number): void {
    const { pageSize } = this.limits;
    expand(this.device, this.expanded, this.parts.rows, this.tokenTable, this.pageTable, sequences, tokens, pageSize);
  }

  /** Appends rows to a decode batch, up to `size`, that read and write the padding page only. */
  pad(slot: StepSlot, size: number): void {
    const { rows, queryLengths, contextLengths, sequences, tokens, pages } = slot.batch;
    for (let index = sequences; index < size; index++) {
      const extra = index - sequences;
      const at = index * ROW_WORDS;
      rows[at] = this.limits.maxSequences;
      rows[at + 1] = 0;
      rows[at + 2] = 1;
      rows[at + 3] = tokens + extra;
      rows[at + 4] = pages + extra;
      rows[at + 5] = index;
      rows[at + 6] = 1;
      queryLengths[index] = 1;
      contextLengths[index] = 1;
    }
  }
}
