import { addRmsNorm, rmsNorm } from "../native/ops.ts";
import type { Tensor } from "../native/tensor.ts";
import type { ParameterScope } from "../weights/scope.ts";
import type { Step } from "./step.ts";

/** Root mean square normalisation (Zhang and Sennrich, 2019): x / sqrt(mean(x^2) + epsilon) * weight. */
export class RMSNorm {
  private readonly weight: Tensor;

  constructor(
    weights: ParameterScope,
    size: number,
    private readonly epsilon: number,
  ) {
    this.weight = weights.norm(size);
  }

  /** x [tokens, size] -> [tokens, size]. */
  forward(x: Tensor, step: Step): Tensor {
    const result = step.tensor(x.shape);
    rmsNorm(step.device, result, x, this.weight, this.epsilon);
    return result;
  }

  /** residual += x, then its norm. x is null before the first layer, where there is nothing to add. */
  addAndNormalize(x: Tensor | null, residual: Tensor, step: Step): Tensor {
    if (x === null) return this.forward(residual, step);
    const result = step.tensor(residual.shape);
    addRmsNorm(step.device, result, residual, x, this.weight, this.epsilon);
    return result;
  }
}
