/**
 * The model room: one file an architecture, and registry.ts, which finds it. decoder.ts is what decoder-only
 * transformers share; read llama.ts first.
 */
import type { ModelConfig } from "../checkpoint/types.ts";
import { Embedding, LMHead } from "../layer/embedding.ts";
import { RMSNorm } from "../layer/norm.ts";
import type { Step } from "../layer/step.ts";
import { DType, type Tensor } from "../native/tensor.ts";
import type { ParameterScope } from "../weights/scope.ts";

/** What the engine runs. */
export interface Model {
  /** Enqueues the step; logits [samples, vocabulary] in float32, which lie in the step's scratch. */
  forward(step: Step): Tensor;
}

export type ModelConstructor = new (config: ModelConfig, weights: ParameterScope) => Model;

export interface DecoderLayer {
  /**
   * x [tokens, hidden]: the sum still to be added to the residual stream (null before the first layer).
   * Gives the next such sum, written to `result`, which may be x.
   */
  forward(x: Tensor | null, residual: Tensor, step: Step, result: Tensor): Tensor;
}

/** Embedding, a stack of layers, a norm and the LM head, under Hugging Face's names. */
export abstract class DecoderModel implements Model {
  private readonly embedding: Embedding;
  private readonly layers: DecoderLayer[];
  private readonly norm: RMSNorm;
  private readonly head: LMHead;

  constructor(
    private readonly config: ModelConfig,
    weights: ParameterScope,
  ) {
    const model = weights.at("model");
    this.embedding = new Embedding(model.at("embed_tokens"), config);
    this.layers = Array.from({ length: config.numLayers }, (_, index) =>
      this.createLayer(config, model.at("layers").at(index), index),
    );
    this.norm = new RMSNorm(model.at("norm"), config.hiddenSize, config.rmsNormEpsilon);
    this.head = new LMHead(weights.at("lm_head"), config, this.embedding);
  }

  protected abstract createLayer(config: ModelConfig, weights: ParameterScope, index: number): DecoderLayer;

  forward(step: Step): Tensor {
    const residual = this.embedding.forward(step);
    const x = step.tensor([step.tokens, this.config.hiddenSize]);
    this.layers.forEach((layer, index) => {
      step.scope(() => layer.forward(index === 0 ? null : x, residual, step, x));
    });
    // A chunk in the middle of a prompt only fills the KV pool.
    if (step.samples === 0) return step.tensor([0, this.config.vocabularySize], DType.F32);
    // Norm and head see only the rows that sample.
    const last = this.norm.addAndNormalize(this.head.select(x, step), this.head.select(residual, step), step);
    return this.head.forward(last, step);
  }
}
