import type { GenerationParameters, RuntimeInterface } from "../runtime/types.ts";
import { randomItems, type WorkItem } from "./workload.ts";

/** When the tokens of one request came: after `times[i]` ms there were `counts[i]` tokens. */
export interface Arrival {
  times: number[];
  counts: number[];
}

/** A workload's run. Times in milliseconds from its begin. */
export interface Run {
  milliseconds: number;
  promptTokens: number;
  tokens: number;
  arrivals: Arrival[];
}

/** Sends all items at once and waits for the last answer. EOS is ignored, so that every answer has its length. */
export async function drive(
  runtime: RuntimeInterface,
  items: readonly WorkItem[],
  parameters: GenerationParameters,
): Promise<Run> {
  const begin = performance.now();
  const arrivals = await Promise.all(
    items.map(async ({ tokens, maxTokens }) => {
      const generation = await runtime.generate({ tokens }, { ...parameters, maxTokens, ignoreEos: true });
      const arrival: Arrival = { times: [], counts: [] };
      let count = 0;
      for await (const event of generation) {
        if (event.tokens.length === 0) continue;
        count += event.tokens.length;
        arrival.times.push(performance.now() - begin);
        arrival.counts.push(count);
      }
      return arrival;
    }),
  );
  return {
    milliseconds: performance.now() - begin,
    promptTokens: items.reduce((sum, item) => sum + item.tokens.length, 0),
    tokens: arrivals.reduce((sum, { counts }) => sum + (counts.at(-1) ?? 0), 0),
    arrivals,
  };
}

/** A short run that makes everything resident, and leaves no cached prefix behind. */
export async function warmUp(runtime: RuntimeInterface): Promise<void> {
  await drive(runtime, randomItems([{ input: 16, output: 4 }], runtime.info.vocabularySize, 1), { temperature: 0.6 });
  await runtime.flushCache();
}

/** Median of numbers; NaN of none. */
export function median(values: readonly number[]): number {
  return percentile(values, 0.5);
}

/** The value below which a share `p` of the values lies, by linear interpolation. */
export function percentile(values: ArrayLike<number>, p: number): number {
  if (values.length === 0) return Number.NaN;
  const sorted = Float64Array.from(values).sort();
  const at = (sorted.length - 1) * p;
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return (sorted[low] as number) + ((sorted[high] as number) - (sorted[low] as number)) * (at - low);
}

/** How many of the times (in milliseconds) had passed when: [seconds, count], for a plot. */
export function ranked(times: readonly number[]): [seconds: number, count: number][] {
  return times.toSorted((a, b) => a - b).map((time, index) => [time / 1000, index + 1]);
}

/** Milliseconds a step while all sequences were decoding: from the last first token to the first last token. */
export function steadyStep(run: Run): number {
  const begin = Math.max(...run.arrivals.map(({ times }) => times[0] ?? 0));
  const end = Math.min(...run.arrivals.map(({ times }) => times.at(-1) ?? 0));
  const { times, counts } = run.arrivals[0] as Arrival;
  const first = times.findIndex((time) => time >= begin);
  const last = times.findLastIndex((time) => time <= end);
  if (first < 0 || last <= first) return Number.NaN;
  return ((times[last] as number) - (times[first] as number)) / ((counts[last] as number) - (counts[first] as number));
}
