/**
 * The scheduler on the real engine: a tiny random model in float32 on the CPU device. However requests share steps,
 * pages, prefixes and time, each gives bit for bit what it gives alone.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import { type Batch, SAMPLING_WORDS } from "../../src/engine/batch.ts";
import { Engine } from "../../src/engine/engine.ts";
import { ForwardingEngine } from "../../src/engine/forwarding.ts";
import { runLone } from "../../src/engine/lone.ts";
import { type EngineOptions, Finish, PLAIN, type Request, Statistic } from "../../src/message/types.ts";
import { createModel } from "../../src/model/registry.ts";
import { Device } from "../../src/native/device.ts";
import { libraries } from "../../src/native/libraries.generated.ts";
import { openLibrary } from "../../src/native/library.ts";
import { DType } from "../../src/native/tensor.ts";
import { Scheduler, type SchedulerOptions } from "../../src/scheduler/scheduler.ts";
import { Sequence } from "../../src/scheduler/sequence.ts";
import { WeightLoader } from "../../src/weights/loader.ts";
import { ParameterScope } from "../../src/weights/scope.ts";
import { engineOptions } from "../parity/support.ts";
import { Random, Recorder } from "./support/traffic.ts";

const MODEL = join(import.meta.dir, "../parity/fixtures/llama-tied-llama3");
const VOCABULARY = 131;

/** An engine in float32 whose device waits at random between ops. */
async function open(overrides: Partial<EngineOptions>): Promise<Engine> {
  const options = engineOptions(MODEL, { threads: 1, numPages: 400, ...overrides });
  const checkpoint = await openCheckpoint(options.model, { requireWeights: true });
  const device = new Device(openLibrary(libraries.cpu!), 0, options.threads, true);
  const loader = new WeightLoader(device, device.properties(), checkpoint, DType.F32, DType.F32, false);
  const model = createModel(checkpoint.config, new ParameterScope(loader));
  await loader.finish(() => {});
  const { config, eosTokenIds } = checkpoint;
  return new Engine(device, { model, config, dtype: DType.F32, activationType: DType.F32, eosTokenIds }, options);
}

/** Remembers the logits of each token, by the request's seed (which is its uid) and the token's position. */
class Watched extends ForwardingEngine<Engine> {
  readonly logits = new Map<string, Float32Array>();

  constructor(
    engine: Engine,
    private readonly watches: boolean,
  ) {
    super(engine);
  }

  override launch(batch: Batch): void {
    super.launch(batch);
    if (!this.watches || batch.samples === 0) return;
    const logits = this.engine.logits();
    for (let i = 0; i < batch.samples; i++) {
      const at = i * SAMPLING_WORDS;
      if (batch.samplingRows[at] === this.maxSequences) continue;
      const key = `${batch.samplingRows[at + 6]} at ${batch.samplingRows[at + 1]}`;
      this.logits.set(key, logits.slice(i * VOCABULARY, (i + 1) * VOCABULARY));
    }
  }
}

/** What the i-th request asks of its logits: every other one nothing, the others everything in some combination. */
function logitsOf(i: number, random: Random, maxTokens: number): Partial<Request> {
  if (i % 2 === 0) return { priority: i % 3 };
  const ids = Int32Array.from({ length: random.integer(1, 8) }, (_, k) => 16 * k + random.integer(0, 15));
  return {
    minTokens: i % 3 === 0 ? random.integer(1, maxTokens) : 0,
    penalties:
      i % 4 === 1
        ? { repetition: random.pick([1, 1.3]), presence: random.pick([0, 0.7]), frequency: random.pick([-0.2, 0.4]) }
        : null,
    logitBias: i % 5 === 0 ? { ids, values: Float32Array.from(ids, () => random.integer(-90, 90) / 30) } : null,
    logprobs: random.pick([-1, 0, 5]),
    promptLogprobs: random.pick([-1, 0, 3]),
    namespace: random.pick(["", "", "salt"]),
  };
}

/** Prompts of all lengths, greedy and drawn, of which half begin alike. */
function makeRequests(count: number): Request[] {
  const random = new Random(11);
  const draw = (count: number) => Array.from({ length: count }, () => random.integer(3, VOCABULARY - 1));
  const common = draw(24);
  return Array.from({ length: count }, (_, i) => {
    const maxTokens = random.integer(5, 40);
    const beginning = i % 2 === 0 || i % 3 === 0 ? common.slice(0, random.integer(12, 24)) : [];
    const temperature = i % 3 === 0 ? 0 : 1;
    return {
      uid: i + 1,
      tokens: Int32Array.from([...beginning, ...draw(random.integer(1, 20))]),
      sampling: { temperature, topK: i % 4 === 1 ? 20 : 0, topP: 1, minP: 0, seed: i + 1 },
      maxTokens,
      stopTokenIds: [],
      ignoreEos: i % 2 === 1,
      queuedAt: 0,
      ...PLAIN,
      ...logitsOf(i, random, maxTokens),
    };
  });
}

const cast = makeRequests(18);
let alone: { output: Recorder; logits: Map<string, Float32Array> };

