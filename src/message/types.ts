/**
 * The message room: everything that crosses a thread, as plain data, and the channels that carry it.
 * Read types.ts (what is said), then the channels beside it.
 */

import type { MessagePort } from "node:worker_threads";

/** Numeric types a model can be computed in; "auto" follows the checkpoint. */
export type DTypeOption = "auto" | "float32" | "bfloat16" | "float16";

/** What the engine and scheduler need to know to start: the command line, checked and defaulted. */
export interface EngineOptions {
  /** Folder, .gguf file, or repository name found in the local Hugging Face cache. */
  model: string;
  dtype: DTypeOption;
  device: "auto" | "cuda" | "cpu" | "null";
  /** CPU threads that compute; 0: all cores. */
  threads: number;
  /** Random weights instead of the checkpoint's: only config.json is needed. */
  dummyWeight: boolean;
  tensorParallelSize: number;
  /** 0: the device's default. */
  maxRunningRequests: number;
  /** Upper bound of a sequence's length in tokens; 0: the model's. */
  maxSequenceLength: number;
  /** Tokens of one step, prefill and decode together; 0: the device's default. */
  maxPrefillLength: number;
  /** Share of the device memory left after loading that the KV pool takes, below 1; 0: the device's default. */
  memoryRatio: number;
  /** Pages of the KV pool; 0: as memoryRatio gives. */
  numPages: number;
  /** Tokens a page. */
  pageSize: number;
  cache: "radix" | "naive";
  /** Largest decode batch with a captured graph; 0: no graphs; -1: the default. */
  graphMaxBatchSize: number;
  attention: { prefill: AttentionBackend; decode: AttentionBackend };
  /** Prepare step N+1 while the device computes step N. */
  overlap: boolean;
}

export type AttentionBackend = "auto" | "fa" | "fi";

/** How the tokens of a request are drawn; every field decided, so that the result depends on the request alone. */
export interface Sampling {
  /** 0 is greedy. */
  temperature: number;
  /** 0: all. */
  topK: number;
  topP: number;
  minP: number;
  /** 0 .. 2^53 - 1. */
  seed: number;
}

/** What the tokens so far do to the logits of the next. */
export interface Penalties {
  /** Divides the positive and multiplies the negative logits of all tokens so far, the prompt's too; 1: none. */
  repetition: number;
  /** Taken from the logit of each token generated so far, once, and once for each time; 0: none. */
  presence: number;
  frequency: number;
}

/** Added to the logits of some tokens, ids without repetition. */
export interface LogitBias {
  ids: Int32Array;
  values: Float32Array;
}

/** One sequence to generate. Travels from main to the scheduler. */
export interface Request {
  /** Positive, below 2^31, unique while the request lives. */
  uid: number;
  tokens: Int32Array;
  sampling: Sampling;
  /** Tokens to generate at most, at least 1; tokens.length + maxTokens is within the context. */
  maxTokens: number;
  /** Ids that end the sequence besides the model's EOS ids. */
  stopTokenIds: readonly number[];
  /** Do not end at the model's EOS ids (stopTokenIds still end it). */
  ignoreEos: boolean;
  /** While fewer are generated, the ids that would end it cannot be drawn. */
  minTokens: number;
  /** Null: none. With what minTokens bans, a bias has at most MAX_LOGIT_ENTRIES ids. */
  penalties: Penalties | null;
  logitBias: LogitBias | null;
  /** How many of the most probable tokens are reported with each generated token's logprob; -1: no logprobs. */
  logprobs: number;
  /** The same for the prompt's tokens from the second on. */
  promptLogprobs: number;
  /** The lower, the earlier it starts, and the later it is preempted. */
  priority: number;
  /** Cached prefixes are shared within a namespace only. */
  namespace: string;
  /** When it was sent, in milliseconds that mean the same in every thread: performance.timeOrigin + performance.now(). */
  queuedAt: number;
}

/** A request's fields that leave its logits, its place in the queue and its prefix alone. */
export const PLAIN = {
  minTokens: 0,
  penalties: null,
  logitBias: null,
  logprobs: -1,
  promptLogprobs: -1,
  priority: 0,
  namespace: "",
} as const satisfies Partial<Request>;

