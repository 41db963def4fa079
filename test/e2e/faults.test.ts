/** What goes wrong around the executable: each is one clear line on standard error and exit code 1, or is survived. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { freePort, Installation, model, TestServer } from "./support.ts";
import { canChangeThreads, findThread, killThread, stopThread, wait } from "./threads.ts";

setDefaultTimeout(60_000);
const installation = new Installation();
afterAll(() => installation.remove());
const executable = join(installation.folder, "minisgl");
const folder = (name: string) => {
  const path = join(installation.folder, name);
  mkdirSync(path, { recursive: true });
  return path;
};

/** The lines of standard error without what loading shows of its progress. */
const complaints = (stderr: string) =>
  stderr
    .trimEnd()
    .split("\n")
    .filter((line) => !line.startsWith("loading "));

/** That it ended with code 1 and said one line, which is given back. */
function reasonOf({ code, stderr }: { code: number; stderr: string }): string {
  expect(complaints(stderr)).toHaveLength(1);
  expect(code).toBe(1);
  return complaints(stderr)[0];
}

describe.skipIf(!canChangeThreads)("a thread", () => {
  const patience = ["--watchdog-timeout", "1"];
  const start = async (...args: string[]) => {
    const port = freePort();
    const child = installation.spawn("serve", "--model", model, "--port", String(port), ...args);
    const server = new TestServer(child, port, false);
    await server.untilHealthy();
    return { server, ended: installation.ended(child) };
  };
  const ask = (server: TestServer) =>
    server.post("/v1/completions", { prompt: "One", max_tokens: 5 }).catch(() => null);

  test("of the scheduler that is killed ends the process, once it is missed", async () => {
    const { server, ended } = await start(...patience);
    killThread(findThread(server.process.pid, "scheduler"));
    await Bun.sleep(1500);
    expect(server.process.exitCode).toBeNull();
    const answer = ask(server);
    expect(reasonOf(await ended)).toMatch(/^minisgl: there is work, but no step was made for 1 s/);
    await answer;
  });

  test("of the scheduler that hangs ends it too, with the process that it hangs in", async () => {
    const { server, ended } = await start(...patience);
    const scheduler = findThread(server.process.pid, "scheduler");
    const answer = ask(server);
    while ((await server.info()).num_running_requests === 0) await Bun.sleep(1);
    stopThread(scheduler);
    await answer;
    wait(scheduler);
    expect(reasonOf(await ended)).toMatch(/^minisgl: there is work, but no step was made/);
  });

  test("that tokenizes and is killed ends it as well", async () => {
    const { server, ended } = await start(...patience);
    killThread(findThread(server.process.pid, "tokenizer"));
    const answer = ask(server);
    expect(reasonOf(await ended)).toMatch(/no step was made .* a tokenizer stands still/);
    await answer;
  });
});

test("a process that was stopped for longer than the watchdog waits goes on", async () => {
  const server = await installation.serve("--watchdog-timeout", "2");
  const body = { prompt: "One", max_tokens: 300, ignore_eos: true };
  const answer = server.post("/v1/completions", body);
  while ((await server.info()).num_running_requests === 0) await Bun.sleep(1);
  server.process.kill("SIGSTOP");
  await Bun.sleep(3000);
  server.process.kill("SIGCONT");
  expect((await answer).status).toBe(200);
  expect((await server.terminate()).code).toBe(0);
});

test("a pool that does not fit into memory is told with what it needs and what there is", async () => {
  const args = ["--num-pages", "100000000", "--port", "0"];
  expect(reasonOf(await installation.run("serve", "--model", model, ...args))).toMatch(/needs .* GiB, .* are free/);
});

describe("a model file", () => {
  test.each([0.9, 0.001])("that is cut to %p of its length is named", async (share) => {
    const bytes = readFileSync(model);
    const cut = join(folder("cut"), `${share}.gguf`);
    writeFileSync(cut, bytes.subarray(0, bytes.length * share));
    const reason = reasonOf(await installation.run("serve", "--model", cut, "--port", "0"));
    expect(reason).toStartWith("minisgl: ");
    expect(reason).toContain(cut);
    expect(reason).toMatch(/truncated|damaged/);
  });
});

test("a log of JSON lines has the reason of the end as one of them", async () => {
  const child = installation.spawn(
    "serve",
    "--model",
    "/nowhere",
    "--port",
    String(freePort()),
    "--log-format",
    "json",
  );
  const { level, message } = JSON.parse(reasonOf(await installation.ended(child)));
  expect([level, message]).toEqual(["error", expect.stringContaining("/nowhere")]);
});

describe("the folder that libraries are unpacked to", () => {
  const inFolder = (temporary: string) => {
    const command = [executable, "serve", "--model", model, "--port", "0"];
    return installation.ended(installation.spawnCommand(command, { TMPDIR: temporary }));
  };
  /** Has a file system of its own mounted there, seen by the executable alone. */
  const inMount = (options: string) => {
    const temporary = folder("mounted");
    const script = `mount -t tmpfs -o ${options} none ${temporary} && exec ${executable} serve --port 0 --model ${model}`;
    const child = installation.spawnCommand(["unshare", "-rm", "sh", "-c", script], { TMPDIR: temporary });
    return installation.ended(child);
  };
  const canMount = Bun.spawnSync(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).exitCode === 0;

  test("is named where it is missing", async () => {
    expect(reasonOf(await inFolder("/nowhere"))).toMatch(/unpack .* to \/nowhere,.*no such file or directory.*TMPDIR/i);
  });

  test.skipIf(!canMount)("is named where it is full, cannot be written, or does not allow execution", async () => {
    expect(reasonOf(await inMount("size=64k"))).toMatch(/unpack .*mounted,.* no space left.*TMPDIR/);
    expect(reasonOf(await inMount("ro"))).toMatch(/unpack .*mounted,.*read-only file system.*TMPDIR/i);
    expect(reasonOf(await inMount("noexec"))).toMatch(/unpack .*mounted,.*TMPDIR to a folder that .*allows execution/);
  });
});

