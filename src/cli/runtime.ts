import { basename } from "node:path";
import type { EngineInfo } from "../message/types.ts";
import { Runtime } from "../runtime/runtime.ts";
import type { RuntimeOptions, SpawnWorker } from "../runtime/types.ts";
import { fail } from "./errors.ts";
import { formatBytes, Progress, type ProgressOutput } from "./progress.ts";

/** Loads a model with its progress shown. From then on, a thread that dies takes the process with it. */
export async function startRuntime(
  options: RuntimeOptions,
  spawn: SpawnWorker,
  output?: ProgressOutput,
): Promise<Runtime> {
  const progress = new Progress(output);
  try {
    const runtime = await Runtime.start(options, spawn, progress.update);
    runtime.onFatal(fail);
    return runtime;
  } finally {
    progress.clear();
  }
}

/** "SmolLM2 (llama, bfloat16 on CPU, context 2048, 8192 pages of 1 token, loaded in 0.8 s)". */
export function describeModel(info: EngineInfo): string {
  const facts = [
    `${info.architecture} in ${info.dtype} on ${info.device}`,
    `${formatBytes(info.weightBytes)} of weights`,
    `context ${info.maxContext}`,
    `${info.numPages} pages of ${info.pageSize} token${info.pageSize === 1 ? "" : "s"} (${formatBytes(info.poolBytes)})`,
    `loaded in ${info.loadSeconds.toFixed(1)} s`,
  ];
  return `${basename(info.model)} (${facts.join(", ")})`;
}
