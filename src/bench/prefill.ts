import type { RuntimeInterface } from "../runtime/types.ts";
import { drive, ranked, warmUp } from "./drive.ts";
import type { Figure, Report } from "./report.ts";
import { prefillLimit, type Roofline } from "./roofline.ts";
import { randomItems } from "./workload.ts";

export interface PrefillOptions {
  sequences: number;
  /** Tokens of a prompt. */
  length: number;
}

/** Time to compute prompts of one length, all sent at once, one token sampled from each. */
export async function benchPrefill(
  runtime: RuntimeInterface,
  { sequences, length }: PrefillOptions,
  roofline: Roofline | null,
): Promise<Report> {
  await warmUp(runtime);
  const shapes = Array.from({ length: sequences }, () => ({ input: length, output: 1 }));
  const run = await drive(runtime, randomItems(shapes, runtime.info.vocabularySize), { temperature: 0 });
  const seconds = run.milliseconds / 1000;
  const figures: Figure[] = [
    { key: "seconds", label: "time", value: seconds, unit: "s", digits: 2 },
    {
      key: "tokens_per_second",
      label: "prompt tokens",
      value: run.promptTokens / seconds,
      unit: "tokens/s",
      digits: 0,
    },
    {
      key: "token_milliseconds",
      label: "per token",
      value: run.milliseconds / run.promptTokens,
      unit: "ms",
      digits: 4,
    },
  ];
  if (roofline !== null) {
    const limit = prefillLimit(
      roofline.cost,
      roofline.limits,
      shapes.map(({ input }) => input),
    );
    figures.push(
      { key: "limit_seconds", label: "limit", value: limit, unit: "s", digits: 2 },
      { key: "share_of_limit", label: "share of the limit", value: limit / seconds, unit: "", digits: 3 },
    );
  }
  return {
    benchmark: "prefill",
    description: `${sequences} prompts of ${length} tokens`,
    model: runtime.info,
    limits: roofline?.limits ?? null,
    groups: [{ name: "", figures }],
    plots: [
      {
        title: `prefill of ${sequences} x ${length} tokens, ${runtime.info.model}`,
        xLabel: "seconds",
        yLabel: "prompts computed",
        series: [{ name: "computed", points: ranked(run.arrivals.map(({ times }) => times[0] ?? Number.NaN)) }],
      },
    ],
  };
}
