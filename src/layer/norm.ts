import type { Norm } from "../native/ops.ts";
import type { Tensor } from "../native/tensor.ts";
import type { ParameterScope } from "../weights/scope.ts";

/**
 * Root mean square normalisation (Zhang and Sennrich, 2019): x / sqrt(mean(x^2) + epsilon) * weight. It always stands
 * before a product: see Linear.
 */
export class RMSNorm implements Norm {
  readonly weight: Tensor;

  constructor(
    weights: ParameterScope,
    size: number,
    readonly epsilon: number,
  ) {
    this.weight = weights.norm(size);
  }
}
