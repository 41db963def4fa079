import type { ModelConfig } from "../checkpoint/types.ts";
import { embedding, gather, linear } from "../native/ops.ts";
import { DType, type Tensor } from "../native/tensor.ts";
import type { Weight } from "../native/weight.ts";
import type { ParameterScope } from "../weights/scope.ts";
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
  private readonly weight: Weight;

  constructor(
    weights: ParameterScope,
    private readonly config: ModelConfig,
    embedding: Embedding,
  ) {
    if (config.tieWordEmbeddings) {
      weights.skip();
      this.weight = embedding.weight;
    } else {
      this.weight = weights.matrix(config.vocabularySize, config.hiddenSize);
    }
  }

  /** The rows of x [tokens, hidden] that sample: [samples, hidden]. */
  select(x: Tensor, step: Step): Tensor {
    // As many samples as tokens: a batch of decode rows only, where the rows are those of x.
    if (step.samples === step.tokens) return x;
    const rows = step.tensor([step.samples, this.config.hiddenSize]);
    gather(step.device, rows, x, step.batch.sampleRows);
    return rows;
  }

  /** [samples, hidden] -> logits [samples, vocabulary] in float32. */
  forward(x: Tensor, step: Step): Tensor {
    const logits = step.tensor([x.shape[0] as number, this.config.vocabularySize], DType.F32);
    linear(step.device, logits, x, this.weight, null);
    return logits;
  }
}
