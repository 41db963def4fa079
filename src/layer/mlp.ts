import type { ModelConfig } from "../checkpoint/types.ts";
import { siluMul } from "../native/ops.ts";
import type { Tensor } from "../native/tensor.ts";
import type { ParameterScope } from "../weights/scope.ts";
import { Linear } from "./linear.ts";
import type { Step } from "./step.ts";

/** SwiGLU (Shazeer, 2020): down(silu(gate(x)) * up(x)). */
export class GatedMLP {
  private readonly gateUp: Linear;
  private readonly down: Linear;

  constructor(
    weights: ParameterScope,
    private readonly config: ModelConfig,
  ) {
    const { hiddenSize, intermediateSize } = config;
    const parts = ["gate_proj", "up_proj"].map((name) => ({ name, rows: intermediateSize }));
    this.gateUp = new Linear(weights.merged(parts, hiddenSize));
    this.down = new Linear(weights.at("down_proj").matrix(hiddenSize, intermediateSize));
  }

  /** x [tokens, hidden] -> result [tokens, hidden]. */
  forward(x: Tensor, step: Step, result: Tensor): Tensor {
    const gateUp = this.gateUp.forward(x, step);
    const activated = step.tensor([step.tokens, this.config.intermediateSize]);
    siluMul(step.device, activated, gateUp);
    return this.down.forward(activated, step, result);
  }
}
