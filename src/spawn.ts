/** Starts the workers. Stands beside their entry points, because a compiled executable resolves them only from here. */
import type { SpawnWorker } from "./runtime/types.ts";

const ENTRIES = {
  scheduler: () => new URL("./scheduler-worker.ts", import.meta.url),
  tokenizer: () => new URL("./tokenizer-worker.ts", import.meta.url),
};

export const spawn: SpawnWorker = (name, workerData, transfer) =>
  new Worker(ENTRIES[name](), { name, workerData, transferList: transfer } as unknown as WorkerOptions);
