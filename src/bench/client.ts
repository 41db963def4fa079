/** The client of the HTTP benchmarks: runs in a process of its own and does as little as it can a token. */
import type { WorkItem } from "./workload.ts";

/** What the client is told on its standard input. */
export interface ClientJob {
  /** Of the server, without a path. */
  url: string;
  model: string;
  temperature: number;
  items: WorkItem[];
}

/** What it answers on its standard output. Times in milliseconds from the first request on. */
export interface ClientResult {
  milliseconds: number;
  promptTokens: number;
  tokens: number;
  /** Events of all streams: below `tokens` where one carries several. */
  events: number;
  /** Of each request: its first event, and its last. */
  firstTimes: number[];
  lastTimes: number[];
  counts: number[];
}

/** Enough of a stream's end to hold the chunk with the usage. */
const TAIL_BYTES = 2048;
const EVENT = Buffer.from("data: ");

interface Stream {
  first: number;
  last: number;
  events: number;
  tokens: number;
}

/** Sends all items at once as streamed completions and waits for the last one. Throws if any request fails. */
export async function runClient(job: ClientJob): Promise<ClientResult> {
  const begin = performance.now();
  const streams = await Promise.all(job.items.map((item) => request(job, item, begin)));
  const sum = (value: (stream: Stream) => number) => streams.reduce((total, stream) => total + value(stream), 0);
  return {
    milliseconds: performance.now() - begin,
    promptTokens: job.items.reduce((total, { tokens }) => total + tokens.length, 0),
    tokens: sum(({ tokens }) => tokens),
    events: sum(({ events }) => events),
    firstTimes: streams.map(({ first }) => first),
    lastTimes: streams.map(({ last }) => last),
    counts: streams.map(({ tokens }) => tokens),
  };
}

async function request(job: ClientJob, item: WorkItem, begin: number): Promise<Stream> {
  const response = await fetch(`${job.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: job.model,
      prompt: item.tokens,
      max_tokens: item.maxTokens,
      temperature: job.temperature,
      ignore_eos: true,
      stream: true,
      stream_options: { include_usage: true },
    }),
  });
  if (!response.ok || response.body === null) throw new Error(`HTTP ${response.status}: ${await response.text()}`);
  let first = 0;
  let last = 0;
  let events = 0;
  let tail = Buffer.alloc(0);
  for await (const chunk of response.body) {
    last = performance.now() - begin;
    if (first === 0) first = last;
    const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    for (let at = bytes.indexOf(EVENT); at >= 0; at = bytes.indexOf(EVENT, at + EVENT.length)) events++;
    tail =
      bytes.length >= TAIL_BYTES ? bytes.subarray(-TAIL_BYTES) : Buffer.concat([tail, bytes]).subarray(-TAIL_BYTES);
  }
  const tokens = Number(tail.toString().match(/"completion_tokens":(\d+)(?!.*"completion_tokens")/s)?.[1]);
  if (tokens !== item.maxTokens) throw new Error(`a stream ended early: ${tail.toString().slice(-300)}`);
  return { first, last, events, tokens };
}

/** Runs the client in a process of its own: this program again, with `args` that lead it to answerJob(). */
export async function spawnClient(command: readonly string[], job: ClientJob): Promise<ClientResult> {
  const child = Bun.spawn([...command], { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
  child.stdin.write(JSON.stringify(job));
  await child.stdin.end();
  const output = await new Response(child.stdout).text();
  if ((await child.exited) !== 0) throw new Error("the benchmark's client failed");
  return JSON.parse(output) as ClientResult;
}

/** The client process: reads a job, answers its result. */
export async function answerJob(): Promise<void> {
  const job = (await Bun.stdin.json()) as ClientJob;
  process.stdout.write(JSON.stringify(await runClient(job)));
}
