/** `minisgl bench online`: traffic to any server that speaks OpenAI's API. */
import { type Command, InvalidArgumentError } from "commander";
import { type ArrivalPlan, type LengthRange, parseTrace, poissonArrivals } from "../bench/arrivals.ts";
import { type OnlineRun, onlineReport, replay } from "../bench/online.ts";
import { baseUrl, firstModel, type Target } from "../bench/online-client.ts";
import { textPrompts, tokenPrompts } from "../bench/prompts.ts";
import { checkOutputs, jsonFlag, type OutputFlags, plotFlag, print, thisProgram } from "./bench-output.ts";
import { readText, UserError } from "./errors.ts";
import { worded } from "./options.ts";
import { choice, integer, number } from "./values.ts";

interface OnlineFlags extends OutputFlags {
  url: string;
  model?: string;
  apiKey?: string;
  endpoint: Target["endpoint"];
  trace?: string;
  speed: number;
  rate: number;
  numRequests?: number;
  duration: number;
  concurrency: number;
  inputLength: LengthRange;
  outputLength: LengthRange;
  vocabularySize: number;
  seed: number;
  extraBody: Record<string, unknown>;
}

/** Requests of a run that has no other end. */
const DEFAULT_REQUESTS = 100;
/** Requests that Bun's fetch has open at most, unless its environment says otherwise when it starts. */
const FETCH_LIMIT = 256;
const FETCH_LIMIT_VARIABLE = "BUN_CONFIG_MAX_HTTP_REQUESTS";

export function addOnline(bench: Command): void {
  const positive = number("a number above 0", (value) => value > 0);
  bench
    .command("online")
    .description("traffic over HTTP to any OpenAI server: a trace, or random arrivals")
    .option("--url <address>", "of the server", serverAddress, "http://127.0.0.1:1919")
    .option("--model <name>", "model to ask for (default: the first that the server lists)")
    .option("--api-key <key>", "sent as bearer token (default: $OPENAI_API_KEY)")
    .option("--endpoint <name>", "completions, or chat", choice(["completions", "chat"]), "completions")
    .option("--trace <file>", 'lines of {"timestamp": ms, "input_length": n, "output_length": n} to replay')
    .option("--speed <factor>", "replay the trace faster, or slower", positive, 1)
    .addOption(worded("--rate <n>", "requests a second, as a Poisson process", positive, Infinity, "all at once"))
    .option(
      "--num-requests <n>",
      `requests to send (default: ${DEFAULT_REQUESTS}, or as --duration allows)`,
      integer(1),
    )
    .addOption(worded("--duration <seconds>", "send no more after this time", positive, Infinity, "no limit"))
    .addOption(worded("--concurrency <n>", "requests under way at a time", integer(1, 65535), Infinity, "no limit"))
    .addOption(worded("--input-length <n>", "tokens of a prompt, or least-most", lengthRange, [512, 512], "512"))
    .addOption(worded("--output-length <n>", "tokens of an answer, or least-most", lengthRange, [128, 128], "128"))
    .option("--vocabulary-size <n>", "prompts have token ids below this", integer(1), 10000)
    .option("--seed <n>", "of arrivals, lengths and prompts", integer(0), 0)
    .addOption(worded("--extra-body <json>", "fields to add to every request", jsonObject, {}, "none"))
    .addOption(jsonFlag())
    .addOption(plotFlag())
    .action(online);
}

function serverAddress(text: string): string {
  try {
    return baseUrl(text);
  } catch {
    throw new InvalidArgumentError("It must be an address such as http://127.0.0.1:1919.");
  }
}

/** Reads "128" or "100-1024". */
function lengthRange(text: string): LengthRange {
  const [, least, most = least] = text.match(/^(\d+)(?:-(\d+))?$/) ?? [];
  if (least === undefined || Number(least) < 1 || Number(most) < Number(least)) {
    throw new InvalidArgumentError("It must be a number of tokens, or two as least-most.");
  }
  return [Number(least), Number(most)];
}

const showRange = ([least, most]: LengthRange) => (least === most ? `${least}` : `${least}-${most}`);

function jsonObject(text: string): Record<string, unknown> {
  try {
    const value = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  } catch {
    // Refused below like any other text.
  }
  throw new InvalidArgumentError("It must be an object in JSON.");
}

