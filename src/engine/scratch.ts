import { KvPool, Step } from "../layer/step.ts";
import { Arena, type Device } from "../native/device.ts";
import type { AttentionPlan, ExpandedBatch } from "../native/ops.ts";
import { DType } from "../native/tensor.ts";
import type { LoadedModel } from "./engine.ts";
import type { StepLimits } from "./memory-plan.ts";

/** What the largest step needs of the arena. */
export interface Scratch {
  bytes: number;
  /** Where the step's logits end and a copy of them can lie. */
  copiedLogits: number;
}

/**
 * Finds what the activations of the largest step need: the forward is recorded once over an arena without memory, and
 * the recording thrown away. So a model declares no sizes.
 */
export function measureScratch(device: Device, loaded: LoadedModel, steps: StepLimits, plan: AttentionPlan): Scratch {
  const { config, dtype, activationType, model } = loaded;
  const { maxTokens, maxSamples } = steps;
  const arena = Arena.measuring();
  const nowhere = arena.tensor(DType.I32, [0]);
  const batch: ExpandedBatch = {
    ids: nowhere,
    positions: nowhere,
    cacheRows: nowhere,
    sampleRows: nowhere,
    queryBegin: nowhere,
    pageBegin: nowhere,
    pages: nowhere,
    lastPageLength: nowhere,
  };
  const kv = new KvPool(arena.tensor(dtype, [0]), config.numLayers, 0, 0);
  const rotary = arena.tensor(DType.F32, [0, config.headDim]);
  const step = new Step(device, arena, activationType, maxTokens, maxSamples, batch, plan, kv, rotary);
  plan.update(Int32Array.of(maxTokens), Int32Array.of(maxTokens), 1, 0, false);
  device.destroyGraph(device.capture(() => model.forward(step)));
  const copiedLogits = arena.mark;
  arena.tensor(DType.F32, [maxSamples, config.vocabularySize]);
  return { bytes: arena.peak, copiedLogits };
}
