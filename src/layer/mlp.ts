import type { ModelConfig } from "../checkpoint/types.ts";
import type { Tensor } from "../native/tensor.ts";
import type { ParameterScope } from "../weights/scope.ts";
import { Linear } from "./linear.ts";
import type { RMSNorm } from "./norm.ts";
import type { Step } from "./step.ts";

/** SwiGLU (Shazeer, 2020): down(silu(gate(x)) * up(x)). */
export class GatedMLP {
  private readonly gateUp: Linear;
  private readonly down: Linear;

  constructor(weights: ParameterScope, { hiddenSize, intermediateSize }: ModelConfig) {
    const parts = ["gate_proj", "up_proj"].map((name) => ({ name, rows: intermediateSize }));
    this.gateUp = new Linear(weights.merged(parts, hiddenSize));
    this.down = new Linear(weights.at("down_proj").matrix(hiddenSize, intermediateSize));
  }

  /** residual [tokens, hidden] += MLP(norm(residual)). */
  forward(residual: Tensor, norm: RMSNorm, step: Step): void {
    this.down.addTo(residual, this.gateUp.forwardGated(residual, norm, step), step);
  }
}
