import type { ModelConfig } from "../checkpoint/types.ts";
import { rotaryTable } from "../layer/rotary.ts";
import { KvPool, Step } from "../layer/step.ts";
import type { EngineOptions } from "../message/types.ts";
import type { Model } from "../model/decoder.ts";
import { Arena, type Device, type Event } from "../native/device.ts";
import { AttentionPlan } from "../native/ops.ts";
import { MSGL_ATTENTION_AUTO, MSGL_ATTENTION_FA, MSGL_ATTENTION_FI } from "../native/symbols.ts";
import { DType, type Tensor } from "../native/tensor.ts";
import type { Batch, BatchLimits } from "./batch.ts";
import { DeviceBatch } from "./device-batch.ts";
import { DecodeGraphs } from "./graphs.ts";
import { type PoolPlan, planPool, type StepLimits, stepLimits } from "./memory-plan.ts";
import { Sampler } from "./sampler.ts";
import { measureScratch } from "./scratch.ts";
import { StagingLayout, StepSlot } from "./staging.ts";
import type { StepEngine, StepLogprobs, StepTime } from "./types.ts";

/** Steps that may be prepared or in flight: one computed, one launched, one being filled. */
const STEP_SLOTS = 3;

/** msgl_attention_backend of an option. */
const ATTENTION_BACKENDS = { auto: MSGL_ATTENTION_AUTO, fa: MSGL_ATTENTION_FA, fi: MSGL_ATTENTION_FI } as const;

/** A loaded model and what it is computed in. */
export interface LoadedModel {
  model: Model;
  config: ModelConfig;
  /** Of the KV pool and of the activations. */
  dtype: DType;
  activationType: DType;
  eosTokenIds: readonly number[];
}

/** A model on a device, driven a step at a time. */
export class Engine implements StepEngine {
  readonly limits: BatchLimits;
  readonly pool: PoolPlan;
  private readonly arena: Arena;
  private readonly plan: AttentionPlan;
  private readonly kv: KvPool;
  private readonly rotary: Tensor;
  private readonly batch: DeviceBatch;
  private readonly sampler: Sampler;
  private readonly graphs: DecodeGraphs;
  private readonly slots: StepSlot[];
  private next = 0;
  private lastLogits: Tensor | null = null;
  private lastDone: Event | null = null;
  private readonly timed: boolean;
  /** What capturing all graphs took. */
  readonly captureSeconds: number;

  /** Plans and allocates everything that steps need. @throws Error when it does not fit the device. */
  constructor(
    readonly device: Device,
    private readonly loaded: LoadedModel,
    options: EngineOptions,
  ) {
    const { config, dtype } = loaded;
    const { pageSize } = options;
    const properties = device.properties();
    const steps = stepLimits(options, properties);
    this.timed = properties.asynchronous;
    this.plan = this.createPlan(steps, options);
    const scratch = measureScratch(device, loaded, steps, this.plan);
    this.arena = Arena.allocate(device, scratch.bytes);
    this.pool = planPool(config, dtype, options, device.properties(), steps.maxSequences);
    this.limits = {
      maxSequences: steps.maxSequences,
      maxSamples: steps.maxSamples,
      maxTokens: steps.maxTokens,
      maxPageValues: steps.maxTokens + 2 * Math.ceil(this.pool.maxContext / pageSize),
      // Penalties make a sequence write all of its tokens, those of a cached prefix too.
      maxTokenValues: Math.max(steps.maxTokens, this.pool.maxContext),
      pageSize,
    };
    const width = config.numKvHeads * config.headDim;
    const rows = (this.pool.numPages + 1) * pageSize;
    const memory = device.tensor(dtype, [2 * config.numLayers, rows, width]);
    // Written once, so that the process has its full size from the start.
    device.fill(memory.pointer, 0, memory.bytes);
    this.kv = new KvPool(memory, config.numLayers, rows, width);
    this.rotary = device.tensor(DType.F32, [this.pool.maxContext, config.headDim]);
    device.upload(this.rotary.pointer, rotaryTable(config, this.pool.maxContext));
    const layout = new StagingLayout(this.limits);
    this.batch = new DeviceBatch(device, layout, this.pool.maxContext, this.pool.numPages);
    this.sampler = new Sampler(device, this.batch, layout, this.arena, scratch.copiedLogits, config.vocabularySize);
    this.slots = Array.from({ length: STEP_SLOTS }, (_, index) => new StepSlot(device, layout, index));
    device.synchronize();
    const began = performance.now();
    this.graphs = this.captureGraphs(steps.graphMaxBatchSize);
    device.synchronize();
    this.captureSeconds = (performance.now() - began) / 1000;
  }

