/** Random traffic for a scheduler on the simulated device, every choice drawn from one seed. */
import {
  Finish,
  type FinishCode,
  PLAIN,
  type Request,
  type ScoredOutput,
  Statistic,
} from "../../../src/message/types.ts";
import { type OutputSink, Scheduler, type SchedulerOptions } from "../../../src/scheduler/scheduler.ts";
import { random } from "../../random.ts";
import { EOS, loneRun, SimulatedEngine, type SimulatedOptions } from "./simulated-engine.ts";
import { rowsOf, type Scored } from "./simulated-logits.ts";

/** Uniform integers and choices. */
export class Random {
  readonly next: () => number;

  constructor(seed: number) {
    this.next = random(seed);
  }
  /** low .. high, both possible. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.next() * (high - low + 1));
  }
  chance(probability: number): boolean {
    return this.next() < probability;
  }
  pick<T>(choices: readonly T[]): T {
    return choices[this.integer(0, choices.length - 1)];
  }
}

/** What a request has given so far. */
export interface Received {
  tokens: number[];
  finish: FinishCode;
  cachedTokens: number;
  logprobs: Scored[];
  promptLogprobs: Scored[];
}

/** Collects what a scheduler puts out. */
export class Recorder implements OutputSink {
  readonly received = new Map<number, Received>();
  readonly refusals = new Map<number, string>();

  push(uid: number, token: number, finish: FinishCode, cachedTokens: number): void {
    const answer = this.of(uid);
    if (answer.finish !== Finish.none) throw new Error(`request ${uid} gave something after it had ended`);
    if (token >= 0) answer.tokens.push(token);
    answer.finish = finish;
    answer.cachedTokens = cachedTokens;
  }
  pushScored({ uid, token, finish, cachedTokens, logprobs, promptLogprobs }: ScoredOutput): void {
    this.push(uid, token, finish, cachedTokens);
    const answer = this.of(uid);
    if (logprobs !== null) answer.logprobs.push(...rowsOf(logprobs));
    if (promptLogprobs !== null) answer.promptLogprobs.push(...rowsOf(promptLogprobs));
  }
  reject(uid: number, message: string): void {
    this.refusals.set(uid, message);
  }
  of(uid: number): Received {
    let answer = this.received.get(uid);
    if (answer === undefined) {
      answer = { tokens: [], finish: Finish.none, cachedTokens: 0, logprobs: [], promptLogprobs: [] };
      this.received.set(uid, answer);
    }
    return answer;
  }
}

/** A scheduler on a simulated device, with what goes in and comes out. */
export interface Setup {
  engine: SimulatedEngine;
  scheduler: Scheduler;
  output: Recorder;
}

export function setUp(simulated: Partial<SimulatedOptions> = {}, options: Partial<SchedulerOptions> = {}): Setup {
  const engine = new SimulatedEngine({
    pageSize: 1,
    numPages: 200,
    maxSequences: 8,
    maxTokens: 64,
    maxContext: 200,
    vocabulary: 1000,
    eosRate: 0,
    runsEarly: () => false,
    ...simulated,
  });
  const output = new Recorder();
  const defaults: SchedulerOptions = { maxRunningRequests: 0, maxPrefillLength: 0, cache: "radix", overlap: true };
  return { engine, output, scheduler: new Scheduler(engine, { ...defaults, ...options }, output) };
}

/** A greedy request that goes on past EOS. */
export function request(
  uid: number,
  tokens: ArrayLike<number>,
  maxTokens: number,
  more: Partial<Request> = {},
): Request {
  const sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0 };
  return {
    uid,
    tokens: Int32Array.from(tokens),
    sampling,
    maxTokens,
    stopTokenIds: [],
    ignoreEos: true,
    queuedAt: 0,
    ...PLAIN,
    ...more,
  };
}

/** `count` tokens that belong to `name`. */
export function promptOf(name: number, count: number): Int32Array {
  return Int32Array.from({ length: count }, (_, i) => 1 + ((name * 131 + i * 7) % 900));
}

/** What one seed draws. */
interface Plan {
  simulated: SimulatedOptions;
  scheduler: SchedulerOptions;
  requests: number;
  longestPrompt: number;
  longestAnswer: number;
  /** Chances a step. */
  arrivals: number;
  aborts: number;
  /** Share of the requests that want more than tokens. */
  special: number;
}

