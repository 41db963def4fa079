/** `minisgl bench ...`: options of the benchmarks, and what they print. */
import type { Command, Option } from "commander";
import { answerJob } from "../bench/client.ts";
import { writeDummyModel } from "../bench/dummy-model.ts";
import { benchStep, benchStreams } from "../bench/host.ts";
import { benchLatency } from "../bench/latency.ts";
import { benchOffline } from "../bench/offline.ts";
import { benchPrefill } from "../bench/prefill.ts";
import type { Report } from "../bench/report.ts";
import { measureLimits, modelCost, type Roofline } from "../bench/roofline.ts";
import { benchServe } from "../bench/serve.ts";
import { openCheckpoint } from "../checkpoint/open.ts";
import { DEFAULT_RUNNING_REQUESTS } from "../engine/memory-plan.ts";
import { DEFAULT_OPTIONS } from "../runtime/options.ts";
import type { Runtime } from "../runtime/runtime.ts";
import type { SpawnWorker } from "../runtime/types.ts";
import { serve as listen } from "../server/server.ts";
import { addOnline } from "./bench-online.ts";
import { checkOutputs, jsonFlag, type OutputFlags, plotFlag, print, thisProgram } from "./bench-output.ts";
import { type EngineFlags, engineFlags, toRuntimeOptions, worded } from "./options.ts";
import { startRuntime } from "./runtime.ts";
import { integer, integers, number } from "./values.ts";

interface WorkloadFlags {
  sequences: number;
  scale: number;
  temperature: number;
}

type Flags<T> = EngineFlags & OutputFlags & T;

/** Adds `bench` and its benchmarks. */
export function addBench(program: Command, spawn: SpawnWorker): void {
  const bench = program.command("bench").description("measure speed, and its share of what the hardware would allow");
  addOffline(bench, spawn);
  addLatency(bench, spawn);
  addPrefill(bench, spawn);
  addServe(bench, spawn);
  addOnline(bench);
  addHost(bench);
  bench.command("client", { hidden: true }).action(answerJob);
}

function benchmark(bench: Command, name: string, description: string, options: readonly Option[] = engineFlags()) {
  const command = bench.command(name).description(description);
  for (const option of options) command.addOption(option);
  return command.addOption(jsonFlag());
}

function workloadOptions(command: Command): Command {
  return command
    .option("--sequences <n>", "take the first n of the workload's 256 sequences", integer(1, 256), 256)
    .option("--scale <factor>", "factor on all lengths", number("a number above 0, at most 1", isShare), 1)
    .option(
      "--temperature <t>",
      "of the sampling",
      number("a number of at least 0", (value) => value >= 0),
      0.6,
    );
}

const isShare = (value: number) => value > 0 && value <= 1;

function addOffline(bench: Command, spawn: SpawnWorker): void {
  const description = "256 sequences of 100 to 1024 tokens, answers of 100 to 1024 (Nano-vLLM's and Mini-SGLang's)";
  workloadOptions(benchmark(bench, "offline", description))
    .addOption(plotFlag())
    .action(async (flags: Flags<WorkloadFlags>) => {
      await measure(flags, spawn, (runtime, roofline) => benchOffline(runtime, flags, roofline));
    });
}

function addLatency(bench: Command, spawn: SpawnWorker): void {
  benchmark(bench, "latency", "time per decode step at a fixed context")
    .addOption(plotFlag())
    .addOption(worded("--batch <n,...>", "sequences that decode together", integers(1, 4096), [1, 8], "1,8"))
    .option("--context <tokens>", "context in the middle of the measurement", integer(1), 1024)
    .option("--tokens <n>", "tokens that each sequence generates", integer(2), 128)
    .option("--repeats <n>", "runs of which the median is taken", integer(1, 1000), 3)
    .action(
      async ({ batch, ...flags }: Flags<{ batch: number[]; context: number; tokens: number; repeats: number }>) => {
        const options = { ...flags, batches: batch };
        await measure(roomFor(flags, Math.max(...batch)), spawn, (runtime, roofline) =>
          benchLatency(runtime, options, roofline),
        );
      },
    );
}

/** The flags, with room for a batch where a device's default may have none; what the user asked for stays. */
function roomFor<T extends EngineFlags>(flags: T, batch: number): T {
  const { gpu, cpu } = DEFAULT_RUNNING_REQUESTS;
  const isEnough = flags.maxRunningRequests > 0 || batch <= cpu;
  return isEnough ? flags : { ...flags, maxRunningRequests: Math.max(batch, gpu) };
}

