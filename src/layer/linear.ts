import { linear, linearAdd, normGatedLinear, normLinear } from "../native/ops.ts";
import type { Tensor } from "../native/tensor.ts";
import type { Weight } from "../native/weight.ts";
import type { RMSNorm } from "./norm.ts";
import type { Step } from "./step.ts";

/**
 * y = x W^T + b, with W [out, in]. What stands around a product in a transformer (a norm before it, a gate or an addition
 * after it) is said with it, since a device may compute both at once.
 */
export class Linear {
  constructor(
    private readonly weight: Weight,
    private readonly bias: Tensor | null = null,
  ) {}

  /** x [tokens, in] -> [tokens, out], written to `result` where it is given. */
  forward(x: Tensor, step: Step, result = this.output(x, step)): Tensor {
    linear(step.device, result, x, this.weight, this.bias);
    return result;
  }

  /** norm(x) W^T + b, written to `result` where it is given. */
  forwardNormed(x: Tensor, norm: RMSNorm, step: Step, result = this.output(x, step)): Tensor {
    normLinear(step.device, result, step.tensor(x.shape), x, norm, this.weight, this.bias);
    return result;
  }

  /** silu(g) * u, with [g, u] = norm(x) W^T: [tokens, in] -> [tokens, out / 2]. */
  forwardGated(x: Tensor, norm: RMSNorm, step: Step): Tensor {
    const tokens = x.shape[0] as number;
    const result = step.tensor([tokens, this.weight.rows / 2]);
    normGatedLinear(step.device, result, this.output(x, step), step.tensor(x.shape), x, norm, this.weight);
    return result;
  }

  /** residual [tokens, out] += x W^T + b. */
  addTo(residual: Tensor, x: Tensor, step: Step): void {
    linearAdd(step.device, residual, this.output(x, step), x, this.weight, this.bias);
  }

  private output(x: Tensor, step: Step): Tensor {
    return step.tensor([x.shape[0] as number, this.weight.rows]);
  }
}
