import type { RuntimeInterface } from "../runtime/types.ts";
import { type ClientResult, spawnClient } from "./client.ts";
import { drive, percentile, ranked, warmUp } from "./drive.ts";
import { IdleMeter } from "./idle.ts";
import { describeItems, type OfflineOptions, throughput } from "./offline.ts";
import type { Figure, Report } from "./report.ts";
import type { Roofline } from "./roofline.ts";
import { offlineItems, randomItems } from "./workload.ts";

export interface ServeOptions extends OfflineOptions {
  /** Of the server that serves `runtime`. */
  url: string;
  model: string;
  /** Command line that starts a client process. */
  client: readonly string[];
  /** Also run the workload without HTTP, and report the share. */
  compare: boolean;
}

/** The offline workload over HTTP streams, from another process. */
export async function benchServe(
  runtime: RuntimeInterface,
  options: ServeOptions,
  roofline: Roofline | null,
): Promise<Report> {
  const { sequences, scale, temperature, url, model, client, compare } = options;
  const { vocabularySize } = runtime.info;
  const items = offlineItems(vocabularySize, sequences, scale);
  await warmUp(runtime);
  const job = { url, model, temperature };
  await spawnClient(client, { ...job, items: randomItems([{ input: 16, output: 4 }], vocabularySize, 1) });
  await runtime.flushCache();
  const idle = new IdleMeter(runtime);
  const result = await spawnClient(client, { ...job, items });
  const figures = [...throughput(result, items, roofline), ...streamFigures(result), ...idle.figures()];
  if (compare) {
    await runtime.flushCache();
    const offline = await drive(runtime, items, { temperature });
    figures.push({
      key: "share_of_offline",
      label: "share of offline",
      value: offline.milliseconds / result.milliseconds,
      unit: "",
      digits: 3,
    });
  }
  return {
    benchmark: "serve",
    description: describeItems(items),
    model: runtime.info,
    limits: roofline?.limits ?? null,
    groups: [{ name: "", figures }],
    plots: [
      {
        title: `streams, ${runtime.info.model}`,
        xLabel: "seconds",
        yLabel: "streams",
        series: [
          { name: "begun", points: ranked(result.firstTimes) },
          { name: "ended", points: ranked(result.lastTimes) },
        ],
      },
    ],
  };
}

/** What a client sees of its streams: the wait for the first token, and the time between tokens after it. */
export function streamFigures({ firstTimes, lastTimes, counts, events, milliseconds }: ClientResult): Figure[] {
  const between = firstTimes
    .map((first, index) => ((lastTimes[index] as number) - first) / ((counts[index] as number) - 1))
    .filter(Number.isFinite);
  const unit = "ms";
  return [
    { key: "events_per_second", label: "events", value: (1000 * events) / milliseconds, unit: "events/s", digits: 0 },
    { key: "first_token_median_ms", label: "first token, median", value: percentile(firstTimes, 0.5), unit },
    { key: "first_token_p99_ms", label: "first token, p99", value: percentile(firstTimes, 0.99), unit },
    {
      key: "between_tokens_median_ms",
      label: "between tokens, median",
      value: percentile(between, 0.5),
      unit,
      digits: 2,
    },
    { key: "between_tokens_p99_ms", label: "between tokens, p99", value: percentile(between, 0.99), unit, digits: 2 },
  ];
}
