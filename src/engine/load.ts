import { openCheckpoint } from "../checkpoint/open.ts";
import type { ModelConfig } from "../checkpoint/types.ts";
import type { DTypeOption, EngineInfo, EngineOptions } from "../message/types.ts";
import { createModel } from "../model/registry.ts";
import type { Device, DeviceProperties } from "../native/device.ts";
import { foundations } from "../native/library.ts";
import { openDevice } from "../native/open-device.ts";
import { DType } from "../native/tensor.ts";
import { WeightLoader } from "../weights/loader.ts";
import { ParameterScope } from "../weights/scope.ts";
import { Engine } from "./engine.ts";
import { planWeights } from "./memory-plan.ts";

/** Told how far loading is: bytes read of all. */
export type Progress = (stage: string, done: number, total: number) => void;

const names = { float32: DType.F32, bfloat16: DType.BF16, float16: DType.F16 } as const;
type ModelType = keyof typeof names;

/**
 * The type a model is computed in. "auto" is the checkpoint's own where the device computes in it, else bfloat16;
 * GGUF blocks go with bfloat16.
 */
function chooseType(option: DTypeOption, config: ModelConfig, properties: DeviceProperties): ModelType {
  const own = config.dtype === "quantized" ? "bfloat16" : config.dtype;
  if (option === "auto") return properties.computes(names[own]) ? own : "bfloat16";
  if (!properties.computes(names[option])) {
    throw new Error(`--dtype ${option} is not computed on ${properties.name}: use bfloat16, float16 or auto`);
  }
  return option;
}

function checkLength(asked: number, { maxPosition }: ModelConfig): void {
  if (asked <= maxPosition) return;
  throw new Error(`--max-seq-len-override ${asked} is more than the ${maxPosition} tokens that the model was made for`);
}

/** Without cuBLASLt the first step would fail, after all weights were loaded. @throws Error that says where it was looked for */
function checkProducts({ library }: Device, properties: DeviceProperties): void {
  if (!properties.library.endsWith("no cuBLASLt")) return;
  throw new Error(`cuBLASLt ${foundations(library).find(({ name }) => name === "cuBLASLt")?.where ?? "was not found"}`);
}

/**
 * Loads a model onto a device and makes it ready to run.
 * @throws CheckpointError, NativeError or Error with one clear line: not found, wrong format, does not fit.
 */
export async function loadEngine(
  options: EngineOptions,
  onProgress: Progress = () => {},
): Promise<{ engine: Engine; info: EngineInfo }> {
  const began = performance.now();
  const checkpoint = await openCheckpoint(options.model, { requireWeights: !options.dummyWeight });
  const { config, eosTokenIds } = checkpoint;
  checkLength(options.maxSequenceLength, config);
  const { device, kind, warning } = openDevice(options.device, options.threads);
  try {
    const properties = device.properties();
    checkProducts(device, properties);
    const type = chooseType(options.dtype, config, properties);
    const dtype = names[type];
    const activationType = properties.floatActivations ? DType.F32 : dtype;
    planWeights(options.dummyWeight ? { config, tensors: new Map() } : checkpoint, dtype, activationType, properties);
    const weightsBegan = performance.now();
    const loader = new WeightLoader(device, properties, checkpoint, dtype, activationType, options.dummyWeight);
    const model = createModel(config, new ParameterScope(loader));
    await loader.finish((done, total) => onProgress("weights", done, total));
    const weightSeconds = (performance.now() - weightsBegan) / 1000;
    const engine = new Engine(device, { model, config, dtype, activationType, eosTokenIds }, options);
    const info: EngineInfo = {
      model: checkpoint.name,
      architecture: config.architecture,
      dtype: type,
      device: `${kind}: ${properties.name}`,
      library: properties.library,
      vocabularySize: config.vocabularySize,
      maxContext: engine.maxContext,
      maxRunningRequests: engine.maxSequences,
      numPages: engine.numPages,
      pageSize: engine.pageSize,
      weightBytes: loader.bytes,
      weightSeconds,
      poolBytes: engine.pool.bytes,
      captureSeconds: engine.captureSeconds,
      loadSeconds: (performance.now() - began) / 1000,
      warning: warning ?? null,
    };
    return { engine, info };
  } catch (error) {
    device.close();
    throw error;
  }
}
