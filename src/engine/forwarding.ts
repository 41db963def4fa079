import type { Batch, BatchLimits } from "./batch.ts";
import type { StepEngine, StepLogprobs, StepTime } from "./types.ts";

/** Passes everything on to another engine: what one that watches it extends. */
export class ForwardingEngine<Inner extends StepEngine = StepEngine> implements StepEngine {
  constructor(protected readonly engine: Inner) {}

  get limits(): BatchLimits {
    return this.engine.limits;
  }
  get maxSequences(): number {
    return this.engine.maxSequences;
  }
  get numPages(): number {
    return this.engine.numPages;
  }
  get pageSize(): number {
    return this.engine.pageSize;
  }
  get maxContext(): number {
    return this.engine.maxContext;
  }
  get eosTokenIds(): readonly number[] {
    return this.engine.eosTokenIds;
  }

  nextBatch(): Batch {
    return this.engine.nextBatch();
  }
  launch(batch: Batch): void {
    this.engine.launch(batch);
  }
  ready(batch: Batch): boolean {
    return this.engine.ready(batch);
  }
  collect(batch: Batch): Int32Array {
    return this.engine.collect(batch);
  }
  logprobs(batch: Batch): StepLogprobs {
    return this.engine.logprobs(batch);
  }
  time(batch: Batch): StepTime {
    return this.engine.time(batch);
  }
}
