/** Two servers behind each of the routers that people put in front: the commands are those of the README. */
import { afterAll, afterEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import OpenAI from "openai";
import { PythonPackages } from "./python.ts";
import { freePort, Installation, model, TestServer } from "./support.ts";

setDefaultTimeout(120_000);
const routers = ["smg==1.13.0", "sglang-router==0.3.2", "vllm-router==0.1.17"];
const installed = await Promise.all(routers.map((requirement) => PythonPackages.install([requirement])));

const installation = new Installation();
afterAll(() => installation.remove());

const name = "smollm";
const limits = ["--served-model-name", name, "--device", "null", "--max-seq-len-override", "2048"];

/** A router over servers, until stop(). */
class Fleet {
  private constructor(
    readonly servers: TestServer[],
    readonly client: OpenAI,
    private readonly router: Bun.Subprocess<"ignore", "pipe", "pipe">,
  ) {}

  static async start(packages: PythonPackages, module: string, policy: string): Promise<Fleet> {
    const servers = await Promise.all([installation.serve(...limits), installation.serve(...limits)]);
    const port = freePort();
    const router = packages.spawn(
      ...["-m", `${module}.launch_router`, "--host", "127.0.0.1", "--port", String(port), "--policy", policy],
      ...["--worker-urls", ...servers.map(({ url }) => url)],
      ...["--prometheus-host", "127.0.0.1", "--prometheus-port", String(freePort())],
      // Fast enough for a test; and what fails is seen, not tried again on the other server.
      ...["--health-check-interval-secs", "1", "--health-failure-threshold", "1", "--health-success-threshold", "1"],
      ...["--disable-retries", "--disable-circuit-breaker"],
    );
    const said = Promise.all([new Response(router.stdout).text(), new Response(router.stderr).text()]);
    const client = new OpenAI({ baseURL: `http://127.0.0.1:${port}/v1`, apiKey: "none", maxRetries: 0 });
    const fleet = new Fleet(servers, client, router);
    await fleet.until(async () => {
      if (router.exitCode !== null) throw new Error(`the router ended: ${(await said).join("")}`);
      return fleet.answersAll(4);
    });
    return fleet;
  }

  /** Tokens of the prompt that the server had cached. */
  async ask(prompt: string, max_tokens = 1): Promise<number> {
    const { usage } = await this.client.completions.create({ model: name, prompt, max_tokens, temperature: 0 });
    return usage!.prompt_tokens_details!.cached_tokens!;
  }

  /** Whether `count` requests in a row are answered. */
  async answersAll(count: number): Promise<boolean> {
    try {
      for (let i = 0; i < count; i++) await this.ask(`Is anybody there? ${i}`);
      return true;
    } catch {
      return false;
    }
  }

  /** Tokens that each server has made: one for a request, where no more are asked for. */
  counts(): Promise<number[]> {
    return Promise.all(this.servers.map(async (server) => (await server.info()).num_generated_tokens));
  }

  /** How many of them each server makes while `work` is done. */
  async during(work: () => Promise<unknown>): Promise<number[]> {
    const before = await this.counts();
    await work();
    return (await this.counts()).map((count, index) => count - before[index]);
  }

  async until(condition: () => Promise<boolean>, seconds = 30): Promise<void> {
    const deadline = performance.now() + seconds * 1000;
    while (!(await condition())) {
      if (performance.now() > deadline) throw new Error(`not after ${seconds} s`);
      await Bun.sleep(100);
    }
  }

  async stop(): Promise<void> {
    const processes = [this.router, ...this.servers.map(({ process }) => process)];
    for (const process of processes) process.kill("SIGKILL");
    await Promise.all(processes.map(({ exited }) => exited));
  }
}

describe.each(routers.map((requirement, index) => [requirement, index] as const))("%s", (requirement, index) => {
  const packages = installed[index];
  const module = requirement.replace(/==.*/, "").replace("-", "_");
  let fleet: Fleet;
  afterEach(() => fleet?.stop());

  test.skipIf(packages === null)("spreads the load, takes a killed server out and a new one in", async () => {
    fleet = await Fleet.start(packages!, module, "round_robin");
    const spread = await fleet.during(() => fleet.answersAll(20));
    expect(spread).toEqual([10, 10]);
    await streams(fleet.client);

    const [killed, left] = fleet.servers;
    killed.process.kill("SIGKILL");
    await killed.process.exited;
    // In turn, one of two would fail as long as the dead server is asked.
    await fleet.until(() => fleet.answersAll(8));
    const before = (await left.info()).num_generated_tokens;
    expect(await fleet.answersAll(20)).toBe(true);
    expect((await left.info()).num_generated_tokens - before).toBe(20);

    const again = installation.spawn("serve", "--model", model, "--port", String(killed.port), ...limits);
    fleet.servers[0] = new TestServer(again, killed.port);
    await fleet.servers[0].untilHealthy();
    await fleet.until(async () => (await fleet.during(() => fleet.answersAll(4))).join() === "2,2");
  });

  test.skipIf(packages === null)("sends a repeated prefix to the server that has it", async () => {
    fleet = await Fleet.start(packages!, module, "cache_aware");
    const prefixes = ["rivers", "mountains", "cities", "forests", "deserts", "islands"].map(
      (topic) => `${topic}: ${`All that is known of ${topic} stands in this book. `.repeat(30)}`,
    );
    // At the same time, so that they are spread; each is then known to one server, and to that alone.
    const first = await fleet.during(() => Promise.all(prefixes.map((prefix) => fleet.ask(prefix, 1000))));
    expect(Math.min(...first)).toBeGreaterThan(0);
    const again = await fleet.during(async () => {
      for (const prefix of prefixes) {
        for (let i = 0; i < 3; i++) expect(await fleet.ask(`${prefix} Question ${i}?`)).toBeGreaterThan(200);
      }
    });
    expect(Math.min(...again)).toBeGreaterThan(0);
  });
});

/** A stream says what the whole answer does, with the usage that was asked for. */
async function streams(client: OpenAI): Promise<void> {
  const messages = [{ role: "user" as const, content: "hi" }];
  const body = { model: name, messages, max_tokens: 8, temperature: 0 };
  const whole = await client.chat.completions.create(body);
  const stream = await client.chat.completions.create({
    ...body,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let last: OpenAI.ChatCompletionChunk | undefined;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    last = chunk;
  }
  expect(text).toBe(whole.choices[0].message.content!);
  expect(last!.usage).toMatchObject({ completion_tokens: whole.usage!.completion_tokens });
}
