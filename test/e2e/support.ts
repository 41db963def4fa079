/**
 * Runs the compiled executable as its users do: alone in an empty folder, spoken to over HTTP and signals.
 * MINISGL_EXECUTABLE and MINISGL_MODEL name others than those the Makefile builds and fetches.
 */
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import OpenAI from "openai";

const root = resolve(import.meta.dir, "../..");
const built = resolve(process.env.MINISGL_EXECUTABLE ?? join(root, "minisgl"));
export const model = resolve(process.env.MINISGL_MODEL ?? join(root, "models/SmolLM2-135M-Instruct.Q4_1.gguf"));

export interface ServerInfo {
  num_steps: number;
  num_running_requests: number;
  num_waiting_requests: number;
  num_used_pages: number;
  num_cached_pages: number;
  num_total_pages: number;
  num_generated_tokens: number;
  max_model_len: number;
}

/** A folder that holds the executable and nothing else. */
export class Installation {
  readonly folder = mkdtempSync(join(tmpdir(), "minisgl-e2e-"));
  private readonly processes: Bun.Subprocess[] = [];

  constructor() {
    copyFileSync(built, join(this.folder, "minisgl"));
  }

  /** Starts the executable there. */
  spawn(...args: string[]): Bun.Subprocess<"ignore", "pipe", "pipe"> {
    return this.spawnCommand([join(this.folder, "minisgl"), ...args]);
  }

  /** Starts any command there, with more in its environment. */
  spawnCommand(command: string[], environment: Record<string, string> = {}): Bun.Subprocess<"ignore", "pipe", "pipe"> {
    const child = Bun.spawn(command, {
      cwd: this.folder,
      env: { PATH: "/usr/bin:/bin", HOME: this.folder, ...environment },
      stdout: "pipe",
      stderr: "pipe",
    });
    this.processes.push(child);
    return child;
  }

  /** Runs it to its end. */
  run(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
    return this.ended(this.spawn(...args));
  }

  /** All that a process says until it ends. */
  async ended(
    child: Bun.Subprocess<"ignore", "pipe", "pipe">,
  ): Promise<{ code: number; stdout: string; stderr: string }> {
    const [stdout, stderr, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { code, stdout, stderr };
  }

  /** Serves the demo model on a free port; resolves when /health answers with 200. */
  serve(...args: string[]): Promise<TestServer> {
    return this.serveModel(model, ...args);
  }

  /** The same for any model. */
  async serveModel(path: string, ...args: string[]): Promise<TestServer> {
    const port = freePort();
    const server = new TestServer(this.spawn("serve", "--model", path, "--port", String(port), ...args), port);
    await server.untilHealthy();
    return server;
  }

  /** Ends what was started and deletes the folder. */
  async remove(): Promise<void> {
    for (const child of this.processes) child.kill("SIGKILL");
    await Promise.all(this.processes.map((child) => child.exited));
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** A server process, and the clients to speak to it. */
export class TestServer {
  readonly url: string;
  readonly client: OpenAI;
  private readonly output: Promise<string>;

  constructor(
    readonly process: Bun.Subprocess<"ignore", "pipe", "pipe">,
    readonly port: number,
    /** What it prints is kept for terminate(), unless somebody else reads it. */
    readsOutput = true,
  ) {
    this.url = `http://127.0.0.1:${port}`;
    this.client = new OpenAI({ baseURL: `${this.url}/v1`, apiKey: "none", maxRetries: 0 });
    const texts = !readsOutput ? [] : [new Response(process.stdout).text(), new Response(process.stderr).text()];
    this.output = Promise.all(texts).then((parts) => parts.join(""));
  }

  async untilHealthy(): Promise<void> {
    while ((await this.health()) !== 200) {
      if (this.process.exitCode !== null) throw new Error(`the server ended: ${await this.output}`);
      await Bun.sleep(20);
    }
  }

  /** Status of /health; 0 while nothing listens. */
  health(): Promise<number> {
    return fetch(`${this.url}/health`).then(
      (response) => response.status,
      () => 0,
    );
  }

  async info(): Promise<ServerInfo> {
    return (await (await fetch(`${this.url}/server_info`)).json()) as ServerInfo;
  }

  post(path: string, body: unknown, init: RequestInit = {}): Promise<Response> {
    const text = typeof body === "string" ? body : JSON.stringify(body);
    return fetch(this.url + path, { method: "POST", body: text, ...init });
  }

  /** Waits until nothing runs, waits or holds pages; throws after `seconds`. */
  async untilIdle(seconds = 5): Promise<void> {
    const deadline = performance.now() + seconds * 1000;
    for (;;) {
      const info = await this.info();
      if (info.num_running_requests + info.num_waiting_requests + info.num_used_pages === 0) return;
      if (performance.now() > deadline) throw new Error(`not idle after ${seconds} s: ${JSON.stringify(info)}`);
      await Bun.sleep(10);
    }
  }

  /** Seconds of processor time used so far, by all threads. */
  processorTime(): number {
    const fields = readFileSync(`/proc/${this.process.pid}/stat`, "utf8").split(") ")[1].split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  }

  /** Resident memory in bytes. */
  memory(): number {
    return Number(readFileSync(`/proc/${this.process.pid}/statm`, "utf8").split(" ")[1]) * 4096;
  }

  /** Resident memory in bytes once nothing has run for so long that garbage is collected. */
  async memoryAtRest(seconds = 3): Promise<number> {
    let least = Number.POSITIVE_INFINITY;
    for (let look = 0; look < 2 * seconds; look++) {
      await Bun.sleep(500);
      least = Math.min(least, this.memory());
    }
    return least;
  }

  /** Sends SIGTERM; the exit code and all that was printed. */
  async terminate(): Promise<{ code: number; output: string }> {
    this.process.kill("SIGTERM");
    return { code: await this.process.exited, output: await this.output };
  }
}

export function freePort(): number {
  const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  probe.stop(true);
  return probe.port;
}
