/**
 * `make soak`: random short requests, aborts and disconnects against the compiled executable, on the CPU engine with a
 * tiny model and a pool that is too small for all of them. Then: no page is lost, memory is flat within 5%, no handle
 * is left open, and after kill -9 the server is back on its port at once.
 * SOAK_REQUESTS (100000), SOAK_CONCURRENCY (48) and SOAK_SEED change it; MINISGL_EXECUTABLE names another executable.
 */
import { readdirSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { freePort, Installation, TestServer } from "../e2e/support.ts";
import { writeModel } from "./model.ts";
import { Random, Traffic } from "./traffic.ts";

const requests = Number(process.env.SOAK_REQUESTS ?? 100_000);
const concurrency = Number(process.env.SOAK_CONCURRENCY ?? 48);
const seed = Number(process.env.SOAK_SEED ?? Date.now() % 2 ** 31);
/** Looks at the server on the way. What it needs at number WARM_UP and at the last one is compared. */
const CHECKPOINTS = 20;
const WARM_UP = 4;
/** Below this, code is still being compiled and allocators' pools grow. */
const WARM_UP_REQUESTS = 20_000;
/** Seconds without work after which all garbage has been collected; and those at checkpoints that only tell. */
const REST = 45;
const PAUSE = 3;
const MEMORY_GROWTH = 1.05;
/** The server closes connections that are idle for a minute. */
const IDLE_CONNECTION_SECONDS = 75;
const poolPages = 600;

interface Look {
  memory: number;
  handles: number;
}

let passed = 0;
let failed = 0;
function expect(what: string, holds: boolean, seen: unknown): void {
  if (holds) passed++;
  else failed++;
  console.log(`${holds ? "ok  " : "FAIL"} ${what}: ${seen}`);
}

const installation = new Installation();
const modelPath = join(installation.folder, "model");
writeModel(modelPath);

async function start(port: number): Promise<TestServer> {
  const options = ["--num-pages", String(poolPages), "--max-running-requests", "32", "--max-prefill-length", "64"];
  const args = ["serve", "--model", modelPath, "--device", "cpu", "--dtype", "float32", "--port", String(port)];
  const server = new TestServer(installation.spawn(...args, ...options), port);
  await server.untilHealthy();
  return server;
}

const handlesOf = (pid: number) => readdirSync(`/proc/${pid}/fd`).length;

/** Waits until nothing runs, then for garbage to be collected, which happens when nothing runs. */
async function look(server: TestServer, seconds: number): Promise<Look> {
  await server.untilIdle(20);
  return { memory: await server.memoryAtRest(seconds), handles: handlesOf(server.process.pid) };
}

/** Sends the requests of all checkpoints. The first complaints end it. */
async function soak(server: TestServer, traffic: Traffic): Promise<Look[]> {
  const random = new Random(seed);
  const looks: Look[] = [];
  let sent = 0;
  let complaints = 0;
  const work = async (until: number) => {
    while (sent < until) {
      const number = ++sent;
      try {
        await traffic.send(new Random(random.integer(1, 2 ** 31 - 1)));
      } catch (error) {
        console.log(`request ${number}: ${error}`);
        await Bun.sleep(500);
        if (server.process.exitCode !== null) throw new Error(`the server ended: ${(await server.terminate()).output}`);
        if (++complaints >= 10) throw new Error("too many complaints");
      }
    }
  };
  for (let checkpoint = 1; checkpoint <= CHECKPOINTS; checkpoint++) {
    const until = Math.round((requests * checkpoint) / CHECKPOINTS);
    const begin = performance.now();
    const before = sent;
    await Promise.all(Array.from({ length: concurrency }, () => work(until)));
    const rate = (1000 * (until - before)) / (performance.now() - begin);
    const seen = await look(server, checkpoint === WARM_UP || checkpoint === CHECKPOINTS ? REST : PAUSE);
    looks.push(seen);
    const megabytes = (seen.memory / 2 ** 20).toFixed(1);
    console.log(`${until} requests, ${rate.toFixed(0)}/s, ${megabytes} MiB resident, ${seen.handles} handles`);
  }
  expect("requests answered as they must be", complaints === 0, `${sent - complaints} of ${sent}`);
  return looks;
}

/** The value of a sample of /metrics. */
async function metric(server: TestServer, name: string): Promise<number> {
  const text = await (await fetch(`${server.url}/metrics`)).text();
  return Number(text.match(new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, "m"))?.[1]);
}