async function online(flags: OnlineFlags): Promise<void> {
  checkOutputs(flags);
  const { plans, requests, description } = plan(flags);
  if (Math.min(requests, flags.concurrency) > FETCH_LIMIT && process.env[FETCH_LIMIT_VARIABLE] === undefined) {
    return runAgain({ [FETCH_LIMIT_VARIABLE]: "65535" });
  }
  const target = await findTarget(flags);
  const { vocabularySize, seed, duration, concurrency } = flags;
  const makePrompt = flags.endpoint === "chat" ? await textPrompts(target, seed) : tokenPrompts(vocabularySize, seed);
  const progress = new LoadProgress();
  const run = await replay(plans, {
    target,
    makePrompt,
    requests,
    duration,
    concurrency,
    signal: endOnSignals(),
    onChange: progress.show,
  });
  progress.clear();
  print(onlineReport(run, target, description), flags);
}

/** What is to be sent, and a word for it. */
function plan(flags: OnlineFlags): { plans: Iterable<ArrivalPlan>; requests: number; description: string } {
  const { trace, speed, rate, duration, concurrency, inputLength, outputLength, seed } = flags;
  const limit = concurrency === Infinity ? "" : `, at most ${concurrency} at a time`;
  if (trace !== undefined) {
    const plans = parseTrace(readText("the trace", trace), speed).slice(0, flags.numRequests);
    return { plans, requests: plans.length, description: `${plans.length} requests of ${trace}${limit}` };
  }
  const unbounded = duration === Infinity ? DEFAULT_REQUESTS : Infinity;
  const requests = flags.numRequests ?? unbounded;
  if (Math.min(requests, rate, concurrency) === Infinity) {
    throw new UserError("--duration needs --rate, --concurrency or --num-requests with it");
  }
  const number = requests === Infinity ? `requests for ${duration} s` : `${requests} requests`;
  const arrivals = rate === Infinity ? "all at once" : `${rate} a second`;
  const lengths = `${showRange(inputLength)} tokens in, ${showRange(outputLength)} out`;
  const plans = poissonArrivals(rate, inputLength, outputLength, seed);
  return { plans, requests, description: `${number}, ${arrivals}${limit}, ${lengths}` };
}

async function findTarget(flags: OnlineFlags): Promise<Target> {
  const { url } = flags;
  const apiKey = flags.apiKey ?? process.env.OPENAI_API_KEY ?? null;
  try {
    const model = flags.model ?? (await firstModel({ url, apiKey }));
    return { url, model, apiKey, endpoint: flags.endpoint, extraBody: flags.extraBody };
  } catch (error) {
    throw new UserError(`cannot ask ${url} for its models: ${(error as Error).message}`);
  }
}

/** The first signal ends the run, and what was measured is told; a second ends the process. */
function endOnSignals(): AbortSignal {
  const controller = new AbortController();
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.on(signal, () => {
      if (controller.signal.aborted) process.exit(130);
      controller.abort();
    });
  }
  return controller.signal;
}

/** Runs this command line again with more in its environment; in a session of its own, so that signals come once. */
async function runAgain(environment: Record<string, string>): Promise<void> {
  const child = Bun.spawn([...thisProgram(), ...process.argv.slice(2)], {
    env: { ...process.env, ...environment },
    stdio: ["inherit", "inherit", "inherit"],
    detached: true,
  });
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => child.kill(signal));
  process.exitCode = await child.exited;
}

/** A line that tells how far the run is: rewritten on a terminal, now and then elsewhere. */
class LoadProgress {
  private last = performance.now();
  private readonly output = process.stderr;

  readonly show = ({ sent, running, samples, errors }: OnlineRun): void => {
    const now = performance.now();
    if (now - this.last < (this.output.isTTY ? 200 : 10_000)) return;
    this.last = now;
    const failed = [...errors.values()].reduce((sum, count) => sum + count, 0);
    const line = `${sent} sent, ${running} running, ${samples.length} completed, ${failed} failed`;
    this.output.write(this.output.isTTY ? `\r${line}\x1b[K` : `${line}\n`);
  };

  clear(): void {
    if (this.output.isTTY) this.output.write("\r\x1b[K");
  }
}