/** Serves the requests together, or one after the other. */
function serve(
  engine: Engine,
  options: Partial<SchedulerOptions>,
  oneByOne = false,
  rounds = 1,
  requests: readonly Request[] = cast,
) {
  const defaults: SchedulerOptions = { maxRunningRequests: 0, maxPrefillLength: 0, cache: "radix", overlap: true };
  const settled = { ...defaults, ...options };
  const watched = new Watched(engine, !settled.overlap);
  let output = new Recorder();
  const scheduler = new Scheduler(watched, settled, {
    push: (uid, token, finish, cachedTokens) => output.push(uid, token, finish, cachedTokens),
    pushScored: (scored) => output.pushScored(scored),
  });
  const finish = () => {
    while (scheduler.step()) scheduler.checkInvariants();
  };
  for (let round = 0; round < rounds; round++) {
    output = new Recorder();
    for (const request of requests) {
      scheduler.add(request);
      if (oneByOne) finish();
    }
    finish();
  }
  return { output, logits: watched.logits, statistics: scheduler.statistics };
}

function expectSame({ output, logits }: { output: Recorder; logits: Map<string, Float32Array> }): void {
  for (const { uid } of cast) {
    const { cachedTokens, ...answer } = output.of(uid);
    const { cachedTokens: _, ...expected } = alone.output.of(uid);
    expect({ uid, ...answer }).toEqual({ uid, ...expected });
  }
  for (const [key, row] of logits) expect([key, row]).toEqual([key, alone.logits.get(key)!]);
}

let engine: Engine;
beforeAll(async () => {
  engine = await open({});
  alone = serve(engine, { cache: "naive", overlap: false }, true);
});
afterAll(() => engine.close());

test("alone, every request ends", () => {
  for (const { uid } of cast) expect([Finish.stop, Finish.length]).toContain(alone.output.of(uid).finish as never);
  const tokens = cast.reduce((sum, { uid }) => sum + alone.output.of(uid).tokens.length, 0);
  expect(alone.logits.size).toBe(tokens);
});

/** What a request gives without a scheduler, its answer being `count` tokens: they, and its logprobs in a row. */
function runWithout(engine: Engine, request: Request, count: number) {
  const { sampling, promptLogprobs, tokens: prompt } = request;
  const logits = new Sequence(request, engine.eosTokenIds, 0).logits ?? undefined;
  const scored = promptLogprobs >= 0 ? prompt.length - 1 : 0;
  const options = { sampling, ...(logits && { logits }), ...(promptLogprobs >= 0 && { promptLogprobs }) };
  const { tokens, logprobs } = runLone(engine, [...prompt], count, options);
  const rows = logprobs.flatMap((step) =>
    Array.from(step.logprobs, (logprob, row) => {
      const pair = (at: number) => [step.topIds[at], step.topLogprobs[at]] as const;
      return { logprob, top: Array.from({ length: step.top }, (_, i) => pair(row * step.top + i)) };
    }),
  );
  const told = rows.map(({ logprob, top }, row) => ({
    logprob,
    top: top.slice(0, row < scored ? promptLogprobs : request.logprobs),
  }));
  return { tokens, told };
}

test("among 200 others, as without a scheduler, bit for bit", async () => {
  const crowd = makeRequests(200);
  const large = await open({ maxRunningRequests: 48, maxPrefillLength: 128, numPages: 1500 });
  try {
    const { output, statistics } = serve(large, { maxPrefillLength: 100 }, false, 1, crowd);
    expect(statistics[Statistic.cachedTokens]).toBeGreaterThan(500);
    const chosen = crowd.slice(60, 120);
    for (const request of chosen) {
      const { tokens, logprobs, promptLogprobs } = output.of(request.uid);
      const told = [...promptLogprobs, ...logprobs].map(({ logprob, top }) => ({ logprob, top }));
      expect({ tokens, told }).toEqual(runWithout(large, request, tokens.length));
    }
    const asking = (asks: (request: Request) => boolean) => chosen.filter(asks).length;
    expect(asking(({ penalties }) => penalties !== null)).toBeGreaterThan(5);
    expect(asking(({ logitBias }) => logitBias !== null)).toBeGreaterThan(3);
    expect(asking(({ minTokens }) => minTokens > 0)).toBeGreaterThan(5);
    expect(asking(({ logprobs, promptLogprobs }) => logprobs > 0 || promptLogprobs > 0)).toBeGreaterThan(10);
  } finally {
    large.close();
  }
}, 60_000);

for (const overlap of [false, true]) {
  const how = overlap ? "overlapped" : "step by step";

  test(`batched, ${how}`, () => {
    expectSame(serve(engine, { cache: "naive", overlap }));
  });

  test(`in chunks, ${how}`, () => {
    for (const maxPrefillLength of [8, 19]) expectSame(serve(engine, { maxPrefillLength, overlap }));
  });

  test(`with cached prefixes, ${how}`, () => {
    const result = serve(engine, { overlap }, false, 2);
    expect(result.statistics[Statistic.cachedTokens]).toBeGreaterThan(result.statistics[Statistic.promptTokens] / 3);
    expectSame(result);
  });

  test(`preempted, with pages of any size, ${how}`, async () => {
    for (const [pageSize, numPages] of [
      [1, 90],
      [3, 30],
      [16, 6],
    ]) {
      const small = await open({ pageSize, numPages, maxPrefillLength: 30, graphMaxBatchSize: 4 });
      try {
        const result = serve(small, { overlap, maxPrefillLength: 30 }, false, 2);
        expect(result.statistics[Statistic.preemptions]).toBeGreaterThan(0);
        expectSame(result);
      } finally {
        small.close();
      }
    }
  });
}
