import { MessageChannel } from "node:worker_threads";
import { Doorbell } from "../message/doorbell.ts";
import { createRing, RingConsumer, type TokenInput } from "../message/ring.ts";
import { readScored } from "../message/scored.ts";
import { createStatistics, readStatistics } from "../message/statistics.ts";
import type {
  EngineInfo,
  EngineOptions,
  FromScheduler,
  Request,
  SchedulerThreadData,
  ScoredOutput,
  ToScheduler,
} from "../message/types.ts";
import { Thread } from "./thread.ts";
import type { RuntimeStatistics, SpawnWorker } from "./types.ts";

/** Reports how far the start is: `done` of `total` in units of the stage. */
export type OnProgress = (stage: string, done: number, total: number) => void;

/** Main's end of the scheduler thread. */
export class SchedulerClient {
  /** Resolves when the model is loaded; rejects with the reason why it cannot be. */
  readonly ready: Promise<EngineInfo>;
  private readonly thread: Thread<ToScheduler, FromScheduler>;
  private readonly doorbell = new Doorbell();
  private readonly statisticsBlock = createStatistics();
  private readonly statisticsWords = new Int32Array(this.statisticsBlock);
  private readonly consumer: RingConsumer;
  private readonly start = Promise.withResolvers<EngineInfo>();
  private readonly flushes = new Map<number, PromiseWithResolvers<boolean>>();
  private lastFlush = 0;

  /**
   * @param accept Takes the tokens as they come, and acceptScored those of requests that asked for logprobs; `drained` is
   * called after some of them.
   * @param onDeath Called at most once, if the thread dies.
   */
  constructor(
    spawn: SpawnWorker,
    options: EngineOptions,
    accept: TokenInput,
    private readonly acceptScored: (output: ScoredOutput) => void,
    private readonly drained: () => void,
    onProgress: OnProgress,
    private readonly onDeath: (error: Error) => void,
  ) {
    const { port1, port2 } = new MessageChannel();
    const ring = createRing();
    const { buffer: doorbell } = this.doorbell;
    const data: SchedulerThreadData = { options, port: port2, ring, doorbell, statistics: this.statisticsBlock };
    this.ready = this.start.promise;
    this.ready.catch(() => {});
    const worker = spawn("scheduler", data, [port2]);
    const onMessage = (message: FromScheduler): void => this.receive(message, onProgress);
    this.thread = new Thread("scheduler", worker, port1, onMessage, (error) => this.die(error));
    this.consumer = new RingConsumer(ring);
    this.consumer.run(accept, drained).catch((error) => this.die(error));
  }

  add(request: Request): void {
    this.send({ type: "generate", request });
  }

  abort(uid: number): void {
    this.send({ type: "abort", uid });
  }

  flushCache(): Promise<boolean> {
    const id = ++this.lastFlush;
    const flush = Promise.withResolvers<boolean>();
    this.flushes.set(id, flush);
    this.send({ type: "flush", id });
    return flush.promise;
  }

  statistics(): RuntimeStatistics {
    return readStatistics(this.statisticsWords);
  }

  /** Resolves when the thread has ended. */
  async stop(): Promise<void> {
    this.thread.stop({ type: "stop" });
    this.doorbell.ring();
    await this.thread.ended;
    this.consumer.close();
    this.rejectFlushes(new Error("the scheduler has been stopped"));
  }

  private send(message: ToScheduler): void {
    this.thread.send(message);
    this.doorbell.ring();
  }

  private receive(message: FromScheduler, onProgress: OnProgress): void {
    switch (message.type) {
      case "progress":
        onProgress(message.stage, message.done, message.total);
        return;
      case "ready":
        this.start.resolve(message.info);
        return;
      case "flushed":
        this.flushes.get(message.id)?.resolve(message.done);
        this.flushes.delete(message.id);
        return;
      case "scored":
        readScored(message.words, this.acceptScored);
        this.drained();
        return;
      case "fatal": {
        const error = new Error(message.message);
        if (message.stack !== undefined) error.stack = message.stack;
        this.die(error);
        return;
      }
      case "stopped":
        return;
    }
  }

  private die(error: Error): void {
    this.thread.forgive();
    this.start.reject(error);
    this.rejectFlushes(error);
    this.onDeath(error);
  }

  private rejectFlushes(error: Error): void {
    for (const { reject } of this.flushes.values()) reject(error);
    this.flushes.clear();
  }
}
