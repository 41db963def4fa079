/** `minisgl bench online` against the executable's own server. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Installation, type TestServer } from "./support.ts";

setDefaultTimeout(120_000);
const installation = new Installation();
let server: TestServer;

beforeAll(async () => {
  server = await installation.serve();
});
afterAll(() => installation.remove());

type Results = Record<string, number>[];
const file = (name: string) => join(installation.folder, name);

async function bench(...args: string[]) {
  const json = file("figures.json");
  const { code, stdout, stderr } = await installation.run(
    "bench",
    "online",
    "--url",
    server.url,
    "--json",
    json,
    ...args,
  );
  const report = code === 0 ? (JSON.parse(readFileSync(json, "utf8")) as { results: Results; errors: object }) : null;
  return { code, stdout, stderr, totals: report?.results[0], results: report?.results };
}

test("64 streams at a time for ten seconds, without an error, each of the asked length", async () => {
  const lengths = ["--input-length", "8-24", "--output-length", "4-12"];
  const { totals, stdout } = await bench(
    "--concurrency",
    "64",
    "--duration",
    "10",
    ...lengths,
    "--plot",
    file("plot.svg"),
  );
  expect(totals).toMatchObject({ failed: 0, unfinished: 0, wrong_lengths: 0 });
  expect(totals!.seconds).toBeGreaterThan(9);
  expect(totals!.mean_concurrency).toBeWithin(40, 65);
  const input = totals!.input_tokens_per_second / totals!.requests_per_second;
  const output = totals!.output_tokens_per_second / totals!.requests_per_second;
  expect([input, output].map((mean) => Math.round(mean / 4) * 4)).toEqual([16, 8]);
  expect(stdout).toMatch(/first token .*p50 .*p90 .*p99/);
  expect(readFileSync(file("plot.svg"), "utf8")).toStartWith("<svg");
  await server.untilIdle();
});

test("a trace is replayed in time, and chat prompts have their length in the model's template", async () => {
  const trace = [0, 400, 800, 1200].map((at) => ({ timestamp: 5000 + at, input_length: 60, output_length: 3 }));
  writeFileSync(file("trace.jsonl"), trace.map((line) => `${JSON.stringify(line)}\n`).join(""));
  const { totals } = await bench("--trace", file("trace.jsonl"), "--endpoint", "chat");
  expect(totals).toMatchObject({ completed: 4, failed: 0, wrong_lengths: 0 });
  expect(totals!.seconds).toBeGreaterThan(1.2);
  expect((totals!.input_tokens_per_second / totals!.requests_per_second).toFixed(3)).toBe("60.000");
});

test("Ctrl-C prints what was measured, also where more requests are open than fetch allows by itself", async () => {
  const flags = ["--num-requests", "300", "--input-length", "4", "--output-length", "500"];
  const child = installation.spawn("bench", "online", "--url", server.url, ...flags);
  const underWay = async () => {
    const { num_running_requests, num_waiting_requests } = await server.info();
    return num_running_requests + num_waiting_requests;
  };
  while ((await underWay()) < 300) await Bun.sleep(20);
  child.kill("SIGINT");
  expect(await new Response(child.stdout).text()).toMatch(/broken off +300/);
  expect(await child.exited).toBe(0);
  await server.untilIdle();
});

test("failures are told with their reason, and make the exit code 1", async () => {
  const { code, stdout } = await bench("--num-requests", "3", "--input-length", "100000");
  expect(code).toBe(1);
  expect(stdout).toMatch(/3 times: HTTP 400: .*context/);
});

test("a server that is not there, and options that never end, are one clear line", async () => {
  for (const [args, reason] of [
    [["--url", "127.0.0.1:1"], "cannot ask http://127.0.0.1:1"],
    [["--duration", "5"], "--duration needs"],
    [["--trace", "/nowhere"], "cannot read the trace /nowhere"],
  ] as const) {
    const { code, stderr } = await bench(...args);
    expect(code).toBe(1);
    expect(stderr.trimEnd().split("\n")).toHaveLength(1);
    expect(stderr).toContain(reason);
  }
});