function drawPlan(random: Random): Plan {
  const pageSize = random.pick([1, 1, 2, 3, 4, 8, 16]);
  const maxSequences = random.integer(1, 8);
  const maxTokens = random.pick([1, 2, 5, 9, 16, 40]) + random.pick([0, maxSequences]);
  const numPages = Math.ceil(random.pick([12, 24, 40, 90, 200]) / pageSize) + random.integer(0, 3);
  const maxContext = Math.min(numPages * pageSize, random.pick([30, 60, 1000]));
  const early = random.pick([0, 0.3, 1]);
  const least = Math.max(Math.ceil(maxContext / pageSize), maxSequences);
  return {
    simulated: {
      pageSize,
      numPages,
      maxSequences,
      maxTokens,
      maxContext,
      vocabulary: 1000,
      eosRate: random.pick([0, 0.02, 0.2]),
      maxPageValues: random.chance(0.3) ? least : undefined,
      maxSamples: maxSequences + random.pick([0, 0, 2, 20]),
      runsEarly: () => random.chance(early),
    },
    scheduler: {
      maxRunningRequests: random.pick([0, random.integer(1, maxSequences)]),
      maxPrefillLength: random.pick([0, random.integer(1, maxTokens)]),
      cache: random.chance(0.75) ? "radix" : "naive",
      overlap: random.chance(0.75),
    },
    requests: random.integer(3, 25),
    longestPrompt: random.integer(1, Math.max(1, maxContext - 1)),
    longestAnswer: random.integer(1, 30),
    arrivals: random.pick([0.2, 0.6, 1]),
    aborts: random.pick([0, 0, 0.02, 0.15]),
    special: random.pick([0, 0.3, 1]),
  };
}

/** A prompt that begins like an earlier one, or goes on where an earlier conversation ended, or is new. */
function drawPrompt(plan: Plan, random: Random, seen: Int32Array[]): Int32Array {
  const length = random.integer(1, plan.longestPrompt);
  const tokens = Int32Array.from({ length: plan.longestPrompt }, () => random.integer(1, 999));
  if (seen.length === 0 || random.chance(0.3)) return tokens.subarray(0, length);
  const other = random.pick(seen).subarray(0, plan.longestPrompt);
  const goesOn = random.chance(0.5);
  tokens.set(goesOn ? other : other.subarray(0, random.integer(0, other.length)));
  return tokens.subarray(0, goesOn ? Math.min(plan.longestPrompt, other.length + random.integer(0, 3)) : length);
}

/** What a request may ask of its logits, its place in the queue and its prefix. */
function drawSpecial(random: Random, maxTokens: number): Partial<Request> {
  const biased = Array.from({ length: random.integer(1, 4) }, (_, i) => 250 * i + random.integer(EOS, 200));
  return {
    minTokens: random.chance(0.4) ? random.integer(1, maxTokens) : 0,
    penalties: random.chance(0.5)
      ? { repetition: random.pick([1, 1.5]), presence: random.pick([0, 0.5]), frequency: random.pick([0, -1]) }
      : null,
    logitBias: random.chance(0.3)
      ? { ids: Int32Array.from(biased), values: Float32Array.from(biased, () => random.integer(-100, 100)) }
      : null,
    logprobs: random.pick([-1, -1, 0, 3]),
    promptLogprobs: random.pick([-1, -1, 0, 2]),
    priority: random.integer(-1, 1),
    namespace: random.pick(["", "", "salt"]),
  };
}

function drawRequest(uid: number, plan: Plan, random: Random, seen: Int32Array[]): Request {
  const tokens = drawPrompt(plan, random, seen);
  const { length } = tokens;
  const fits = plan.simulated.maxContext - length;
  const tooLong = random.chance(0.03);
  const maxTokens = tooLong ? fits + 1 : Math.min(random.integer(1, plan.longestAnswer), fits);
  return {
    uid,
    tokens,
    maxTokens,
    ...PLAIN,
    ...(random.chance(plan.special) && drawSpecial(random, maxTokens)),
    sampling: {
      temperature: random.pick([0, 0.7]),
      topK: random.pick([0, 5]),
      topP: 1,
      minP: 0,
      seed: random.integer(0, 3) * 2 ** 31,
    },
    stopTokenIds: random.chance(0.2) ? [random.integer(1, 999)] : [],
    ignoreEos: random.chance(0.3),
    queuedAt: 0,
  };
}

/** One scenario: traffic until everything has ended, then the pool must be whole. */
class Drive {
  private readonly random: Random;
  private readonly plan: Plan;
  private readonly setup: Setup;
  private readonly requests = new Map<number, Request>();
  private readonly live: number[] = [];
  /** Aborted requests that must have ended by the end of the next step. */
  private readonly aborted: number[] = [];
  private readonly seen: Int32Array[] = [];

  constructor(seed: number, tamper: (setup: Setup) => void) {
    this.random = new Random(seed);
    this.plan = drawPlan(this.random);
    this.setup = setUp(this.plan.simulated, this.plan.scheduler);
    tamper(this.setup);
  }

