import { KvPool, Step } from "../layer/step.ts";
import { Arena, type Device } from "../native/device.ts";
import type { AttentionPlan, ExpandedBatch } from "../native/ops.ts";
import { DType } from "../native/tensor.ts";
import type { LoadedModel } from "./engine.ts";
import type { StepLimits } from "./memory-plan.ts";

/**
 * Bytes of activations that the largest step needs: the forward is recorded once over an arena without memory, and the
 * recording thrown away. So a model declares no sizes.
 */
export function measureScratch(device: Device, loaded: LoadedModel, steps: StepLimits, plan: AttentionPlan): number {
  const { config, dtype, activationType, model } = loaded;
  const { maxTokens, maxSequences } = steps;
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
  const step = new Step(device, arena, activationType, maxTokens, maxSequences, batch, plan, kv, rotary);
  plan.update(Int32Array.of(maxTokens), Int32Array.of(maxTokens), 1, 0, false);
  device.destroyGraph(device.capture(() => model.forward(step)));
  return arena.peak;
}
