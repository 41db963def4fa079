/** The online benchmark: requests to any OpenAI server as they come in a trace or at random, and how it bears them. */
import type { ArrivalPlan } from "./arrivals.ts";
import { percentile } from "./drive.ts";
import { type Streamed, stream, type Target } from "./online-client.ts";
import type { Plot } from "./plot.ts";
import type { MakePrompt } from "./prompts.ts";
import type { Figure, Group, Report } from "./report.ts";

export interface ReplayOptions {
  target: Target;
  makePrompt: MakePrompt;
  /** Requests that are sent at most. */
  requests: number;
  /** Seconds after which no more are sent. */
  duration: number;
  /** Requests that are under way at the same time; others wait here. */
  concurrency: number;
  /** Ends the run: what is under way is broken off and not counted. */
  signal: AbortSignal;
  /** Told of every request that begins or ends. */
  onChange?: (run: OnlineRun) => void;
}

/** A request that was answered as asked, with its times in milliseconds from the run's begin. */
export interface Sample extends Streamed {
  /** When it was due: before `sent` where the limit of concurrency held it back. */
  due: number;
}

export interface OnlineRun {
  /** Milliseconds from the first request to the end of the last. */
  milliseconds: number;
  sent: number;
  running: number;
  samples: Sample[];
  /** Reasons of failed requests, and how often each came. */
  errors: Map<string, number>;
  /** Answers of another length than asked. */
  wrongLengths: number;
}

/** Sends requests as they are due, and resolves when the last one has ended. */
export async function replay(plans: Iterable<ArrivalPlan>, options: ReplayOptions): Promise<OnlineRun> {
  const { requests, duration, concurrency, signal, onChange } = options;
  const run: OnlineRun = { milliseconds: 0, sent: 0, running: 0, samples: [], errors: new Map(), wrongLengths: 0 };
  const begin = performance.now();
  const underWay: Promise<void>[] = [];
  let whenFree = (): void => {};
  for (const plan of plans) {
    if (run.sent >= requests || plan.at >= duration * 1000) break;
    await sleepUntil(begin + plan.at, signal);
    if (run.running >= concurrency) await new Promise<void>((resolve) => (whenFree = resolve));
    if (signal.aborted || performance.now() - begin >= duration * 1000) break;
    run.running++;
    const ended = send(plan, run.sent++, begin, run, options).finally(() => {
      run.running--;
      run.milliseconds = performance.now() - begin;
      whenFree();
      onChange?.(run);
    });
    underWay.push(ended);
    onChange?.(run);
  }
  await Promise.all(underWay);
  return run;
}

async function send(
  { at, inputLength, outputLength }: ArrivalPlan,
  index: number,
  begin: number,
  run: OnlineRun,
  { target, makePrompt, signal }: ReplayOptions,
): Promise<void> {
  try {
    const result = await stream(target, makePrompt(inputLength, index), outputLength, signal);
    if (result.outputTokens !== outputLength) run.wrongLengths++;
    const { sent, times, ended } = result;
    const since = { due: at, sent: sent - begin, times: times.map((time) => time - begin), ended: ended - begin };
    run.samples.push({ ...result, ...since });
  } catch (error) {
    if (signal.aborted) return;
    const reason = error instanceof Error ? error.message : String(error);
    run.errors.set(reason, (run.errors.get(reason) ?? 0) + 1);
  }
}

async function sleepUntil(time: number, signal: AbortSignal): Promise<void> {
  const milliseconds = time - performance.now();
  if (milliseconds <= 0 || signal.aborted) return;
  await new Promise<void>((resolve) => {
    const timer = setTimeout(end, milliseconds);
    function end(): void {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    }
    signal.addEventListener("abort", end);
  });
}

/** The times that users feel, in milliseconds, of each request or, between events, of each event. */
export function latencies(samples: readonly Sample[]) {
  return {
    firstToken: samples.map(({ sent, times }) => times[0] - sent),
    betweenTokens: samples.flatMap(({ times, outputTokens }) =>
      outputTokens > 1 ? [((times.at(-1) as number) - times[0]) / (outputTokens - 1)] : [],
    ),
    betweenEvents: samples.flatMap(({ times }) => times.slice(1).map((time, index) => time - times[index])),
    endToEnd: samples.map(({ sent, ended }) => ended - sent),
    late: samples.map(({ sent, due }) => sent - due),
  };
}