  run(): Statistics {
    const { plan, random, setup } = this;
    let steps = 0;
    while (this.requests.size < plan.requests || this.live.length > 0) {
      while (this.requests.size < plan.requests && random.chance(plan.arrivals)) this.arrive();
      if (random.chance(plan.aborts)) this.abort();
      this.step();
      if (++steps > 20000) throw new Error("it goes on and on");
    }
    while (setup.scheduler.step());
    this.finish();
    return { steps, preemptions: setup.scheduler.statistics[Statistic.preemptions] };
  }

  private arrive(): void {
    const { setup } = this;
    const next = drawRequest(this.requests.size + 1, this.plan, this.random, this.seen);
    this.requests.set(next.uid, next);
    this.seen.push(next.tokens);
    setup.scheduler.add(next);
    const fits = next.tokens.length + next.maxTokens <= this.plan.simulated.maxContext && next.maxTokens > 0;
    if (setup.output.refusals.has(next.uid) === fits) throw new Error(`request ${next.uid} was refused: ${!fits}`);
    if (fits) this.live.push(next.uid);
    else if (setup.output.of(next.uid).finish !== Finish.error) throw new Error("a refusal gave no error");
  }

  private abort(): void {
    const uid = this.random.chance(0.1) ? this.random.integer(1, 40) : this.random.pick(this.live);
    if (uid === undefined) return;
    this.setup.scheduler.abort(uid);
    if (this.live.includes(uid)) this.aborted.push(uid);
  }

  private step(): void {
    const { engine, scheduler, output } = this.setup;
    const before = engine.launches + engine.collects;
    const more = scheduler.step();
    scheduler.checkInvariants();
    if (more && engine.launches + engine.collects === before) throw new Error("nothing moves");
    for (const uid of this.aborted.splice(0)) {
      if (output.of(uid).finish === Finish.none) throw new Error(`request ${uid} outlives its abort by a step`);
    }
    for (let i = this.live.length - 1; i >= 0; i--) {
      if (output.of(this.live[i]).finish !== Finish.none) this.check(this.live.splice(i, 1)[0]);
    }
    if (!more && this.live.length > 0) throw new Error("the scheduler rests while requests live");
  }

  /** An ended request has exactly what it gives alone; an aborted one a beginning of it. */
  private check(uid: number): void {
    const asked = this.requests.get(uid)!;
    const { tokens, finish, cachedTokens, ...told } = this.setup.output.of(uid);
    const alone = loneRun(asked, this.plan.simulated);
    const expected = finish === Finish.abort ? alone.tokens.slice(0, tokens.length) : alone.tokens;
    if (tokens.join() !== expected.join()) throw new Error(`request ${uid} gave ${tokens}, alone ${expected}`);
    if (finish !== Finish.abort && finish !== alone.finish) throw new Error(`request ${uid} ended by ${finish}`);
    for (const kind of ["logprobs", "promptLogprobs"] as const) {
      const expected = finish === Finish.abort ? alone[kind].slice(0, told[kind].length) : alone[kind];
      if (!Bun.deepEquals(told[kind], expected)) throw new Error(`${kind} of request ${uid} are not those alone`);
    }
    const { pageSize } = this.plan.simulated;
    if (cachedTokens % pageSize !== 0 || cachedTokens >= asked.tokens.length) throw new Error("cachedTokens is wrong");
    const answered = new Int32Array(asked.tokens.length + tokens.length);
    answered.set(asked.tokens);
    answered.set(tokens, asked.tokens.length);
    this.seen.push(answered);
  }

  private finish(): void {
    const { scheduler } = this.setup;
    const { statistics } = scheduler;
    const { numPages, maxSequences } = this.plan.simulated;
    scheduler.checkInvariants();
    if (statistics[Statistic.usedPages] !== 0) throw new Error("an idle scheduler uses pages");
    const preemptions = statistics[Statistic.preemptions];
    if (preemptions > this.requests.size * maxSequences) throw new Error(`it thrashes: ${preemptions} preemptions`);
    if (!scheduler.flushCache()) throw new Error("an idle scheduler does not flush");
    scheduler.checkInvariants();
    if (statistics[Statistic.cachedPages] !== 0 || statistics[Statistic.totalPages] !== numPages) {
      throw new Error("the cache is not empty after a flush");
    }
  }
}

export interface Statistics {
  steps: number;
  preemptions: number;
}

/** Runs the scenario of a seed, with a scheduler that `tamper` may have damaged. @throws Error that names the seed. */
export function drive(seed: number, tamper: (setup: Setup) => void = () => {}): Statistics {
  try {
    return new Drive(seed, tamper).run();
  } catch (error) {
    throw new Error(`seed ${seed}: ${error instanceof Error ? error.stack : error}`);
  }
}
