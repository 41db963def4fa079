import { Runtime } from "../runtime/runtime.ts";
import type { RuntimeOptions, SpawnWorker } from "../runtime/types.ts";
import { fail } from "./errors.ts";
import { Progress } from "./progress.ts";

/** Loads a model with its progress shown. From then on, a thread that dies takes the process with it. */
export async function startRuntime(options: RuntimeOptions, spawn: SpawnWorker): Promise<Runtime> {
  const progress = new Progress();
  try {
    const runtime = await Runtime.start(options, spawn, progress.update);
    runtime.onFatal(fail);
    return runtime;
  } finally {
    progress.clear();
  }
}