/** What was measured, also of a run that was broken off. */
export function onlineReport(run: OnlineRun, target: Target, description: string): Report {
  const { firstToken, betweenTokens, betweenEvents, endToEnd, late } = latencies(run.samples);
  return {
    benchmark: "online",
    description: `${description}; ${target.model} at ${target.url}, ${target.endpoint}`,
    model: null,
    limits: null,
    groups: [
      { name: "", figures: totals(run, endToEnd) },
      ...spread("first token", firstToken),
      ...spread("between tokens, mean of a stream", betweenTokens),
      ...spread("between events", betweenEvents),
      ...spread("end to end", endToEnd),
      ...spread("sent late", run.samples.some(({ due }) => due > 0) ? late : []),
    ],
    errors: Object.fromEntries([...run.errors].sort(([, a], [, b]) => b - a)),
    plots: [
      cumulative("first token", firstToken),
      cumulative("between tokens", betweenTokens),
      cumulative("end to end", endToEnd),
      throughputPlot(run),
    ],
  };
}

function totals(run: OnlineRun, endToEnd: readonly number[]): Figure[] {
  const { samples, milliseconds, errors, wrongLengths } = run;
  const seconds = milliseconds / 1000;
  const total = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0);
  const count = (key: string, label: string, value: number, target?: Figure["target"]): Figure => {
    return { key, label, value, unit: "", digits: 0, target };
  };
  const rate = (key: string, label: string, value: number, digits = 1): Figure => {
    return { key, label, value: value / seconds, unit: "/s", digits };
  };
  const failed = total([...errors.values()]);
  return [
    { key: "seconds", label: "time", value: seconds, unit: "s" },
    count("completed", "completed", samples.length),
    count("failed", "failed", failed, { comparison: "<=", value: 0 }),
    count("unfinished", "broken off", run.sent - samples.length - failed),
    count("wrong_lengths", "answers of another length", wrongLengths),
    rate("requests_per_second", "requests", samples.length, 2),
    rate("input_tokens_per_second", "input tokens", total(samples.map(({ inputTokens }) => inputTokens))),
    rate("output_tokens_per_second", "output tokens", total(samples.map(({ outputTokens }) => outputTokens))),
    { key: "mean_concurrency", label: "streams at a time", value: total(endToEnd) / milliseconds, unit: "" },
  ];
}

/** A line of figures; none where there are no values. */
function spread(name: string, values: readonly number[]): Group[] {
  if (values.length === 0) return [];
  const figure = (key: string, value: number): Figure => ({ key: `${key}_ms`, label: key, value, unit: "ms" });
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const ranks = [50, 90, 99].map((rank) => figure(`p${rank}`, percentile(values, rank / 100)));
  return [{ name, inline: true, figures: [figure("mean", mean), ...ranks] }];
}

/** Points that a plot has at most. */
const PLOT_POINTS = 200;

function cumulative(title: string, values: readonly number[]): Plot {
  const sorted = Float64Array.from(values).sort();
  const count = Math.min(PLOT_POINTS, sorted.length);
  const points = Array.from({ length: count }, (_, index) => {
    const rank = Math.ceil(((index + 1) / count) * sorted.length);
    return [sorted[rank - 1], (100 * rank) / sorted.length] as const;
  });
  return { title, xLabel: "ms", yLabel: "% of requests", series: [{ name: "", points }] };
}

/** Output tokens a second over the run, as if each event of a stream carried as many tokens. */
function throughputPlot({ samples, milliseconds }: OnlineRun): Plot {
  const bins = Math.max(1, Math.min(PLOT_POINTS, Math.floor(milliseconds / 1000)));
  const width = milliseconds / bins;
  const tokens = new Float64Array(bins);
  for (const { times, outputTokens } of samples) {
    for (const time of times) tokens[Math.min(bins - 1, Math.floor(time / width))] += outputTokens / times.length;
  }
  const points = Array.from(tokens, (count, bin) => [((bin + 0.5) * width) / 1000, (1000 * count) / width] as const);
  return { title: "output tokens a second", xLabel: "seconds", yLabel: "tokens/s", series: [{ name: "", points }] };
}
