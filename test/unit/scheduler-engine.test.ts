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
import { type EngineOptions, Finish, PLAIN, type Request, Statistic } from "../../src/message/types.ts";
import { createModel } from "../../src/model/registry.ts";
import { Device } from "../../src/native/device.ts";
import { libraries } from "../../src/native/libraries.generated.ts";
import { openLibrary } from "../../src/native/library.ts";
import { DType } from "../../src/native/tensor.ts";
import { Scheduler, type SchedulerOptions } from "../../src/scheduler/scheduler.ts";
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
      const key = `${batch.samplingRows[at + 6]} at ${batch.samplingRows[at + 1]}`;
      this.logits.set(key, logits.slice(i * VOCABULARY, (i + 1) * VOCABULARY));
    }
  }
}

/** Prompts of all lengths, greedy and drawn, of which half begin alike. */
function makeRequests(): Request[] {
  const random = new Random(11);
  const draw = (count: number) => Array.from({ length: count }, () => random.integer(3, VOCABULARY - 1));
  const common = draw(24);
  return Array.from({ length: 14 }, (_, i) => {
    const beginning = i % 2 === 0 ? common.slice(0, random.integer(12, 24)) : [];
    const temperature = i % 3 === 0 ? 0 : 1;
    return {
      uid: i + 1,
      tokens: Int32Array.from([...beginning, ...draw(random.integer(1, 20))]),
      sampling: { temperature, topK: i % 4 === 1 ? 20 : 0, topP: 1, minP: 0, seed: i + 1 },
      maxTokens: random.integer(5, 40),
      stopTokenIds: [],
      ignoreEos: i % 2 === 1,
      queuedAt: 0,
      ...PLAIN,
    };
  });
}

const requests = makeRequests();
let alone: { output: Recorder; logits: Map<string, Float32Array> };

/** Serves the requests together, or one after the other. */
function serve(engine: Engine, options: Partial<SchedulerOptions>, oneByOne = false, rounds = 1) {
  const defaults: SchedulerOptions = { maxRunningRequests: 0, maxPrefillLength: 0, cache: "radix", overlap: true };
  const settled = { ...defaults, ...options };
  const watched = new Watched(engine, !settled.overlap);
  let output = new Recorder();
  const scheduler = new Scheduler(watched, settled, {
    push: (uid, token, finish, cachedTokens) => output.push(uid, token, finish, cachedTokens),
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
  for (const { uid } of requests) {
    const { tokens, finish } = output.of(uid);
    const { tokens: expected, finish: end } = alone.output.of(uid);
    expect({ uid, tokens, finish }).toEqual({ uid, tokens: expected, finish: end });
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
  for (const { uid } of requests) expect([Finish.stop, Finish.length]).toContain(alone.output.of(uid).finish as never);
  const tokens = requests.reduce((sum, { uid }) => sum + alone.output.of(uid).tokens.length, 0);
  expect(alone.logits.size).toBe(tokens);
});

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
