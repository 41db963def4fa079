import { openCheckpoint } from "../checkpoint/open.ts";
import type { Checkpoint, GenerationDefaults } from "../checkpoint/types.ts";
import type { TokenInput } from "../message/ring.ts";
import type { EngineInfo, ScoredOutput } from "../message/types.ts";
import { IncrementalDetokenizer, TokenTable } from "../tokenizer/detokenizer.ts";
import { StopMatcher } from "../tokenizer/stop.ts";
import { Answer } from "./answer.ts";
import { type CheckedParameters, checkParameters, checkTokens, fitContext, promptBytes } from "./parameters.ts";
import { type OnProgress, SchedulerClient } from "./scheduler-client.ts";
import { TokenizerPool } from "./tokenizer-pool.ts";
import {
  type Generation,
  type GenerationParameters,
  InvalidRequest,
  type Prompt,
  QueueFull,
  type RuntimeInterface,
  type RuntimeOptions,
  type RuntimeStatistics,
  type SpawnWorker,
  type TokenText,
} from "./types.ts";

const LAST_UID = 2 ** 31 - 1;

/** A model that is being served: its threads, and the answers on their way. */
export class Runtime implements RuntimeInterface {
  private readonly scheduler: SchedulerClient;
  private readonly tokenizers: TokenizerPool | null;
  private readonly defaults: GenerationDefaults;
  readonly hasChatTemplate: boolean;
  readonly thinks: boolean;
  private engine: EngineInfo | null = null;
  private table: TokenTable | null = null;
  private readonly answers = new Map<number, Answer>();
  private lastUid = 0;
  /** Requests between generate() and their end, and the bytes of those prompts that wait for their first token. */
  private live = 0;
  private waitingBytes = 0;
  /** Answers that got records in the current drain. */
  private touched: Answer[] = [];
  private failure: Error | null = null;
  private fatalCallback: (error: Error) => void = () => {};
  private stopped: Promise<void> | null = null;

  private constructor(
    checkpoint: Checkpoint,
    private readonly options: RuntimeOptions,
    spawn: SpawnWorker,
    onProgress: OnProgress,
  ) {
    const die = (error: Error): void => this.die(error);
    const accept: TokenInput = (uid, token, finish, cachedTokens, waited) =>
      this.touch(uid)?.accept(token, finish, cachedTokens, waited);
    const acceptScored = (output: ScoredOutput): void => {
      const { uid, token, finish, cachedTokens, waited, logprobs, promptLogprobs } = output;
      this.touch(uid)?.accept(token, finish, cachedTokens, waited, logprobs, promptLogprobs);
    };
    const drained = (): void => this.wakeTouched();
    this.scheduler = new SchedulerClient(spawn, options, accept, acceptScored, drained, onProgress, die);
    // Only these are kept of the checkpoint: a tokenizer's source is some 100 MB.
    this.defaults = options.samplingDefaults === "model" ? checkpoint.generation : {};
    const source = checkpoint.tokenizer;
    this.hasChatTemplate = source !== null && source.chatTemplate !== null;
    this.thinks = /<\/?think>/.test(source?.chatTemplate ?? "");
    this.tokenizers = source === null ? null : new TokenizerPool(spawn, options.numTokenizers, source, die);
  }

  /**
   * Starts the threads and loads the model.
   * @throws CheckpointError, or an Error with the engine's reason, if the model cannot be served.
   */
  static async start(options: RuntimeOptions, spawn: SpawnWorker, onProgress: OnProgress = () => {}): Promise<Runtime> {
    const checkpoint = await openCheckpoint(options.model, { requireWeights: !options.dummyWeight });
    const runtime = new Runtime(checkpoint, options, spawn, onProgress);
    try {
      const vocabulary = await runtime.tokenizers?.ready;
      if (vocabulary !== undefined) runtime.table = new TokenTable(vocabulary);
      runtime.engine = await runtime.scheduler.ready;
    } catch (error) {
      // Not awaited: the reason need not wait until the other threads have loaded what they load.
      runtime.stop();
      throw error;
    }
    return runtime;
  }

  get info(): EngineInfo {
    return this.engine!;
  }

  async generate(prompt: Prompt, parameters: GenerationParameters, signal?: AbortSignal): Promise<Generation> {
    this.checkAlive();
    signal?.throwIfAborted();
    const checked = checkParameters(parameters, {
      defaults: this.defaults,
      vocabularySize: this.info.vocabularySize,
      hasText: this.table !== null,
    });
    const size = promptBytes(prompt);
    this.admit(size);
    try {
      const tokens = await this.tokensOf(prompt, this.info.maxContext);
      signal?.throwIfAborted();
      this.checkAlive();
      const maxTokens = fitContext(tokens.length, checked.maxTokens, this.info.maxContext, parameterOf(prompt));
      return this.queue(prompt, tokens, { ...checked, maxTokens }, signal);
    } catch (error) {
      this.live--;
      this.waitingBytes -= size;
      throw error;
    }
  }

  encode(prompt: Prompt): Promise<number[]> {
    return this.tokensOf(prompt, Infinity);
  }

  decode(tokens: readonly number[]): string {
    if (this.table === null) throw new InvalidRequest("this model has no tokenizer", "tokens");
    checkTokens(tokens, this.info.vocabularySize, "tokens");
    return this.table.decode(tokens, { skipSpecialTokens: false });
  }

  tokenText(token: number): TokenText | null {
    return this.table === null ? null : { bytes: this.table.bytes(token), special: this.table.isSpecial(token) };
  }

