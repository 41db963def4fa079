/** What the engine tells of its time: ranges for profilers, and how long the device waited. */

import { CString, type Pointer } from "bun:ffi";
import { expect, test } from "bun:test";
import { IdleMeter } from "../../src/bench/idle.ts";
import { runLone } from "../../src/engine/lone.ts";
import { Statistic } from "../../src/message/types.ts";
import type { Library } from "../../src/native/library.ts";
import { isProfiled, Ranges } from "../../src/native/ranges.ts";
import type { RuntimeStatistics } from "../../src/runtime/types.ts";
import { Scheduler } from "../../src/scheduler/scheduler.ts";
import { openEngine } from "../parity/support.ts";
import { promptOf, Recorder, request } from "./support/traffic.ts";

const MODEL = "llama-tied-llama3";

test("a profiler sees each step, what it consists of, and its layers", async () => {
  using engine = await openEngine(MODEL);
  const seen: string[] = [];
  let depth = 0;
  const library = {
    ...engine.device.library,
    msgl_range_push: (name: Pointer) => {
      seen.push(`${depth++} ${new CString(name)}`);
      return 0;
    },
    msgl_range_pop: () => {
      depth--;
      return 0;
    },
  } as unknown as Library;
  Object.assign(engine.device, { ranges: new Ranges(library, true) });
  runLone(engine, [5, 6, 7], 2);
  const step = (kind: string) => ["0 schedule", "0 step", `1 ${kind}`, "2 layer", "2 layer", "1 sample"];
  expect(seen).toEqual([...step("prefill"), ...step("decode")]);
  expect(depth).toBe(0);
  seen.length = 0;
  Object.assign(engine.device, { ranges: new Ranges(library, false) });
  runLone(engine, [5, 6, 7], 2);
  expect(seen).toEqual([]);
});

test("ranges are for processes that a profiler started, or that are told so", () => {
  expect(isProfiled({})).toBe(false);
  expect(isProfiled({ MINISGL_NVTX: "0" })).toBe(false);
  expect(isProfiled({ MINISGL_NVTX: "1" })).toBe(true);
  expect(isProfiled({ NVTX_INJECTION64_PATH: "/opt/nsight/libToolsInjection64.so" })).toBe(true);
});

test("the scheduler counts what steps took and what the device waited between them, but not while nothing ran", async () => {
  using engine = await openEngine(MODEL);
  const options = { maxRunningRequests: 0, maxPrefillLength: 0, cache: "naive", overlap: false } as const;
  const scheduler = new Scheduler(engine, options, new Recorder());
  const { statistics } = scheduler;
  const run = (uid: number, pause: number) => {
    const before = { busy: statistics[Statistic.busyMicroseconds], idle: statistics[Statistic.idleMicroseconds] };
    const began = performance.now();
    scheduler.add(
      request(
        uid,
        promptOf(1, 100).map((token) => token % 100),
        5,
      ),
    );
    while (scheduler.step()) Bun.sleepSync(pause);
    const took = 1000 * (performance.now() - began);
    const busy = statistics[Statistic.busyMicroseconds] - before.busy;
    const idle = statistics[Statistic.idleMicroseconds] - before.idle;
    expect(busy).toBeGreaterThan(0);
    expect(busy + idle).toBeLessThan(took);
    return idle;
  };
  run(1, 0);
  Bun.sleepSync(50);
  expect(run(2, 20)).toBeGreaterThan(4 * 20_000);
  Bun.sleepSync(200);
  expect(run(3, 0)).toBeLessThan(150_000);
});

test("the idle share is of the time since, over the counters' end", () => {
  const of = (busyMicroseconds: number, idleMicroseconds: number) =>
    ({ busyMicroseconds, idleMicroseconds }) as RuntimeStatistics;
  const readings = [of(2 ** 31 - 300, 50), of(600, 150)];
  const meter = new IdleMeter({ statistics: () => readings.shift()! });
  expect(meter.figures()).toMatchObject([{ key: "idle_share", value: 0.1 }]);
  expect(new IdleMeter({ statistics: () => of(0, 0) }).figures()).toEqual([]);
});
