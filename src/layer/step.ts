/**
 * The layer room: what models are made of. Read step.ts (what a forward is given), linear.ts, norm.ts, embedding.ts,
 * rotary.ts, attention.ts, mlp.ts.
 */
import type { Arena, Device } from "../native/device.ts";
import type { AttentionPlan, ExpandedBatch } from "../native/ops.ts";
import type { RangeName } from "../native/ranges.ts";
import { advance, bytesOf, type DType, Tensor } from "../native/tensor.ts";

/** Keys and values of every layer: pages of `pageSize` tokens, [pages * pageSize, kvHeads, headDim] a layer. */
export class KvPool {
  private readonly keys: Tensor[] = [];
  private readonly values: Tensor[] = [];

  /** `memory` holds `layers` times keys, then values. */
  constructor(memory: Tensor, layers: number, rows: number, width: number) {
    const bytes = bytesOf(memory.dtype, rows * width);
    for (let layer = 0; layer < layers; layer++) {
      this.keys.push(new Tensor(advance(memory.pointer, 2 * layer * bytes), memory.dtype, [rows, width]));
      this.values.push(new Tensor(advance(memory.pointer, (2 * layer + 1) * bytes), memory.dtype, [rows, width]));
    }
  }

  layer(index: number): { keys: Tensor; values: Tensor } {
    return { keys: this.keys[index] as Tensor, values: this.values[index] as Tensor };
  }
}

/** A batch on the device, and all else that a forward needs. There is no global context. */
export class Step {
  constructor(
    readonly device: Device,
    private readonly arena: Arena,
    /** Type of the activations. */
    readonly dtype: DType,
    /** Rows of this step, and those of them whose logits are wanted. */
    readonly tokens: number,
    readonly samples: number,
    readonly batch: ExpandedBatch,
    readonly plan: AttentionPlan,
    readonly kv: KvPool,
    /** [positions, headDim] in float32: see rotary.ts. */
    readonly rotary: Tensor,
  ) {}

  /** Scratch [...shape], good until the enclosing scope ends. */
  tensor(shape: readonly number[], dtype: DType = this.dtype): Tensor {
    return this.arena.tensor(dtype, shape);
  }

  /**
   * Gives the scratch that `body` takes back when it ends: a step needs one layer's activations and not all of them.
   * Profilers see it as a range of this name.
   */
  scope<T>(name: RangeName, body: () => T): T {
    const { ranges } = this.device;
    const mark = this.arena.mark;
    ranges.push(name);
    const result = body();
    ranges.pop();
    this.arena.release(mark);
    return result;
  }
}
