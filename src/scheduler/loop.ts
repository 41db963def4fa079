/**
 * What the scheduler thread does all day: takes what main says, runs a step, publishes its tokens. It never returns to
 * the event loop, and sleeps on the doorbell when there is nothing to do.
 */
import { type MessagePort, receiveMessageOnPort } from "node:worker_threads";
import { Doorbell } from "../message/doorbell.ts";
import { NO_TOKEN, RingProducer, type TokenOutput } from "../message/ring.ts";
import { ScoredWriter } from "../message/scored.ts";
import {
  type EngineInfo,
  type EngineOptions,
  Finish,
  type FinishCode,
  type FromScheduler,
  type Request,
  type SchedulerThreadData,
  type ScoredOutput,
  Statistic,
  type ToScheduler,
} from "../message/types.ts";

/** What the loop asks of a scheduler. */
export interface LoopScheduler {
  add(request: Request): void;
  /** Unknown and ended uids are ignored. */
  abort(uid: number): void;
  /** Empties the prefix cache; false if requests are running. */
  flushCache(): boolean;
  /** Launches and collects; false if there is nothing to do. Pushes at most one record a running sequence. */
  step(): boolean;
}

/** A started engine with its scheduler on top. */
export interface StartedScheduler {
  scheduler: LoopScheduler;
  info: EngineInfo;
  /** Gives the device back. */
  close(): void;
}

/** Loads the model and builds the scheduler that writes to `output` and `statistics`. */
export type StartScheduler = (
  options: EngineOptions,
  output: TokenOutput,
  statistics: Int32Array,
  onProgress: (stage: string, done: number, total: number) => void,
) => Promise<StartedScheduler>;

/** No request's uid. */
const NOBODY = 0;

/** The ring for tokens; what has logprobs is gathered and goes by message. */
class StepOutput implements TokenOutput {
  private readonly scored = new ScoredWriter();

  constructor(
    readonly ring: RingProducer,
    private readonly port: MessagePort,
  ) {}

  push(uid: number, token: number, finish: FinishCode, cachedTokens: number, waited: number): void {
    this.ring.push(uid, token, finish, cachedTokens, waited);
  }

  /** A record of nobody goes into the ring as well: so a main thread that lags holds up what has logprobs too. */
  pushScored(output: ScoredOutput): void {
    this.ring.push(NOBODY, NO_TOKEN, Finish.none, 0, 0);
    this.scored.add(output);
  }

  /** Hands everything pushed so far to main. */
  publish(): void {
    this.ring.publish();
    const words = this.scored.take();
    if (words !== null) this.port.postMessage({ type: "scored", words } satisfies FromScheduler, [words.buffer]);
  }
}

/** Runs a scheduler until main says stop. Whatever is thrown on the way reaches main as a fatal message. */
export async function runSchedulerThread(data: SchedulerThreadData, start: StartScheduler): Promise<void> {
  const { port } = data;
  const say = (message: FromScheduler): void => port.postMessage(message);
  const statistics = new Int32Array(data.statistics);
  const ring = new RingProducer(data.ring, () => {
    Atomics.add(statistics, Statistic.ringStalls, 1);
  });
  const output = new StepOutput(ring, port);
  try {
    const started = await start(data.options, output, statistics, (stage, done, total) =>
      say({ type: "progress", stage, done, total }),
    );
    say({ type: "ready", info: started.info });
    loop(started, output, port, new Doorbell(data.doorbell));
    started.close();
    say({ type: "stopped" });
  } catch (error) {
    const { message, stack } = error instanceof Error ? error : new Error(String(error));
    say({ type: "fatal", message, stack });
  } finally {
    port.close();
  }
}

function loop({ scheduler, info }: StartedScheduler, output: StepOutput, port: MessagePort, doorbell: Doorbell): void {
  const recordsOfStep = Math.min(2 * info.maxRunningRequests, output.ring.capacity);
  for (;;) {
    const { rings } = doorbell;
    for (let received = receiveMessageOnPort(port); received; received = receiveMessageOnPort(port)) {
      if (handle(received.message, scheduler, port)) return;
    }
    output.ring.reserve(recordsOfStep);
    const worked = scheduler.step();
    output.publish();
    if (!worked) doorbell.sleep(rings);
  }
}

/** Returns true on stop. */
function handle(message: ToScheduler, scheduler: LoopScheduler, port: MessagePort): boolean {
  switch (message.type) {
    case "generate":
      scheduler.add(message.request);
      return false;
    case "abort":
      scheduler.abort(message.uid);
      return false;
    case "flush":
      port.postMessage({ type: "flushed", id: message.id, done: scheduler.flushCache() } satisfies FromScheduler);
      return false;
    case "stop":
      return true;
  }
}
