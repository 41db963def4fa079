import type { ModelConfig } from "../checkpoint/types.ts";
import type { ParameterScope } from "../weights/scope.ts";
import { type DecoderLayer, DecoderModel } from "./decoder.ts";
import { LlamaDecoderLayer } from "./llama.ts";

/** Qwen3 dense (Yang et al., 2025): Llama's layer with RMS-normalised query and key heads. */
export class Qwen3Model extends DecoderModel {
  protected createLayer(config: ModelConfig, weights: ParameterScope, index: number): DecoderLayer {
    return new LlamaDecoderLayer(config, weights, index, { qkNorm: true });
  }
}
