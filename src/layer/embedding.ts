import type { ModelConfig } from "../checkpoint/types.ts";
import { embedding, gather } from "../native/ops.ts";
import { DType, type Tensor } from "../native/tensor.ts";
import type { Weight } from "../native/weight.ts";
import type { ParameterScope } from "../weights/scope.ts";
import { Linear } from "./linear.ts";
import type { RMSNorm } from "./norm.ts";
import type { Step } from "./step.ts";

/** A row of the table for each token id. */
export class Embedding {
  readonly weight: Weight;

  constructor(
    weights: ParameterScope,
    private readonly config: ModelConfig,
  ) {
    this.weight = weights.matrix(config.vocabularySize, config.hiddenSize);
  }

  /** The batch's ids -> [tokens, hidden]. */
  forward(step: Step): Tensor {
    const result = step.tensor([step.tokens, this.config.hiddenSize]);
    embedding(step.device, result, step.batch.ids, this.weight);
    return result;
  }
}

/** From hidden states to logits, for the rows that sample. Tied models share the embedding's table. */
export class LMHead {
  private readonly product: Linear;

  constructor(
    weights: ParameterScope,
    private readonly config: ModelConfig,
    embedding: Embedding,
  ) {
    const { vocabularySize, hiddenSize, tieWordEmbeddings } = config;
    if (tieWordEmbeddings) weights.skip();
    this.product = new Linear(tieWordEmbeddings ? embedding.weight : weights.matrix(vocabularySize, hiddenSize));
  }

  /** x [tokens, hidden] -> logits of norm(x) [samples, vocabulary] in float32. */
  forward(x: Tensor, norm: RMSNorm, step: Step): Tensor {
    const logits = step.tensor([step.samples, this.config.vocabularySize], DType.F32);
    // A chunk in the middle of a prompt only fills the KV pool.
    if (step.samples === 0) return logits;
    return this.product.forwardNormed(this.select(x, step), norm, step, logits);
  }

  /** The rows that sample: [samples, hidden]. */
  private select(x: Tensor, step: Step): Tensor {
    // As many samples as tokens: a batch of decode rows only, where the rows are those of x.
    if (step.samples === step.tokens) return x;
    const rows = step.tensor([step.samples, this.config.hiddenSize]);
    gather(step.device, rows, x, step.batch.sampleRows);
    return rows;
  }
}
