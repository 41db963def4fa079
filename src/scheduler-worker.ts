/** Entry point of the scheduler thread: a model on a device, and the scheduler on top of it. */
import { workerData } from "node:worker_threads";
import { loadEngine } from "./engine/load.ts";
import type { SchedulerThreadData } from "./message/types.ts";
import { runSchedulerThread } from "./scheduler/loop.ts";
import { Scheduler } from "./scheduler/scheduler.ts";

runSchedulerThread(workerData as SchedulerThreadData, async (options, output, statistics, onProgress) => {
  const { engine, info } = await loadEngine(options, onProgress);
  return { scheduler: new Scheduler(engine, options, output, statistics), info, close: () => engine.close() };
});