  get maxSequences(): number {
    return this.limits.maxSequences;
  }
  get numPages(): number {
    return this.pool.numPages;
  }
  get pageSize(): number {
    return this.limits.pageSize;
  }
  get maxContext(): number {
    return this.pool.maxContext;
  }
  get eosTokenIds(): readonly number[] {
    return this.loaded.eosTokenIds;
  }

  nextBatch(): Batch {
    const slot = this.slots[this.next] as StepSlot;
    this.next = (this.next + 1) % STEP_SLOTS;
    this.device.wait(slot.done);
    slot.batch.clear();
    // Until it is launched.
    this.device.ranges.push("schedule");
    return slot.batch;
  }

  launch(batch: Batch): void {
    const slot = this.slotOf(batch);
    const { device, graphs } = this;
    const { ranges } = device;
    ranges.pop();
    ranges.push("step");
    const decodeOnly = batch.decodeSequences === batch.sequences && batch.samples === batch.sequences;
    const size = decodeOnly ? graphs.paddedSize(batch.sequences) : 0;
    const sequences = size || batch.sequences;
    this.batch.pad(slot, sequences);
    const decode = batch.decodeSequences + sequences - batch.sequences;
    this.plan.update(batch.queryLengths, batch.contextLengths, sequences, decode, size > 0);
    // Behind the planning: a device that waits for it is idle.
    if (this.timed) device.record(slot.begin);
    this.batch.write(slot);
    ranges.push(batch.decodeSequences === batch.sequences ? "decode" : "prefill");
    const logits = size > 0 ? graphs.replay(size) : this.forward(batch.sequences, batch.tokens, batch.samples);
    ranges.pop();
    ranges.push("sample");
    if (batch.samples > 0) this.sample(slot, logits.head(batch.samples));
    ranges.pop();
    device.record(slot.done);
    ranges.pop();
    slot.doneBefore = this.lastDone;
    this.lastDone = slot.done;
  }

  ready(batch: Batch): boolean {
    return this.device.reached(this.slotOf(batch).done);
  }

  collect(batch: Batch): Int32Array {
    const slot = this.slotOf(batch);
    this.device.wait(slot.done);
    return slot.results;
  }

  logprobs(batch: Batch): StepLogprobs {
    return this.sampler.logprobs(this.slotOf(batch));
  }

  time(batch: Batch): StepTime {
    if (!this.timed) return { busy: 0, idle: 0 };
    const { begin, done, doneBefore } = this.slotOf(batch);
    const { device } = this;
    return { busy: device.elapsed(begin, done), idle: doneBefore === null ? 0 : device.elapsed(doneBefore, begin) };
  }

  /** Logits [samples, vocabulary] that the step launched last has sampled from; waits for it. For tests and tools. */
  logits(): Float32Array {
    const logits = this.lastLogits as Tensor;
    return new Float32Array(this.device.download(logits.pointer, logits.bytes));
  }

  close(): void {
    this.device.close();
  }

  private createPlan(steps: StepLimits, options: EngineOptions): AttentionPlan {
    const { config, dtype, activationType } = this.loaded;
    const shape = { heads: config.numHeads, kvHeads: config.numKvHeads, headDim: config.headDim };
    const { maxSequences, maxTokens } = steps;
    const { prefill, decode } = options.attention;
    const backends = { prefill: ATTENTION_BACKENDS[prefill], decode: ATTENTION_BACKENDS[decode] };
    const { device } = this;
    return new AttentionPlan(device, shape, options.pageSize, maxSequences, maxTokens, activationType, dtype, backends);
  }

  /** Enqueues the expansion and the forward of the uploaded rows; logits [samples, vocabulary]. */
  private forward(sequences: number, tokens: number, samples: number): Tensor {
    const { device, arena, loaded, batch, plan, kv, rotary } = this;
    batch.expand(sequences, tokens);
    arena.release(0);
    const step = new Step(device, arena, loaded.activationType, tokens, samples, batch.expanded, plan, kv, rotary);
    return loaded.model.forward(step);
  }

  private sample(slot: StepSlot, logits: Tensor): void {
    this.lastLogits = logits;
    this.sampler.sample(slot, logits);
  }

  private captureGraphs(largest: number): DecodeGraphs {
    const ones = new Int32Array(largest).fill(1);
    const prepare = (size: number) => this.plan.update(ones, ones, size, size, true);
    return new DecodeGraphs(this.device, largest, prepare, (size) => this.forward(size, size, size));
  }

  private slotOf(batch: Batch): StepSlot {
    return this.slots[batch.slot] as StepSlot;
  }
}
