import type { RuntimeOptions } from "./types.ts";

/** The command line's defaults, and the offline API's. 0 and -1 leave it to the device, see EngineOptions. */
export const DEFAULT_OPTIONS: Omit<RuntimeOptions, "model"> = {
  dtype: "auto",
  device: "auto",
  threads: 0,
  dummyWeight: false,
  tensorParallelSize: 1,
  maxRunningRequests: 0,
  maxSequenceLength: 0,
  maxPrefillLength: 0,
  memoryRatio: 0,
  numPages: 0,
  pageSize: 1,
  cache: "radix",
  graphMaxBatchSize: -1,
  attention: { prefill: "auto", decode: "auto" },
  overlap: true,
  numTokenizers: 1,
  maxQueuedRequests: 4096,
  maxQueuedPromptBytes: 64 << 20,
  samplingDefaults: "model",
};
