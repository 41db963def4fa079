/**
 * What the host costs: the scheduler's thread between two steps, and the whole way to 256 HTTP streams, over a device
 * that answers at once and computes nothing.
 */
import type { Batch } from "../engine/batch.ts";
import { ForwardingEngine } from "../engine/forwarding.ts";
import { loadEngine } from "../engine/load.ts";
import type { StepEngine } from "../engine/types.ts";
import { createRing, RingConsumer, RingProducer } from "../message/ring.ts";
import { type EngineOptions, PLAIN } from "../message/types.ts";
import { Scheduler } from "../scheduler/scheduler.ts";
import { runClient } from "./client.ts";
import { percentile } from "./drive.ts";
import type { Figure } from "./report.ts";
import { streamFigures } from "./serve.ts";
import { randomItems } from "./workload.ts";

const STREAMS = 256;
const PROMPT_LENGTH = 128;
const TARGET_STEP_MICROSECONDS = 150;
const TARGET_TOKENS_PER_SECOND = 40000;
/** Steps that are not counted, while the code becomes fast. */
const WARM_STEPS = 400;
const STEPS = 1000;

/** An engine that notes how long the scheduler takes from a step's result to the launch of the next step. */
class TimedEngine extends ForwardingEngine {
  /** Microseconds, one for each full step. */
  readonly gaps: number[] = [];
  private resultAt = 0;

  constructor(
    engine: StepEngine,
    private readonly beforeResult: () => void,
  ) {
    super(engine);
  }

  override launch(batch: Batch): void {
    super.launch(batch);
    const full = batch.decodeSequences === STREAMS && batch.sequences === STREAMS;
    if (full) this.gaps.push(1000 * (performance.now() - this.resultAt));
  }

  override collect(batch: Batch): Int32Array {
    this.beforeResult();
    const tokens = super.collect(batch);
    this.resultAt = performance.now();
    return tokens;
  }
}

/** Scheduler and engine alone, 256 sequences decoding: from a result to the return of the next launch. */
export async function benchStep(options: EngineOptions): Promise<Figure[]> {
  const { engine, info } = await loadEngine({ ...options, maxRunningRequests: STREAMS });
  try {
    const ring = createRing();
    const consumer = new RingConsumer(ring);
    const output = new RingProducer(ring);
    let seen = 0;
    // What main does meanwhile on its own thread is done before the clock starts.
    const timed = new TimedEngine(engine, () => {
      consumer.drain(() => seen++);
    });
    const scheduler = new Scheduler(timed, options, output);
    const shapes = Array.from({ length: STREAMS }, () => ({ input: PROMPT_LENGTH, output: WARM_STEPS + STEPS + 50 }));
    randomItems(shapes, info.vocabularySize).forEach(({ tokens, maxTokens }, index) => {
      const sampling = { temperature: 0.6, topK: 0, topP: 1, minP: 0, seed: index };
      const request = { uid: index + 1, tokens: Int32Array.from(tokens), sampling, maxTokens, stopTokenIds: [] };
      scheduler.add({ ...PLAIN, ...request, ignoreEos: true, queuedAt: 0 });
    });
    while (timed.gaps.length < WARM_STEPS + STEPS && scheduler.step()) output.publish();
    const gaps = timed.gaps.slice(WARM_STEPS);
    if (gaps.length < STEPS || seen === 0) throw new Error(`only ${gaps.length} full steps: the KV pool is too small`);
    return [
      {
        key: "step_median_us",
        label: `result to next launch at ${STREAMS} sequences, median`,
        value: percentile(gaps, 0.5),
        unit: "us",
        target: { comparison: "<=", value: TARGET_STEP_MICROSECONDS },
      },
      { key: "step_p99_us", label: "p99", value: percentile(gaps, 0.99), unit: "us" },
    ];
  } finally {
    engine.close();
  }
}

/** What the streams' server is started with. */
export interface HostServer {
  /** Command line that serves the model over the null device and prints its URL when it is ready. */
  command: readonly string[];
  model: string;
  vocabularySize: number;
  /** Tokens of each stream. */
  tokens: number;
  /** Microseconds that the device pretends to need for a step; 0: none. */
  stepMicroseconds: number;
}

/** 256 streams over HTTP from a server in another process. */
export async function benchStreams(options: HostServer): Promise<Figure[]> {
  const { command, model, vocabularySize, tokens, stepMicroseconds } = options;
  const env = { ...process.env, MINISGL_NULL_STEP_US: String(stepMicroseconds) };
  const server = Bun.spawn([...command], { stdin: "ignore", stdout: "pipe", stderr: "ignore", env });
  try {
    const url = await readUrl(server.stdout);
    const items = (output: number, seed: number) =>
      randomItems(
        Array.from({ length: STREAMS }, () => ({ input: PROMPT_LENGTH, output })),
        vocabularySize,
        seed,
      );
    const job = { url, model, temperature: 0.6 };
    await runClient({ ...job, items: items(Math.ceil(tokens / 5), 1) });
    const result = await runClient({ ...job, items: items(tokens, 2) });
    return [
      {
        key: "tokens_per_second",
        label: `${STREAMS} HTTP streams`,
        value: (1000 * result.tokens) / result.milliseconds,
        unit: "tokens/s",
        digits: 0,
        target: { comparison: ">=", value: TARGET_TOKENS_PER_SECOND },
      },
      ...streamFigures(result),
    ];
  } finally {
    server.kill("SIGKILL");
    await server.exited;
  }
}

/** The address in what a server prints when it is ready. */
async function readUrl(output: ReadableStream<Uint8Array>): Promise<string> {
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of output) {
    text += decoder.decode(chunk, { stream: true });
    const url = text.match(/http:\/\/[^\s/]+(?=[\s/])/)?.[0];
    if (url !== undefined) return url;
  }
  throw new Error("the server of the benchmark ended before it was ready");
}
