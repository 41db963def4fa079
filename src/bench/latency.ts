import type { RuntimeInterface } from "../runtime/types.ts";
import { drive, median, steadyStep, warmUp } from "./drive.ts";
import { IdleMeter } from "./idle.ts";
import type { Figure, Report } from "./report.ts";
import { decodeLimit, type Roofline } from "./roofline.ts";
import { randomItems } from "./workload.ts";

export interface LatencyOptions {
  /** Numbers of sequences that decode together, one measurement each. */
  batches: readonly number[];
  /** Tokens of context in the middle of the measurement. */
  context: number;
  /** Tokens that each sequence generates. */
  tokens: number;
  repeats: number;
}

/**
 * Time per decode step for each batch size: the median of a few runs, each over its steady part.
 * @throws Error where sequences would not decode together, or not at the context asked for
 */
export async function benchLatency(
  runtime: RuntimeInterface,
  options: LatencyOptions,
  roofline: Roofline | null,
): Promise<Report> {
  const { batches, context, tokens, repeats } = options;
  const { maxRunningRequests, numPages, pageSize } = runtime.info;
  const largest = Math.max(...batches);
  const prompt = promptLength(options);
  if (largest > maxRunningRequests) {
    throw new Error(`--batch ${largest} needs --max-running-requests ${largest}: ${maxRunningRequests} run at a time`);
  }
  if (prompt < 1) {
    const least = context - prompt + 1;
    throw new Error(`--context ${context} cannot be the middle of --tokens ${tokens}: it has to be at least ${least}`);
  }
  // A token more than its prompt for each: then the last to be prefilled decodes beside the others.
  const pages = largest * Math.ceil((prompt + 1) / pageSize);
  if (pages > numPages) {
    throw new Error(
      `--batch ${largest} at --context ${context} needs --num-pages ${pages} of ${pageSize}: the pool has ${numPages}`,
    );
  }
  await warmUp(runtime);
  const groups: Awaited<ReturnType<typeof measure>>[] = [];
  for (const batch of batches) groups.push(await measure(runtime, batch, options, roofline));
  const pointsOf = (key: string) =>
    groups.map(({ batch, figures }): [number, number] => [batch, figures.find((figure) => figure.key === key)!.value]);
  return {
    benchmark: "latency",
    description: `decode at a context of ${context}, ${tokens} tokens each, median of ${repeats}`,
    model: runtime.info,
    limits: roofline?.limits ?? null,
    groups,
    plots: [
      {
        title: `latency at a context of ${context}, ${runtime.info.model}`,
        xLabel: "sequences",
        xScale: "log2",
        yLabel: "ms a step",
        series: [
          { name: "measured", points: pointsOf("step_milliseconds") },
          ...(roofline === null ? [] : [{ name: "limit", points: pointsOf("limit_milliseconds") }]),
        ],
      },
    ],
  };
}

/** Tokens of a prompt with which half of the answer ends at the context. */
const promptLength = ({ context, tokens }: LatencyOptions) => context - Math.floor(tokens / 2);

async function measure(
  runtime: RuntimeInterface,
  batch: number,
  options: LatencyOptions,
  roofline: Roofline | null,
): Promise<{ name: string; batch: number; figures: Figure[] }> {
  const { context, tokens, repeats } = options;
  const input = promptLength(options);
  const steps: number[] = [];
  const firsts: number[] = [];
  const idle = new IdleMeter(runtime);
  for (let repeat = 0; repeat < repeats; repeat++) {
    const shapes = Array.from({ length: batch }, () => ({ input, output: tokens }));
    const run = await drive(runtime, randomItems(shapes, runtime.info.vocabularySize, repeat + 1), {
      temperature: 0.6,
    });
    const step = steadyStep(run);
    if (Number.isNaN(step)) {
      throw new Error(
        `--batch ${batch}: the sequences never decoded together; they need more --tokens, or more --num-pages`,
      );
    }
    steps.push(step);
    firsts.push(Math.max(...run.arrivals.map(({ times }) => times[0] ?? Number.NaN)));
    await runtime.flushCache();
  }
  const step = median(steps);
  const figures: Figure[] = [
    { key: "step_milliseconds", label: "per step", value: step, unit: "ms", digits: 3 },
    { key: "tokens_per_second", label: "generated", value: (1000 * batch) / step, unit: "tokens/s", digits: 0 },
    { key: "first_token_milliseconds", label: "last first token", value: median(firsts), unit: "ms", digits: 1 },
    ...idle.figures(),
  ];
  if (roofline !== null) {
    const limit = 1000 * decodeLimit(roofline.cost, roofline.limits, batch, batch * context);
    figures.push(
      { key: "limit_milliseconds", label: "limit", value: limit, unit: "ms", digits: 3 },
      { key: "share_of_limit", label: "share of the limit", value: limit / step, unit: "", digits: 3 },
    );
  }
  return { name: `batch ${batch}`, batch, figures };
}
