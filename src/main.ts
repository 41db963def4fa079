/** The executable's entry point. Workers are started here, because compiled they are found only beside it. */
import { main } from "./cli/main.ts";
import type { SpawnWorker } from "./runtime/types.ts";

const entries: Record<string, URL> = {
  scheduler: new URL("./scheduler-worker.ts", import.meta.url),
  tokenizer: new URL("./tokenizer-worker.ts", import.meta.url),
};

const spawn: SpawnWorker = (name, workerData, transfer) =>
  new Worker(entries[name]!, { workerData, transferList: transfer } as WorkerOptions);

await main(process.argv.slice(2), spawn);
