/**
 * The model room: one file an architecture, and registry.ts, which finds it. decoder.ts is what decoder-only
 * transformers share; read llama.ts first.
 */
import type { ModelConfig } from "../checkpoint/types.ts";
import { Embedding, LMHead } from "../layer/embedding.ts";
import { RMSNorm } from "../layer/norm.ts";
import type { Step } from "../layer/step.ts";
import type { Tensor } from "../native/tensor.ts";
import type { ParameterScope } from "../weights/scope.ts";

/** What the engine runs. */
export interface Model {
  /** Enqueues the step; logits [samples, vocabulary] in float32, which lie in the step's scratch. */
  forward(step: Step): Tensor;
}

export type ModelConstructor = new (config: ModelConfig, weights: ParameterScope) => Model;

export interface DecoderLayer {
  /** Adds to the residual stream x [tokens, hidden] what the layer makes of it. */
  forward(x: Tensor, step: Step): void;
}

/** Embedding, a stack of layers, a norm and the LM head, under Hugging Face's names. */
export abstract class DecoderModel implements Model {
  private readonly embedding: Embedding;
  private readonly layers: DecoderLayer[];
  private readonly norm: RMSNorm;
  private readonly head: LMHead;

  constructor(config: ModelConfig, weights: ParameterScope) {
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
    const x = this.embedding.forward(step);
    for (const layer of this.layers) step.scope("layer", () => layer.forward(x, step));
    return this.head.forward(x, this.norm, step);
  }
}
