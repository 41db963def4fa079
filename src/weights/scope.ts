import type { Device } from "../native/device.ts";
import type { DType, Tensor } from "../native/tensor.ts";
import type { Weight } from "../native/weight.ts";
import type { WeightLoader } from "./loader.ts";

/** The parameters under a prefix, named as the checkpoint names them. */
export class ParameterScope {
  constructor(
    private readonly loader: WeightLoader,
    private readonly prefix = "",
  ) {}

  /** The parameters of a part: at("self_attn").at("q_proj"). */
  at(name: string | number): ParameterScope {
    return new ParameterScope(this.loader, `${this.prefix}${name}.`);
  }

  get device(): Device {
    return this.loader.device;
  }

  /** Type of the activations. */
  get activationType(): DType {
    return this.loader.activationType;
  }

  /** The matrix `weight` [rows, columns] of this scope. */
  matrix(rows: number, columns: number): Weight {
    return this.loader.matrix([{ name: `${this.prefix}weight`, rows }], columns);
  }

  /** The matrices of several parts below each other, computed as one product: q, k and v, or gate and up. */
  merged(parts: readonly { name: string; rows: number }[], columns: number): Weight {
    return this.loader.matrix(
      parts.map(({ name, rows }) => ({ name: `${this.prefix}${name}.weight`, rows })),
      columns,
    );
  }

  /** A norm's weight [size]. */
  norm(size: number): Tensor {
    return this.loader.norm(`${this.prefix}weight`, size);
  }

  /** The biases of several parts, one after the other. */
  mergedBias(parts: readonly { name: string; rows: number }[]): Tensor {
    return this.loader.bias(parts.map(({ name, rows }) => ({ name: `${this.prefix}${name}.bias`, rows })));
  }

  /** Declares this scope's `weight` unread: a tied head that the checkpoint stores all the same. */
  skip(): void {
    this.loader.skip(`${this.prefix}weight`);
  }
}
