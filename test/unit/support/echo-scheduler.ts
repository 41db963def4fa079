/**
 * A scheduler thread without an engine for the runtime's tests: the real loop over a scheduler that answers a request
 * with its own prompt, one token a step, beginning anew at its end. Some seeds make it misbehave.
 */
import { workerData } from "node:worker_threads";
import { NO_TOKEN, type TokenOutput } from "../../../src/message/ring.ts";
import {
  type EngineInfo,
  Finish,
  type FinishCode,
  type Request,
  type SchedulerThreadData,
  Statistic,
} from "../../../src/message/types.ts";
import { type LoopScheduler, runSchedulerThread } from "../../../src/scheduler/loop.ts";
import { type EchoBehaviour, EOS, Seeds } from "./runtime-fixture.ts";

class EchoScheduler implements LoopScheduler {
  private readonly running = new Map<number, { request: Request; drawn: number }>();

  constructor(
    private readonly output: TokenOutput,
    private readonly statistics: Int32Array,
    private readonly stepMilliseconds: number,
  ) {}

  add(request: Request): void {
    if (request.sampling.seed === Seeds.crash) throw new Error("the echo model has crashed");
    if (request.sampling.seed === Seeds.exit) process.exit(0);
    if (request.sampling.seed === Seeds.reject) this.output.push(request.uid, NO_TOKEN, Finish.error, 0, 0);
    else this.running.set(request.uid, { request, drawn: 0 });
  }

  abort(uid: number): void {
    if (this.running.delete(uid)) this.output.push(uid, NO_TOKEN, Finish.abort, 0, 0);
  }

  flushCache(): boolean {
    return this.running.size === 0;
  }

  step(): boolean {
    if (this.stepMilliseconds > 0) Bun.sleepSync(this.stepMilliseconds);
    for (const [uid, sequence] of this.running) {
      const { request } = sequence;
      const token = request.tokens[sequence.drawn++ % request.tokens.length];
      const finish = this.finishOf(token, sequence.drawn, request);
      if (finish !== Finish.none) this.running.delete(uid);
      this.output.push(uid, token, finish, request.tokens.length - 1, 1);
    }
    Atomics.store(this.statistics, Statistic.runningRequests, this.running.size);
    Atomics.add(this.statistics, Statistic.steps, 1);
    return this.running.size > 0;
  }

  private finishOf(token: number, drawn: number, request: Request): FinishCode {
    if (request.stopTokenIds.includes(token) || (token === EOS && !request.ignoreEos)) return Finish.stop;
    return drawn === request.maxTokens ? Finish.length : Finish.none;
  }
}

const data = workerData as SchedulerThreadData & { behaviour: EchoBehaviour };
const info: EngineInfo = {
  model: data.options.model,
  architecture: "llama",
  dtype: "float32",
  device: "echo",
  library: "",
  vocabularySize: 260,
  maxContext: data.options.maxSequenceLength,
  maxRunningRequests: data.options.maxRunningRequests,
  numPages: 0,
  pageSize: 1,
  weightBytes: 0,
  poolBytes: 0,
  weightSeconds: 0,
  captureSeconds: 0,
  loadSeconds: 0,
  warning: null,
};
await runSchedulerThread(data, async (_, output, statistics, onProgress) => {
  onProgress("echo", 1, 2);
  if (data.behaviour.failStart) throw new Error("the echo model cannot be loaded");
  const scheduler = new EchoScheduler(output, statistics, data.behaviour.stepMilliseconds ?? 0);
  return { scheduler, info, close: () => {} };
});
