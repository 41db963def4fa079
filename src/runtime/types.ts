/**
 * The runtime room: starts and supervises the threads and turns a request into a stream of text. Server, shell,
 * LLM and benchmarks are written on `Runtime` and on nothing below it.
 * Read types.ts (what is asked and answered), then runtime.ts.
 */
import type { MessagePort } from "node:worker_threads";
import type { EngineInfo, EngineOptions } from "../message/types.ts";

/**
 * Starts the worker whose entry point stands beside main.ts; passed in, because only there can it be resolved.
 * `transfer` lists the ports within `workerData`.
 */
export type SpawnWorker = (
  name: "scheduler" | "tokenizer",
  workerData: unknown,
  transfer: readonly MessagePort[],
) => Worker;

/** What a runtime needs to know to start; DEFAULT_OPTIONS in options.ts has all but the model. */
export interface RuntimeOptions extends EngineOptions {
  /** Worker threads that render chat templates and encode. */
  numTokenizers: number;
  /** Requests that may wait while maxRunningRequests run; more are refused with QueueFull. */
  maxQueuedRequests: number;
  /** Bytes of prompts that wait for their first token; a prompt that waits alone may be longer. */
  maxQueuedPromptBytes: number;
  /** Where sampling fields that a request leaves out come from: generation_config.json, or no filters at temperature 1. */
  samplingDefaults: "model" | "openai";
}

export interface ChatMessage {
  role: string;
  /** Text; parts of other kinds are refused before they get here. */
  content: string;
  [key: string]: unknown;
}

/** What the answer continues. */
export type Prompt =
  /** addSpecialTokens (BOS, where the model has one): true if left out. */
  | { text: string; addSpecialTokens?: boolean }
  /** continues: the answer goes on with a text, so that its first space is one; true if left out. */
  | { tokens: readonly number[]; continues?: boolean }
  | {
      messages: readonly ChatMessage[];
      addGenerationPrompt?: boolean;
      /** The answer goes on with the last message, which is not closed. Excludes addGenerationPrompt. */
      continueFinalMessage?: boolean;
      templateArguments?: Record<string, unknown>;
    };

/** Fields left out take RuntimeOptions.samplingDefaults, then the usual defaults (temperature 1, no filters). */
export interface GenerationParameters {
  /** At least 1, and prompt and answer must fit the context. Left out: what fits. */
  maxTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  /** Left out: drawn at random for this request. */
  seed?: number;
  /** Strings that end the answer and do not appear in it. */
  stop?: readonly string[];
  stopTokenIds?: readonly number[];
  ignoreEos?: boolean;
  /** Texts leave special tokens out: true if left out. */
  skipSpecialTokens?: boolean;
  /** Until so many tokens are generated, EOS and stop ids cannot be drawn; stop strings still end the answer. */
  minTokens?: number;
  /** Above 0; 1: none. Prompt and answer count. */
  repetitionPenalty?: number;
  /** -2 .. 2; 0: none. Only the answer counts. */
  presencePenalty?: number;
  frequencyPenalty?: number;
  /** Added to the logits of token ids, -100 .. 100. */
  logitBias?: ReadonlyMap<number, number>;
  /** Report each token's logprob and those of the most probable ones, 0 .. 20 of them. Left out: no logprobs. */
  logprobs?: number;
  /** The same for the prompt's tokens; the prefix cache is not used then. */
  promptLogprobs?: number;
  /** The lower, the earlier it starts; 0 if left out. */
  priority?: number;
  /** Cached prefixes are shared only with requests of the same salt. */
  cacheSalt?: string;
}

/** A token's logprob before bias, penalties and temperature, and the most probable tokens in its place, descending. */
export interface TokenLogprob {
  token: number;
  logprob: number;
  top: readonly { token: number; logprob: number }[];
}

export type FinishReason = "stop" | "length" | "abort";

/** A piece of an answer. The last one has a finishReason; text may be empty where a character is incomplete. */
export interface GenerationEvent {
  text: string;
  tokens: number[];
  /** Of each of tokens, where the request asked for them. */
  logprobs?: TokenLogprob[];
  finishReason: FinishReason | null;
  /** What ended it, where it was a stop string or a token id other than EOS. */
  stopReason?: string | number;
}

/** An answer on its way. Iterate it once; leaving the loop early aborts the request. */
export interface Generation extends AsyncIterable<GenerationEvent> {
  readonly uid: number;
  readonly promptTokens: readonly number[];
  /** Known from the first event on. */
  readonly cachedTokens: number;
  readonly completionTokens: number;
  /** Of promptTokens[1] and on, where the request asked for them, else empty; known as cachedTokens is. */
  readonly promptLogprobs: readonly TokenLogprob[];
  /** When its first step was launched, in milliseconds of performance.now(), known as cachedTokens is; 0: never. */
  readonly startedAt: number;
  /** Logprobs that wait for the consumer's next look, those of other probable tokens included. */
  readonly gatheredLogprobs: number;
  abort(): void;
}

/** What one token stands for. */
export interface TokenText {
  /** Perhaps only a part of a character's. */
  bytes: Uint8Array;
  /** Texts of answers leave it out unless told otherwise. */
  special: boolean;
}

/** A request that cannot be served as it stands: becomes a 400. `parameter` names the field to change. */
export class InvalidRequest extends Error {
  constructor(
    message: string,
    readonly parameter: string | null = null,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

/** Too many requests wait already: becomes a 429. */
export class QueueFull extends Error {}

export interface RuntimeStatistics {
  runningRequests: number;
  waitingRequests: number;
  usedPages: number;
  cachedPages: number;
  totalPages: number;
  steps: number;
  ringStalls: number;
  preemptions: number;
  promptTokens: number;
  cachedTokens: number;
  generatedTokens: number;
  /** What steps took on the device, and what it waited for the host before them; 0 where that cannot be measured. */
  busyMicroseconds: number;
  idleMicroseconds: number;
}

/** What the rooms above see of the runtime. */
export interface RuntimeInterface {
  readonly info: EngineInfo;
  readonly hasChatTemplate: boolean;
  /** Whether the chat template knows <think> or </think>: answers may begin with a chain of thought then. */
  readonly thinks: boolean;
  /**
   * Tokenizes, checks and queues a request for one answer. Its iterator throws InvalidRequest if the scheduler turns
   * the request down, and the reason of a thread's death if one dies.
   * @throws InvalidRequest whose parameter is a field of GenerationParameters, "prompt" or "messages".
   * @throws QueueFull
   * @throws signal.reason, if the signal aborts before the request is queued.
   */
  generate(prompt: Prompt, parameters: GenerationParameters, signal?: AbortSignal): Promise<Generation>;
  encode(prompt: Prompt): Promise<number[]>;
  decode(tokens: readonly number[]): string;
  /** Null where the model has no tokenizer. */
  tokenText(token: number): TokenText | null;
  statistics(): RuntimeStatistics;
  /** Empties the prefix cache; false if requests were running. */
  flushCache(): Promise<boolean>;
  /** `callback` is told when a thread has died: nothing can be served any more, and the process should end. */
  onFatal(callback: (error: Error) => void): void;
  /** Resolves when the threads have ended. */
  stop(): Promise<void>;
}
