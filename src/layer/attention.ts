import type { ModelConfig } from "../checkpoint/types.ts";
import { attention, type HeadShape, rotaryStore } from "../native/ops.ts";
import type { Tensor } from "../native/tensor.ts";
import type { ParameterScope } from "../weights/scope.ts";
import { Linear } from "./linear.ts";
import type { RMSNorm } from "./norm.ts";
import type { Step } from "./step.ts";

/** Grouped-query attention with rotary positions over the paged KV pool. */
export class Attention {
  private readonly qkv: Linear;
  private readonly output: Linear;
  private readonly norms: { q: Tensor; k: Tensor } | null;
  private readonly shape: HeadShape;

  /** qkNorm: RMS-normalise each query and key head before rotation. */
  constructor(
    weights: ParameterScope,
    private readonly config: ModelConfig,
    private readonly index: number,
    options: { qkNorm: boolean },
  ) {
    const { numHeads, numKvHeads, headDim, hiddenSize, attentionBias, attentionOutputBias } = config;
    const parts = [
      { name: "q_proj", rows: numHeads * headDim },
      { name: "k_proj", rows: numKvHeads * headDim },
      { name: "v_proj", rows: numKvHeads * headDim },
    ];
    this.shape = { heads: numHeads, kvHeads: numKvHeads, headDim };
    this.qkv = new Linear(weights.merged(parts, hiddenSize), attentionBias ? weights.mergedBias(parts) : null);
    this.output = new Linear(
      weights.at("o_proj").matrix(hiddenSize, numHeads * headDim),
      attentionOutputBias ? weights.mergedBias([{ name: "o_proj", rows: hiddenSize }]) : null,
    );
    this.norms = options.qkNorm
      ? { q: weights.at("q_norm").norm(headDim), k: weights.at("k_norm").norm(headDim) }
      : null;
  }

  /** residual [tokens, hidden] += attention(norm(residual)); keys and values of the tokens go to the pool on the way. */
  forward(residual: Tensor, norm: RMSNorm, step: Step): void {
    const { device, batch, plan, rotary } = step;
    const { heads, headDim } = this.shape;
    const { keys, values } = step.kv.layer(this.index);
    const qkv = this.qkv.forwardNormed(residual, norm, step);
    const query = step.tensor([step.tokens, heads * headDim]);
    rotaryStore(
      device,
      query,
      keys,
      values,
      qkv,
      batch,
      rotary,
      this.norms?.q ?? null,
      this.norms?.k ?? null,
      this.shape,
      this.config.rmsNormEpsilon,
    );
    const result = step.tensor([step.tokens, heads * headDim]);
    attention(device, result, query, keys, values, plan, batch, 1 / Math.sqrt(headDim));
    this.output.addTo(residual, result, step);
  }
}