  statistics(): RuntimeStatistics {
    return this.scheduler.statistics();
  }

  /** Whether there is work, as a watchdog sees it: here, or in the scheduler's own words of its last step. */
  get busy(): boolean {
    const { runningRequests, waitingRequests } = this.statistics();
    return this.live + runningRequests + waitingRequests > 0;
  }

  /** Steps launched so far, modulo 2^31. */
  get steps(): number {
    return this.statistics().steps;
  }

  async flushCache(): Promise<boolean> {
    this.checkAlive();
    return this.scheduler.flushCache();
  }

  onFatal(callback: (error: Error) => void): void {
    this.fatalCallback = callback;
    if (this.failure !== null) callback(this.failure);
  }

  /** Aborts what is running, tells the threads to end, and resolves when they have. */
  stop(): Promise<void> {
    this.stopped ??= (async () => {
      for (const answer of this.answers.values()) answer.abort();
      await Promise.all([this.scheduler.stop(), this.tokenizers?.stop()]);
    })();
    return this.stopped;
  }

  private checkAlive(): void {
    if (this.failure !== null) throw this.failure;
    if (this.stopped !== null) throw new Error("the runtime has been stopped");
  }

  /** Counts a request in. */
  private admit(size: number): void {
    const { maxQueuedRequests, maxQueuedPromptBytes } = this.options;
    if (this.live >= this.info.maxRunningRequests + maxQueuedRequests) {
      throw new QueueFull(`the queue is full: ${maxQueuedRequests} waiting`);
    }
    if (this.waitingBytes > 0 && this.waitingBytes + size > maxQueuedPromptBytes) {
      throw new QueueFull(`the queue is full: prompts of ${this.waitingBytes} bytes are waiting`);
    }
    this.live++;
    this.waitingBytes += size;
  }

  private async tokensOf(prompt: Prompt, maxTokens: number): Promise<number[]> {
    const tokens = "tokens" in prompt ? [...prompt.tokens] : await this.encodeText(prompt, maxTokens);
    const parameter = parameterOf(prompt);
    if (tokens.length === 0) throw new InvalidRequest("the prompt is empty", parameter);
    if ("tokens" in prompt) checkTokens(tokens, this.info.vocabularySize, parameter);
    return tokens;
  }

  private async encodeText(prompt: Exclude<Prompt, { tokens: unknown }>, maxTokens: number): Promise<number[]> {
    if (this.tokenizers === null) throw new InvalidRequest("this model has no tokenizer: give token ids", "prompt");
    if ("messages" in prompt) {
      if (!this.hasChatTemplate) throw new InvalidRequest("this model has no chat template", "messages");
      if (prompt.continueFinalMessage && prompt.addGenerationPrompt) {
        throw new InvalidRequest("an answer either begins or continues the final message", "messages");
      }
    }
    return Array.from(await this.tokenizers.encode(prompt, promptBytes(prompt), maxTokens));
  }

  private queue(
    prompt: Prompt,
    tokens: number[],
    parameters: CheckedParameters & { maxTokens: number },
    signal: AbortSignal | undefined,
  ): Answer {
    const { stop, skipSpecialTokens, ...limits } = parameters;
    const continues = continuesText(prompt);
    const size = promptBytes(prompt);
    const uid = this.nextUid();
    let waits = true;
    const start = (): void => {
      if (waits) this.waitingBytes -= size;
      waits = false;
    };
    const abort = (): void => answer.abort();
    const answer = new Answer(uid, tokens, {
      detokenizer:
        this.table === null ? null : new IncrementalDetokenizer(this.table, { continues, skipSpecialTokens }),
      matcher: stop.length === 0 ? null : new StopMatcher(stop),
      stopTokenIds: limits.stopTokenIds,
      logprobs: limits.logprobs >= 0,
      onStart: start,
      onEnd: (_, early) => {
        start();
        this.live--;
        this.answers.delete(uid);
        signal?.removeEventListener("abort", abort);
        if (early) this.scheduler.abort(uid);
      },
    });
    signal?.addEventListener("abort", abort);
    this.answers.set(uid, answer);
    this.scheduler.add({
      uid,
      tokens: Int32Array.from(tokens),
      queuedAt: performance.timeOrigin + answer.queuedAt,
      ...limits,
    });
    return answer;
  }

  private nextUid(): number {
    do this.lastUid = this.lastUid === LAST_UID ? 1 : this.lastUid + 1;
    while (this.answers.has(this.lastUid));
    return this.lastUid;
  }

  /** The answer that a record is for, to be woken at the drain's end; none if it has ended here: such records come a little longer. */
  private touch(uid: number): Answer | undefined {
    const answer = this.answers.get(uid);
    if (answer === undefined || answer.touched) return answer;
    answer.touched = true;
    this.touched.push(answer);
    return answer;
  }

  private wakeTouched(): void {
    for (const answer of this.touched) {
      answer.touched = false;
      answer.wake();
    }
    this.touched.length = 0;
  }

  private die(error: Error): void {
    if (this.failure !== null) return;
    this.failure = error;
    for (const answer of this.answers.values()) answer.fail(error);
    this.fatalCallback(error);
  }
}

/** Whether the answer's first space is one. */
function continuesText(prompt: Prompt): boolean {
  if ("tokens" in prompt) return prompt.continues ?? true;
  return !("messages" in prompt) || prompt.continueFinalMessage === true;
}

function parameterOf(prompt: Prompt): string {
  return "messages" in prompt ? "messages" : "prompt";
}