function addPrefill(bench: Command, spawn: SpawnWorker): void {
  benchmark(bench, "prefill", "time to compute prompts")
    .addOption(plotFlag())
    .option("--sequences <n>", "number of prompts", integer(1, 65536), 256)
    .option("--length <tokens>", "tokens of a prompt", integer(1), 1024)
    .action(async (flags: Flags<{ sequences: number; length: number }>) => {
      await measure(flags, spawn, (runtime, roofline) => benchPrefill(runtime, flags, roofline));
    });
}

function addServe(bench: Command, spawn: SpawnWorker): void {
  const description = "the offline workload over HTTP streams, from another process";
  workloadOptions(benchmark(bench, "serve", description))
    .addOption(plotFlag())
    .option("--no-compare", "leave out the run without HTTP")
    .action(async (flags: Flags<WorkloadFlags & { compare: boolean }>) => {
      await measure(flags, spawn, (runtime, roofline) =>
        withServer(runtime, (url) => {
          const options = { ...flags, url, model: runtime.info.model, client: [...thisProgram(), "bench", "client"] };
          return benchServe(runtime, options, roofline);
        }),
      );
    });
}

/** Options of the engine that change what the host does. */
const HOST_OPTIONS = ["model", "pageSize", "cache", "disableOverlap"];
/** With 256 streams, this is 64,000 tokens a second. */
const PACED_STEP_MICROSECONDS = 4000;

function addHost(bench: Command): void {
  const description = "what the host costs: the whole program over a device that computes nothing";
  const options = engineFlags().filter((option) => HOST_OPTIONS.includes(option.attributeName()));
  benchmark(bench, "host", description, options)
    .option("--tokens <n>", "tokens of each HTTP stream", integer(2), 1000)
    .action(async (flags: Flags<{ tokens: number }>) => {
      const dummy = flags.model === undefined ? writeDummyModel() : null;
      try {
        await runHost(dummy?.path ?? (flags.model as string), flags);
      } finally {
        dummy?.remove();
      }
    });
}

async function runHost(model: string, flags: Flags<{ tokens: number }>): Promise<void> {
  checkOutputs(flags);
  const { pageSize, cache, disableOverlap, tokens } = flags;
  const overlap = disableOverlap !== true;
  const { config } = await openCheckpoint(model, { requireWeights: false });
  const step = await benchStep({
    ...DEFAULT_OPTIONS,
    model,
    device: "null",
    dummyWeight: true,
    pageSize,
    cache,
    overlap,
  });
  const serve = ["serve", "--model", model, "--device", "null", "--dummy-weight", "--port", "0"];
  const command = [...thisProgram(), ...serve, "--page-size", `${pageSize}`, "--cache", cache];
  if (!overlap) command.push("--disable-overlap");
  const server = { command, model, vocabularySize: config.vocabularySize, tokens };
  const groups = [
    { name: "scheduler", figures: step },
    { name: "server, flat out", figures: await benchStreams({ ...server, stepMicroseconds: 0 }) },
    {
      name: `server, a step in ${PACED_STEP_MICROSECONDS / 1000} ms`,
      figures: await benchStreams({ ...server, stepMicroseconds: PACED_STEP_MICROSECONDS }),
    },
  ];
  const description = `Qwen3-0.6B's shapes over a device that computes nothing`;
  print(
    { benchmark: "host", description: flags.model ?? description, model: null, limits: null, groups, plots: [] },
    flags,
  );
}

/** Runs a benchmark on a model and prints its report. The hardware is measured first, while nothing else is on it. */
async function measure(
  flags: EngineFlags & OutputFlags,
  spawn: SpawnWorker,
  run: (runtime: Runtime, roofline: Roofline | null) => Promise<Report>,
): Promise<void> {
  checkOutputs(flags);
  const options = toRuntimeOptions(flags);
  const { config } = await openCheckpoint(options.model, { requireWeights: !options.dummyWeight });
  const limits = options.device === "null" ? null : measureLimits(options.device, options.threads);
  const runtime = await startRuntime(options, spawn);
  try {
    const roofline = limits === null ? null : { limits, cost: modelCost(config, runtime.info) };
    print(await run(runtime, roofline), flags);
  } finally {
    await runtime.stop();
  }
}

async function withServer<T>(runtime: Runtime, work: (url: string) => Promise<T>): Promise<T> {
  const server = listen(() => runtime, { hostname: "127.0.0.1", port: 0 });
  try {
    return await work(server.url.replace(/\/$/, ""));
  } finally {
    await server.stop();
  }
}
