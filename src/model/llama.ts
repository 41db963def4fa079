import type { ModelConfig } from "../checkpoint/types.ts";
import { Attention } from "../layer/attention.ts";
import { GatedMLP } from "../layer/mlp.ts";
import { RMSNorm } from "../layer/norm.ts";
import type { Step } from "../layer/step.ts";
import type { Tensor } from "../native/tensor.ts";
import type { ParameterScope } from "../weights/scope.ts";
import { type DecoderLayer, DecoderModel } from "./decoder.ts";

/** Llama decoder layer: pre-norm grouped-query attention, then SwiGLU. Qwen2 differs by a bias on q, k and v. */
export class LlamaDecoderLayer implements DecoderLayer {
  private readonly inputNorm: RMSNorm;
  private readonly attention: Attention;
  private readonly postNorm: RMSNorm;
  private readonly mlp: GatedMLP;

  constructor(config: ModelConfig, weights: ParameterScope, index: number, options = { qkNorm: false }) {
    const { hiddenSize, rmsNormEpsilon } = config;
    this.inputNorm = new RMSNorm(weights.at("input_layernorm"), hiddenSize, rmsNormEpsilon);
    this.attention = new Attention(weights.at("self_attn"), config, index, options);
    this.postNorm = new RMSNorm(weights.at("post_attention_layernorm"), hiddenSize, rmsNormEpsilon);
    this.mlp = new GatedMLP(weights.at("mlp"), config);
  }

  forward(x: Tensor, step: Step): void {
    this.attention.forward(x, this.inputNorm, step);
    this.mlp.forward(x, this.postNorm, step);
  }
}

/** Llama 3 (Dubey et al., 2024), and what has its shape: Mistral, SmolLM2; Qwen2 with its bias. */
export class LlamaModel extends DecoderModel {
  protected createLayer(config: ModelConfig, weights: ParameterScope, index: number): DecoderLayer {
    return new LlamaDecoderLayer(config, weights, index);
  }
}