async function checkPages(server: TestServer): Promise<void> {
  const { loads } = (await (await fetch(`${server.url}/v1/loads`)).json()) as { loads: Record<string, number>[] };
  const { num_running_reqs, num_waiting_reqs, num_used_tokens } = loads[0];
  const load = [num_running_reqs, num_waiting_reqs, num_used_tokens];
  expect("/v1/loads: running, waiting, pages in use", load.join() === "0,0,0", load);
  const gauges = ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
  const values = await Promise.all(gauges.map((name) => metric(server, name)));
  expect("/metrics: the same", values.join() === "0,0,0", values);
  // Pages in use are those that are neither free nor in the tree, so none can be missing from these two.
  await server.post("/flush_cache", "");
  const { num_cached_pages, num_used_pages, num_total_pages } = await server.info();
  const pages = [num_cached_pages, num_used_pages, num_total_pages];
  expect("after a flush: cached, used, all pages", pages.join() === `0,0,${poolPages}`, pages);
  // And they can be had: answers that fill the pool at once, to its last page but a few, with nobody preempted.
  const before = await metric(server, "vllm:num_preemptions_total");
  const half = poolPages / 2 - 10;
  const prompt = [3, 4].map((first) => Array.from({ length: half - 90 }, (_, index) => first + (index % 100)));
  const body = { prompt, max_tokens: 90, ignore_eos: true, temperature: 0 };
  const answer = (await (await server.post("/v1/completions", body)).json()) as { usage: { total_tokens: number } };
  const preemptions = (await metric(server, "vllm:num_preemptions_total")) - before;
  const filled = answer.usage?.total_tokens;
  expect("tokens of requests that fill the pool", filled === 2 * half && preemptions === 0, filled);
  expect("the pool was too small before, sequences were preempted", before > 0, `${before} times`);
}

async function checkHandles(server: TestServer, atStart: number): Promise<void> {
  const deadline = performance.now() + IDLE_CONNECTION_SECONDS * 1000;
  let handles = handlesOf(server.process.pid);
  while (handles > atStart && performance.now() < deadline) {
    await Bun.sleep(1000);
    handles = handlesOf(server.process.pid);
  }
  const folder = `/proc/${server.process.pid}/fd`;
  const left = handles > atStart ? readdirSync(folder).map((name) => readlinkSync(join(folder, name))) : [];
  expect("open handles, at the end and at the start", handles <= atStart, `${handles}, ${atStart} ${left.join(" ")}`);
}

/** Kills the server while it answers, and starts it again on the same port. */
async function checkRestart(server: TestServer): Promise<TestServer> {
  const question = { prompt: "Once upon a time", max_tokens: 20, temperature: 0 };
  const ask = async (one: TestServer) => {
    const answer = await (await one.post("/v1/completions", question)).json();
    return (answer as { choices: { text: string }[] }).choices[0].text;
  };
  const before = await ask(server);
  const traffic = new Traffic(server.url, server.port);
  const lost = Array.from({ length: 20 }, () => traffic.send(new Random(seed)).catch(() => {}));
  await Bun.sleep(20);
  server.process.kill("SIGKILL");
  await server.process.exited;
  const begin = performance.now();
  const again = await start(server.port);
  const seconds = ((performance.now() - begin) / 1000).toFixed(2);
  await Promise.all(lost);
  expect(`after kill -9, back on port ${server.port} in ${seconds} s`, (await ask(again)) === before, "same answer");
  return again;
}

console.log(`soak: ${requests} requests, ${concurrency} at a time, SOAK_SEED=${seed}`);
try {
  const server = await start(freePort());
  await server.post("/v1/completions", { prompt: "a", max_tokens: 1 });
  const handlesAtStart = handlesOf(server.process.pid);
  const traffic = new Traffic(server.url, server.port);
  const looks = await soak(server, traffic);
  console.log(
    `     ${Object.entries(traffic.counts)
      .map(([kind, count]) => `${count} ${kind}`)
      .join(", ")}`,
  );
  await checkPages(server);
  const growth = (looks.at(-1) as Look).memory / looks[WARM_UP - 1].memory;
  const flat = "resident memory at the end, in that after warm-up";
  if ((requests * WARM_UP) / CHECKPOINTS >= WARM_UP_REQUESTS) expect(flat, growth <= MEMORY_GROWTH, growth.toFixed(3));
  else console.log(`     ${flat}: ${growth.toFixed(3)}, not judged: it takes ${WARM_UP_REQUESTS} requests to warm up`);
  await checkHandles(server, handlesAtStart);
  const again = await checkRestart(server);
  const { code } = await again.terminate();
  expect("SIGTERM's exit code", code === 0, code);
} catch (error) {
  expect("the soak ran to its end", false, error);
} finally {
  await installation.remove();
}
console.log(`\n${passed} passed, ${failed} failed`);
process.exit(failed > 0 ? 1 : 0);
