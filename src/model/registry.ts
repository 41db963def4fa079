import type { ModelConfig } from "../checkpoint/types.ts";
import type { ParameterScope } from "../weights/scope.ts";
import type { Model, ModelConstructor } from "./decoder.ts";
import { LlamaModel } from "./llama.ts";
import { Qwen3Model } from "./qwen3.ts";

/** Architectures by the name that ModelConfig has for them. A new model is a file and a line here. */
const models: Readonly<Record<string, ModelConstructor>> = {
  llama: LlamaModel,
  mistral: LlamaModel,
  qwen2: LlamaModel,
  qwen3: Qwen3Model,
};

/** @throws Error for an architecture that no file here implements. */
export function createModel(config: ModelConfig, weights: ParameterScope): Model {
  const Architecture = models[config.architecture];
  if (!Architecture) {
    throw new Error(`architecture "${config.architecture}" is not one of ${Object.keys(models).join(", ")}`);
  }
  return new Architecture(config, weights);
}
