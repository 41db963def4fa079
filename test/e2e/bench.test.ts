/** The benchmarks that run a model, on a tiny one without weights: every figure is there and is a number. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { copyFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Installation } from "./support.ts";

setDefaultTimeout(120_000);
const installation = new Installation();
const file = (name: string) => join(installation.folder, name);
beforeAll(() => {
  mkdirSync(file("model"));
  copyFileSync(join(import.meta.dir, "../parity/fixtures/qwen3/config.json"), file("model/config.json"));
});
afterAll(() => installation.remove());

const run = (name: string, ...args: string[]) => {
  const outputs = ["--json", file(`${name}.json`), "--plot", file(`${name}.svg`)];
  const model = ["--model", file("model"), "--dummy-weight", "--device", "cpu", "--threads", "1"];
  return installation.run("bench", name, ...model, ...outputs, ...args);
};

interface Written {
  benchmark: string;
  model: Record<string, unknown>;
  limits: { bandwidth: number; matrixRate: number };
  passed: boolean;
  results: Record<string, number>[];
}

const workload = ["tokens_per_second", "total_tokens_per_second", "token_milliseconds", "limit_tokens_per_second"];

test.each([
  ["offline", ["--sequences", "4", "--scale", "0.05"], 1, workload],
  [
    "serve",
    ["--sequences", "4", "--scale", "0.05"],
    1,
    [...workload, "events_per_second", "first_token_median_ms", "between_tokens_p99_ms", "share_of_offline"],
  ],
  ["prefill", ["--sequences", "4", "--length", "100"], 1, ["tokens_per_second", "token_milliseconds", "limit_seconds"]],
  // More than run at a time on a CPU, unless somebody asks for them.
  [
    "latency",
    ["--batch", "1,80", "--context", "64", "--tokens", "64", "--repeats", "1"],
    2,
    ["step_milliseconds", "tokens_per_second", "first_token_milliseconds", "limit_milliseconds"],
  ],
])("%s", async (name, args, groups, keys) => {
  const { code, stdout, stderr } = await run(name, ...args);
  expect({ code, stderr: stderr.replace(/^loading .*\n/gm, "") }).toEqual({ code: 0, stderr: "" });
  expect(stdout).not.toContain("NaN");
  const written = JSON.parse(readFileSync(file(`${name}.json`), "utf8")) as Written;
  expect(written).toMatchObject({ benchmark: name, passed: true, model: { architecture: "qwen3", dtype: "bfloat16" } });
  for (const key of ["weightSeconds", "captureSeconds", "loadSeconds"]) expect(written.model[key]).toBeNumber();
  expect(Math.min(written.limits.bandwidth, written.limits.matrixRate)).toBeGreaterThan(1e8);
  expect(written.results).toHaveLength(groups);
  for (const result of written.results) {
    for (const key of [...keys, "share_of_limit"]) expect([key, result[key] > 0]).toEqual([key, true]);
    expect(result.share_of_limit).toBeLessThan(1);
    expect(Object.values(result)).not.toContain(null); // what was no number
  }
  const svg = readFileSync(file(`${name}.svg`), "utf8");
  expect(svg).toStartWith("<svg");
  expect(svg).not.toMatch(/NaN|Infinity/);
  expect(svg).toContain("<polyline");
});

test.each([
  [["--batch", "8", "--max-running-requests", "4"], "--batch 8 needs --max-running-requests 8"],
  [["--context", "4"], "--context 4 cannot be the middle of --tokens 128"],
  [
    ["--batch", "8", "--context", "100", "--num-pages", "200"],
    "--batch 8 at --context 100 needs --num-pages 296 of 1: the pool has 200",
  ],
])(
  "latency that cannot be measured with %j is an error",
  async (args, reason) => {
    const { code, stdout, stderr } = await run("latency", ...args);
    expect({ code, stdout }).toEqual({ code: 1, stdout: "" });
    expect(stderr).toContain(reason);
  },
  60_000,
);

test("benchmarks that fail or are interrupted leave no empty file", async () => {
  const json = file("broken.json");
  const model = ["--model", file("model"), "--dummy-weight", "--device", "cpu", "--threads", "1"];
  const child = installation.spawn("bench", "prefill", ...model, "--json", json);
  await Bun.sleep(500);
  child.kill("SIGINT");
  expect(await child.exited).not.toBe(0);
  expect(existsSync(json)).toBe(false);
});