describe("a key file", () => {
  const run = (...args: string[]) => installation.run("serve", "--model", model, "--port", "0", ...args);
  const write = (name: string, text: string) => {
    const path = join(folder("keys"), name);
    writeFileSync(path, text);
    return path;
  };

  test("that cannot be read, or holds none, is named", async () => {
    expect(reasonOf(await run("--api-key-file", "/nowhere/keys"))).toMatch(/--api-key-file \/nowhere\/keys: ENOENT/);
    expect(reasonOf(await run("--admin-api-key-file", folder("keys")))).toMatch(/--admin-api-key-file .*keys: EISDIR/);
    const empty = write("empty", "\n# a comment\n");
    expect(reasonOf(await run("--api-key-file", empty))).toBe(`minisgl: --api-key-file ${empty} holds no key`);
  });

  test("with something that is no key is refused without showing it", async () => {
    const reason = reasonOf(await run("--api-key-file", write("odd", "two words\n")));
    expect(reason).toContain("--api-key");
    expect(reason).not.toContain("two words");
    expect(reasonOf(await run("--api-key", ""))).toContain("empty");
  });

  test.skipIf(Bun.which("openssl") === null)("of a certificate has to be its own", async () => {
    const pair = (name: string) => {
      const [key, cert] = [join(folder("keys"), `${name}.key`), join(folder("keys"), `${name}.crt`)];
      const made = Bun.spawnSync(
        `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost
          -addext subjectAltName=IP:127.0.0.1 -keyout ${key} -out ${cert}`.split(/\s+/),
      );
      if (made.exitCode !== 0) throw new Error(made.stderr.toString());
      return { key, cert };
    };
    const [one, two] = [pair("one"), pair("two")];
    const secure = (cert: string, key: string) => run("--ssl-certfile", cert, "--ssl-keyfile", key);
    expect(reasonOf(await secure(one.cert, two.key))).toContain("is not the key of the certificate");
    expect(reasonOf(await secure(one.cert, one.cert))).toContain("is not a private key in PEM");
    expect(reasonOf(await secure(one.key, one.key))).toContain("is not a certificate in PEM");
    expect(reasonOf(await secure("/nowhere.crt", one.key))).toMatch(/--ssl-certfile \/nowhere\.crt: ENOENT/);
    expect(reasonOf(await run("--ssl-certfile", one.cert))).toContain("--ssl-keyfile");
    const port = freePort();
    const files = ["--ssl-certfile", one.cert, "--ssl-keyfile", one.key];
    const child = installation.spawn("--model", model, "--port", String(port), ...files);
    const health = () =>
      fetch(`https://127.0.0.1:${port}/health`, { tls: { ca: readFileSync(one.cert, "utf8") } }).then(
        ({ status }) => status,
        () => 0,
      );
    while ((await health()) !== 200) {
      if (child.exitCode !== null) throw new Error("it ended");
      await Bun.sleep(20);
    }
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  });
});

describe("a log", () => {
  const port = freePort();
  const command = [executable, "serve", "--model", model, "--port", String(port), "--log-requests"];
  const servesOn = async (child: Bun.Subprocess<"ignore", "pipe", "pipe">) => {
    const server = new TestServer(child, port, false);
    await server.untilHealthy();
    for (let i = 0; i < 20; i++) expect((await server.post("/tokenize", { prompt: "One" })).status).toBe(200);
    await Bun.sleep(100);
    expect(await server.health()).toBe(200);
    child.kill("SIGTERM");
    expect(await child.exited).toBe(0);
  };

  test("on a full disk does not stop the server", async () => {
    await servesOn(installation.spawnCommand(["sh", "-c", 'exec "$0" "$@" >/dev/full 2>/dev/full', ...command]));
  });

  test("that nobody reads does not either", async () => {
    const child = installation.spawnCommand(command);
    await Promise.all([child.stdout.cancel(), child.stderr.cancel()]);
    await servesOn(child);
  });
});

test.skipIf(process.getuid?.() !== 0)("a model that may not be read is named", async () => {
  const hidden = join(folder("hidden"), "model.gguf");
  writeFileSync(hidden, readFileSync(model).subarray(0, 1000));
  chmodSync(hidden, 0);
  chmodSync(installation.folder, 0o755);
  chmodSync(folder("hidden"), 0o755);
  const command = ["setpriv", "--reuid=65534", "--clear-groups", executable, "serve", "--model", hidden, "--port", "0"];
  const reason = reasonOf(await installation.ended(installation.spawnCommand(command, { HOME: "/" })));
  expect(reason).toContain(hidden);
  expect(reason).toMatch(/EACCES|permission denied/i);
});
