import { linear } from "../native/ops.ts";
import type { Tensor } from "../native/tensor.ts";
import type { Weight } from "../native/weight.ts";
import type { Step } from "./step.ts";

/** y = x W^T + b, with W [out, in]. */
export class Linear {
  constructor(
    private readonly weight: Weight,
    private readonly bias: Tensor | null = null,
  ) {}

  /** x [tokens, in] -> [tokens, out], written to `result` where it is given. */
  forward(x: Tensor, step: Step, result = step.tensor([x.shape[0] as number, this.weight.rows])): Tensor {
    linear(step.device, result, x, this.weight, this.bias);
    return result;
  }
}
