import type { RuntimeInterface } from "../runtime/types.ts";
import { drive, type Run, warmUp } from "./drive.ts";
import { IdleMeter } from "./idle.ts";
import type { Figure, Report } from "./report.ts";
import { type Roofline, workloadLimit } from "./roofline.ts";
import { offlineItems, type WorkItem } from "./workload.ts";

export interface OfflineOptions {
  /** Of the workload's 256 sequences, the first so many. */
  sequences: number;
  /** Factor on all lengths. */
  scale: number;
  temperature: number;
}

/** Runs the offline workload, all sequences sent at once, and reports tokens a second. */
export async function benchOffline(
  runtime: RuntimeInterface,
  options: OfflineOptions,
  roofline: Roofline | null,
): Promise<Report> {
  const items = offlineItems(runtime.info.vocabularySize, options.sequences, options.scale);
  await warmUp(runtime);
  const idle = new IdleMeter(runtime);
  const run = await drive(runtime, items, { temperature: options.temperature });
  return {
    benchmark: "offline",
    description: describeItems(items),
    model: runtime.info,
    limits: roofline?.limits ?? null,
    groups: [{ name: "", figures: [...throughput(run, items, roofline), ...idle.figures()] }],
    plots: [
      {
        title: `offline, ${runtime.info.model}`,
        xLabel: "seconds",
        yLabel: "tokens/s",
        series: [{ name: "generated", points: rateOverTime(run) }],
      },
    ],
  };
}

/** Tokens a second in each hundredth of a run. */
function rateOverTime({ arrivals, milliseconds }: Run): [seconds: number, rate: number][] {
  const width = milliseconds / 100;
  const counts = new Float64Array(101);
  for (const { times, counts: totals } of arrivals) {
    times.forEach((time, index) => {
      counts[Math.floor(time / width)]! += (totals[index] as number) - (totals[index - 1] ?? 0);
    });
  }
  return Array.from({ length: 100 }, (_, index) => [((index + 0.5) * width) / 1000, (1000 * counts[index]!) / width]);
}

/** "256 sequences, 142,827 prompt tokens, 133,966 tokens to generate". */
export function describeItems(items: readonly WorkItem[]): string {
  const count = (value: (item: WorkItem) => number) =>
    items.reduce((sum, item) => sum + value(item), 0).toLocaleString("en-US");
  const prompt = count(({ tokens }) => tokens.length);
  return `${items.length} sequences, ${prompt} prompt tokens, ${count(({ maxTokens }) => maxTokens)} tokens to generate`;
}

/** The figures of a whole workload's run. */
export function throughput(
  run: Pick<Run, "milliseconds" | "promptTokens" | "tokens">,
  items: readonly WorkItem[],
  roofline: Roofline | null,
): Figure[] {
  const seconds = run.milliseconds / 1000;
  const figures: Figure[] = [
    { key: "seconds", label: "time", value: seconds, unit: "s", digits: 2 },
    { key: "tokens_per_second", label: "generated", value: run.tokens / seconds, unit: "tokens/s", digits: 0 },
    {
      key: "total_tokens_per_second",
      label: "with prompts",
      value: (run.tokens + run.promptTokens) / seconds,
      unit: "tokens/s",
      digits: 0,
    },
    { key: "token_milliseconds", label: "per token", value: run.milliseconds / run.tokens, unit: "ms", digits: 3 },
  ];
  if (roofline !== null) {
    const limit = workloadLimit(roofline.cost, roofline.limits, items);
    figures.push(
      { key: "limit_tokens_per_second", label: "limit", value: run.tokens / limit, unit: "tokens/s", digits: 0 },
      { key: "share_of_limit", label: "share of the limit", value: limit / seconds, unit: "", digits: 3 },
    );
  }
  return figures;
}
