import { basename } from "node:path";
import type { EngineInfo } from "../message/types.ts";
import { Runtime } from "../runtime/runtime.ts";
import type { RuntimeOptions, SpawnWorker } from "../runtime/types.ts";
import { fail } from "./errors.ts";
import { formatBytes, Progress, type ProgressOutput } from "./progress.ts";

/**
 * Loads a model with its progress shown, and warns of what the user should know. From then on, a thread that dies takes
 * the process with it.
 */
export async function startRuntime(
  options: RuntimeOptions,
  spawn: SpawnWorker,
  output?: ProgressOutput,
  warn = (message: string): unknown => process.stderr.write(`minisgl: ${message}\n`),
): Promise<Runtime> {
  const progress = new Progress(output);
  try {
    const runtime = await Runtime.start(options, spawn, progress.update);
    runtime.onFatal(fail);
    progress.clear();
    if (runtime.info.warning !== null) warn(runtime.info.warning);
    return runtime;
  } finally {
    progress.clear();
  }
}

/** "SmolLM2 (llama in bfloat16 on CPU, weights 8.0 GB in 0.8 s (9.8 GB/s), context 2048, ..., loaded in 1.3 s)". */
export function describeModel(info: EngineInfo): string {
  const { weightBytes, weightSeconds, captureSeconds } = info;
  const facts = [
    `${info.architecture} in ${info.dtype} on ${info.device}`,
    `weights ${formatBytes(weightBytes)} in ${weightSeconds.toFixed(1)} s (${formatBytes(weightBytes / weightSeconds)}/s)`,
    `context ${info.maxContext}`,
    `${info.numPages} pages of ${info.pageSize} token${info.pageSize === 1 ? "" : "s"} (${formatBytes(info.poolBytes)})`,
    ...(captureSeconds > 0.05 ? [`graphs captured in ${captureSeconds.toFixed(1)} s`] : []),
    `loaded in ${info.loadSeconds.toFixed(1)} s`,
  ];
  return `${basename(info.model)} (${facts.join(", ")})`;
}
