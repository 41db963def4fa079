/** The executable as a service: what it tells systemd, and the unit that `make install` puts into place. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { NotifySocket } from "./notify-socket.ts";
import { freePort, Installation, model, TestServer } from "./support.ts";
import { canChangeThreads, findThread, stopThread } from "./threads.ts";

setDefaultTimeout(60_000);
const installation = new Installation();
afterAll(() => installation.remove());

async function startService(socket: NotifySocket, environment: Record<string, string>, ...args: string[]) {
  const port = freePort();
  const command = [join(installation.folder, "minisgl"), "--model", model, "--port", String(port), ...args];
  const child = installation.spawnCommand(command, { NOTIFY_SOCKET: socket.address, ...environment });
  return new TestServer(child, port);
}

const complete = (server: TestServer, max_tokens: number) =>
  server.client.completions.create({ model: "default", prompt: "A story:", max_tokens, ...{ ignore_eos: true } });

describe.each(["by path", "by abstract name"])("sd_notify %s", (kind) => {
  const name = `minisgl-test-${process.pid}`;
  const socket = new NotifySocket(kind === "by path" ? join(installation.folder, name) : `@${name}`);
  afterAll(() => socket.close());

  test("tells when it is ready, that it is alive, and that it stops", async () => {
    const server = await startService(socket, { WATCHDOG_USEC: "800000" });
    while (!socket.has("STATUS=loading")) await Bun.sleep(1);
    expect(socket.has("READY=1")).toBe(false);
    await server.untilHealthy();
    while (!socket.has("READY=1")) await Bun.sleep(1);
    expect(socket.has("STATUS=serving")).toBe(true);
    // While it has nothing to do, and while it works.
    const ready = performance.now();
    await Bun.sleep(1000);
    await complete(server, 60);
    await Bun.sleep(300);
    const pings = socket.pings.filter((at) => at > ready);
    expect(pings.length).toBeGreaterThanOrEqual(4);
    for (const [index, at] of pings.entries()) expect(at - (pings[index - 1] ?? ready)).toBeLessThan(800);
    expect(socket.has("STOPPING=1")).toBe(false);
    expect((await server.terminate()).code).toBe(0);
    expect(socket.has("STOPPING=1")).toBe(true);
  });
});

test("no watchdog is spoken to where none is asked for, or another process's", async () => {
  const socket = new NotifySocket(join(installation.folder, "quiet"));
  const server = await startService(socket, { WATCHDOG_USEC: "200000", WATCHDOG_PID: "1" });
  await server.untilHealthy();
  await Bun.sleep(500);
  await server.terminate();
  expect(socket.has("READY=1")).toBe(true);
  expect(socket.pings).toEqual([]);
  socket.close();
});

test.skipIf(!canChangeThreads)(
  "pings stop while the scheduler stands still, and come again when it goes on",
  async () => {
    const socket = new NotifySocket(join(installation.folder, "hanging"));
    const server = await startService(socket, { WATCHDOG_USEC: "1000000" }, "--watchdog-timeout", "0");
    await server.untilHealthy();
    const release = stopThread(findThread(server.process.pid, "scheduler"));
    // There is no work yet, so nothing is wrong.
    await Bun.sleep(1200);
    const idle = socket.pings.length;
    expect(idle).toBeGreaterThanOrEqual(3);
    const answer = complete(server, 5);
    await Bun.sleep(1200);
    const stalled = socket.pings.length;
    await Bun.sleep(1500);
    expect(socket.pings.length).toBe(stalled);
    expect(await server.health()).toBe(200);
    release();
    expect((await answer).usage!.completion_tokens).toBe(5);
    await Bun.sleep(700);
    expect(socket.pings.length).toBeGreaterThan(stalled);
    expect((await server.terminate()).code).toBe(0);
    socket.close();
  },
);

describe("make install", () => {
  const root = resolve(import.meta.dir, "../..");
  const target = join(installation.folder, "root");
  const unit = join(target, "opt/minisgl/lib/systemd/system/minisgl.service");
  // The executable exists: nothing is built here.
  const install = () =>
    installation.ended(
      installation.spawnCommand([
        "make",
        "-C",
        root,
        "-o",
        "minisgl",
        "install",
        `DESTDIR=${target}`,
        "PREFIX=/opt/minisgl",
      ]),
    );
  const analyze = async (...args: string[]) => {
    const child = installation.spawnCommand(["systemd-analyze", ...args]);
    const { code, stdout, stderr } = await installation.ended(child);
    return { code, text: stdout + stderr };
  };
  const hasSystemd = existsSync("/usr/bin/systemd-analyze");

  test("installs below DESTDIR, for PREFIX, and leaves a configuration alone", async () => {
    expect((await install()).code).toBe(0);
    const configuration = join(target, "etc/minisgl/minisgl.env");
    expect(statSync(configuration).mode & 0o777).toBe(0o600);
    expect(readFileSync(unit, "utf8")).toContain("\nExecStart=/opt/minisgl/bin/minisgl serve ");
    writeFileSync(configuration, "MINISGL_OPTIONS=--model mine\n");
    expect((await install()).code).toBe(0);
    expect(readFileSync(configuration, "utf8")).toBe("MINISGL_OPTIONS=--model mine\n");
    const version = installation.spawnCommand([join(target, "opt/minisgl/bin/minisgl"), "version"]);
    expect((await installation.ended(version)).stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });

  test.skipIf(!hasSystemd)("the unit is valid, and exposes at most 2.5", async () => {
    const here = join(installation.folder, "minisgl.service");
    cpSync(unit, here);
    writeFileSync(here, readFileSync(unit, "utf8").replace("/opt/minisgl/", `${target}/opt/minisgl/`));
    expect(await analyze("verify", "--man=no", here)).toEqual({ code: 0, text: "" });
    const security = await analyze("security", "--offline=true", "--threshold=25", here);
    expect(security.text).toMatch(/Overall exposure level for minisgl\.service: \d/);
    expect(security.code).toBe(0);
  });
});