/** Biased and banned ids of a request at most. */
export const MAX_LOGIT_ENTRIES = 1536;

/**
 * Logprobs of some tokens in a row, by log_softmax of the model's logits, before bias, penalties and temperature.
 * topIds and topLogprobs [tokens.length, top], descending.
 */
export interface LogprobRows {
  tokens: Int32Array;
  logprobs: Float32Array;
  top: number;
  topIds: Int32Array;
  topLogprobs: Float32Array;
}

/** What a step gave a request that asked for logprobs; see TokenOutput.push. */
export interface ScoredOutput {
  uid: number;
  token: number;
  finish: FinishCode;
  cachedTokens: number;
  waited: number;
  /** One row, the token's; null if there is no token, or none of its logprobs are wanted. */
  logprobs: LogprobRows | null;
  /** The prompt's next tokens; null if there are none in this step. */
  promptLogprobs: LogprobRows | null;
}

/** Why a sequence ended. The values are the ring's codes. */
export const Finish = { none: 0, stop: 1, length: 2, abort: 3, error: 4 } as const;
export type FinishCode = (typeof Finish)[keyof typeof Finish];

/** What main says to the scheduler worker. */
export type ToScheduler =
  | { type: "generate"; request: Request }
  | { type: "abort"; uid: number }
  | { type: "flush"; id: number }
  | { type: "stop" };

/** What the scheduler worker says to main besides the tokens, which come through the ring if nothing large is with them. */
export type FromScheduler =
  | { type: "progress"; stage: string; done: number; total: number }
  | { type: "ready"; info: EngineInfo }
  | { type: "flushed"; id: number; done: boolean }
  /** All that a step gave requests that asked for logprobs: nothing of theirs comes through the ring. See scored.ts. */
  | { type: "scored"; words: Int32Array<ArrayBuffer> }
  | { type: "stopped" }
  | { type: "fatal"; message: string; stack?: string };

/** What main gives the scheduler thread to start with. */
export interface SchedulerThreadData {
  options: EngineOptions;
  /** ToScheduler comes in, FromScheduler goes out. */
  port: MessagePort;
  /** See ring.ts, doorbell.ts, statistics.ts. */
  ring: SharedArrayBuffer;
  doorbell: SharedArrayBuffer;
  statistics: SharedArrayBuffer;
}

/** What a started engine tells about itself. */
export interface EngineInfo {
  /** Path or name as given, and the architecture: "llama", "qwen3", ... */
  model: string;
  architecture: string;
  dtype: string;
  device: string;
  library: string;
  vocabularySize: number;
  /** Longest sequence, prompt and answer together: the least of model, override and pool. */
  maxContext: number;
  maxRunningRequests: number;
  numPages: number;
  pageSize: number;
  weightBytes: number;
  /** What bringing the weights to the device took, capturing the graphs of decode steps, and all of the loading. */
  weightSeconds: number;
  captureSeconds: number;
  loadSeconds: number;
  poolBytes: number;
  /** What the user should know of where it runs; null: nothing. */
  warning: string | null;
}

/** Words of the statistics block that the scheduler keeps up to date in shared memory, once a step. */
export const Statistic = {
  runningRequests: 0,
  waitingRequests: 1,
  /** Pages held by sequences. */
  usedPages: 2,
  /** Pages that only the prefix cache holds. */
  cachedPages: 3,
  totalPages: 4,
  /** Steps launched, modulo 2^31: what a watchdog looks at. */
  steps: 5,
  /** Times the scheduler waited for main to drain the ring. */
  ringStalls: 6,
  preemptions: 7,
  /** Prompt tokens, and those of them found in the prefix cache, modulo 2^31. */
  promptTokens: 8,
  cachedTokens: 9,
  generatedTokens: 10,
  /** What steps took on the device, and what it had to wait before them for the host, modulo 2^31. */
  busyMicroseconds: 11,
  idleMicroseconds: 12,
  words: 16,
} as const;
