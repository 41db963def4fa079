/** One answer in main: takes its tokens as the ring brings them, and gives them to whoever iterates as text. */
import { Finish, type FinishCode, type LogprobRows } from "../message/types.ts";
import type { IncrementalDetokenizer } from "../tokenizer/detokenizer.ts";
import type { StopMatcher } from "../tokenizer/stop.ts";
import {
  type FinishReason,
  type Generation,
  type GenerationEvent,
  InvalidRequest,
  type TokenLogprob,
} from "./types.ts";

type Result = IteratorResult<GenerationEvent, undefined>;
const END: Result = { done: true, value: undefined };

/** How an answer becomes text, and who hears that it has ended. */
export interface AnswerParts {
  /** Null where the model has no tokenizer. */
  detokenizer: IncrementalDetokenizer | null;
  /** Null without stop strings. */
  matcher: StopMatcher | null;
  stopTokenIds: readonly number[];
  /** Its events report logprobs. */
  logprobs: boolean;
  /** Called once, when no more tokens are wanted. `early`: the scheduler does not know it yet. */
  onEnd(answer: Answer, early: boolean): void;
  /** Called at the first record, before anything else. */
  onStart(answer: Answer): void;
}

/**
 * Tokens that arrive while nobody asks for them are gathered into one event, so a slow reader holds one event of its
 * own answer's length and no queue.
 */
export class Answer implements Generation, AsyncIterableIterator<GenerationEvent, undefined> {
  cachedTokens = 0;
  completionTokens = 0;
  readonly promptLogprobs: TokenLogprob[] = [];
  startedAt = 0;
  readonly queuedAt = performance.now();
  /** Runtime's mark for answers that got something in this drain. */
  touched = false;
  private started = false;
  private text = "";
  private tokens: number[] = [];
  /** Of each of tokens, where they were asked for. */
  private logprobs: TokenLogprob[] = [];
  private finishReason: FinishReason | null = null;
  private stopReason: string | number | undefined;
  private failure: Error | null = null;
  /** The last event, or the failure, has been handed out. */
  private done = false;
  private waiter: PromiseWithResolvers<Result> | null = null;

  constructor(
    readonly uid: number,
    readonly promptTokens: readonly number[],
    private readonly parts: AnswerParts,
  ) {}

  /**
   * Takes what a step gave; the consumer hears of it at wake(). `token` is negative where there is none.
   * @param logprobs The token's. @param promptLogprobs Those of the prompt's next tokens.
   */
  accept(
    token: number,
    finish: FinishCode,
    cachedTokens: number,
    waited: number,
    logprobs: LogprobRows | null = null,
    promptLogprobs: LogprobRows | null = null,
  ): void {
    if (this.ended) return;
    if (!this.started) {
      this.started = true;
      this.cachedTokens = cachedTokens;
      if (waited > 0) this.startedAt = this.queuedAt + waited / 1000;
      this.parts.onStart(this);
    }
    if (promptLogprobs !== null) addLogprobs(this.promptLogprobs, promptLogprobs);
    if (token >= 0) {
      this.completionTokens++;
      this.tokens.push(token);
      if (logprobs !== null) addLogprobs(this.logprobs, logprobs);
      if (finish !== Finish.stop && this.addText(this.parts.detokenizer?.push(token) ?? "")) {
        this.end("stop", finish === Finish.none);
        return;
      }
    }
    if (finish !== Finish.none) this.finish(token, finish);
  }

  /** Gives what has gathered to a waiting consumer. */
  wake(): void {
    const { waiter } = this;
    if (waiter === null) return;
    if (this.hasEvent) {
      this.waiter = null;
      waiter.resolve({ done: false, value: this.takeEvent() });
    } else if (this.failure !== null) {
      this.waiter = null;
      this.done = true;
      waiter.reject(this.failure);
    }
  }

  /** Ends the answer with an error, which the consumer gets after what has gathered. */
  fail(error: Error): void {
    if (this.ended) return;
    this.failure = error;
    this.parts.onEnd(this, false);
    this.wake();
  }

  abort(): void {
    if (this.ended) return;
    this.flushText();
    this.end("abort", true);
    this.wake();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<Result> {
    if (this.waiter !== null) return Promise.reject(new Error("an answer is read by one consumer at a time"));
    if (this.done) return Promise.resolve(END);
    if (this.hasEvent) {
      return Promise.resolve({ done: false, value: this.takeEvent() });
    }
    if (this.failure !== null) {
      this.done = true;
      return Promise.reject(this.failure);
    }
    this.waiter = Promise.withResolvers();
    return this.waiter.promise;
  }

  /** The consumer leaves. */
  return(): Promise<Result> {
    if (!this.ended) this.end("abort", true);
    this.done = true;
    return Promise.resolve(END);
  }

  get gatheredLogprobs(): number {
    const [first] = this.logprobs;
    return first === undefined ? 0 : this.logprobs.length * (1 + first.top.length);
  }

  private get ended(): boolean {
    return this.finishReason !== null || this.failure !== null;
  }

  private get hasEvent(): boolean {
    return this.tokens.length > 0 || this.finishReason !== null;
  }

  private finish(token: number, finish: FinishCode): void {
    if (finish === Finish.error) {
      this.failure = new InvalidRequest("the request does not fit into the memory of this server", "prompt");
      this.parts.onEnd(this, false);
      return;
    }
    const stopped = this.flushText();
    if (finish === Finish.stop && !stopped && this.parts.stopTokenIds.includes(token)) this.stopReason = token;
    const reason = finish === Finish.length ? "length" : finish === Finish.abort ? "abort" : "stop";
    this.end(stopped ? "stop" : reason, false);
  }

  /** Returns true if a stop string ends the answer. */
  private addText(piece: string): boolean {
    const { matcher } = this.parts;
    if (piece === "") return false;
    if (matcher === null) {
      this.text += piece;
      return false;
    }
    const { text, stopped } = matcher.push(piece);
    this.text += text;
    if (stopped === null) return false;
    this.stopReason = stopped;
    return true;
  }

  /** Adds what detokenizer and matcher still hold back; true if that completes a stop string. */
  private flushText(): boolean {
    if (this.addText(this.parts.detokenizer?.flush() ?? "")) return true;
    this.text += this.parts.matcher?.flush() ?? "";
    return false;
  }

  private end(reason: FinishReason, early: boolean): void {
    this.finishReason = reason;
    this.parts.onEnd(this, early);
  }

  private takeEvent(): GenerationEvent {
    const { text, tokens, logprobs, finishReason, stopReason } = this;
    const event: GenerationEvent = { text, tokens, finishReason };
    this.text = "";
    this.tokens = [];
    if (this.parts.logprobs) {
      event.logprobs = logprobs;
      this.logprobs = [];
    }
    if (finishReason === null) return event;
    this.done = true;
    if (stopReason !== undefined) event.stopReason = stopReason;
    return event;
  }
}

function addLogprobs(list: TokenLogprob[], { tokens, logprobs, top, topIds, topLogprobs }: LogprobRows): void {
  for (const [row, token] of tokens.entries()) {
    const best = Array.from({ length: top }, (_, i) => row * top + i);
    list.push({
      token,
      logprob: logprobs[row],
      top: best.map((at) => ({ token: topIds[at], logprob: topLogprobs[at] })),
    });
  }
}
