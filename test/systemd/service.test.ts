/**
 * The installed service under a real systemd, booted in namespaces of its own: needs root, unshare and cgroups, so it is
 * `make test-systemd` and no part of `make test`. The port is this machine's.
 */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { freePort, model } from "../e2e/support.ts";
import { findThread, stopThread, wait } from "../e2e/threads.ts";

setDefaultTimeout(60_000);
const root = resolve(import.meta.dir, "../..");
const folder = mkdtempSync(join(tmpdir(), "minisgl-systemd-"));
const unified = existsSync("/sys/fs/cgroup/unified") ? "/sys/fs/cgroup/unified" : "/sys/fs/cgroup";
const cgroup = join(unified, `minisgl-test-${process.pid}`);
const url = `http://127.0.0.1:${freePort()}`;
let booted: Bun.Subprocess;
/** The new systemd's process, as this machine numbers it. */
let init = 0;

/** Runs a shell command beside the new systemd; its output. */
function run(script: string): string {
  const namespaces = ["-m", "-p", "-u", "-i", "-C", "-r", "-w"];
  const { stdout, stderr } = Bun.spawnSync(["nsenter", "-t", String(init), ...namespaces, "sh", "-c", script]);
  return (stdout.toString() + stderr.toString()).trim();
}

const show = (property: string) => run(`systemctl show --value -p ${property} minisgl`);
const health = () =>
  fetch(`${url}/health`).then(
    ({ status }) => status,
    () => 0,
  );
const complete = () =>
  fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { authorization: "Bearer secret" },
    body: '{"prompt": "One", "max_tokens": 4}',
  });

async function until(condition: () => boolean | Promise<boolean>, seconds: number): Promise<void> {
  const deadline = performance.now() + seconds * 1000;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`not within ${seconds} s: ${condition}`);
    await Bun.sleep(50);
  }
}

beforeAll(async () => {
  mkdirSync(cgroup);
  const enter = `echo $$ > ${cgroup}/cgroup.procs; exec unshare -m -p -u -i -C --fork --kill-child ${root}/test/systemd/boot.sh ${folder}`;
  booted = Bun.spawn(["sh", "-c", enter], { stdout: "inherit", stderr: "inherit" });
  const children = `/proc/${booted.pid}/task/${booted.pid}/children`;
  await until(() => Number(readFileSync(children, "utf8").trim()) > 0, 5);
  init = Number(readFileSync(children, "utf8").trim());
  await until(() => run("systemctl is-system-running") === "running", 20);
  // As the README says.
  const options = `MINISGL_OPTIONS=--model models/m.gguf --port ${new URL(url).port} --log-requests`;
  run(`make -C ${root} -o minisgl install PREFIX=/usr && mkdir -p /var/lib/private/minisgl/models &&
    cp ${model} /var/lib/private/minisgl/models/m.gguf &&
    printf '${options}\\nMINISGL_API_KEY=secret\\n' > /etc/minisgl/minisgl.env && systemctl daemon-reload`);
});
afterAll(async () => {
  if (init > 0) process.kill(init, "SIGKILL");
  await booted.exited;
  Bun.spawnSync(["find", cgroup, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]);
  rmSync(folder, { recursive: true, force: true });
});

test("it is started when it can serve, as a user without rights, and tells its state", async () => {
  expect(run("systemctl start minisgl")).toBe("");
  expect(await health()).toBe(200);
  expect((await complete()).status).toBe(200);
  expect(show("StatusText")).toContain("serving models/m.gguf");
  const status = run(`cat /proc/${show("MainPID")}/status`);
  expect(status).not.toMatch(/^Uid:\s+0\b/m);
  expect(status).toMatch(/^CapBnd:\s+0+$/m);
  expect(status).toMatch(/^NoNewPrivs:\s+1$/m);
  expect(run("journalctl -u minisgl -o cat --no-pager")).toContain("route=/v1/completions status=200");
});

test("it is restarted after it was killed", async () => {
  run(`kill -9 ${show("MainPID")}`);
  await until(async () => show("NRestarts") === "1" && (await health()) === 200, 20);
});

test("it ends well when it is stopped, and its files outlive it", async () => {
  run("systemctl stop minisgl");
  expect([show("ActiveState"), show("Result"), show("ExecMainStatus")]).toEqual(["inactive", "success", "0"]);
  expect(run("ls /var/lib/private/minisgl/models")).toBe("m.gguf");
});

test("it is killed and restarted when its scheduler stands still", async () => {
  run(`mkdir -p /run/systemd/system/minisgl.service.d && systemctl reset-failed &&
    printf '[Service]\\nWatchdogSec=2\\n' > /run/systemd/system/minisgl.service.d/watchdog.conf && systemctl daemon-reload`);
  run("systemctl start minisgl");
  // The process as this machine numbers it.
  const [process] = readFileSync(join(cgroup, "system.slice/minisgl.service/cgroup.procs"), "utf8").split("\n");
  const scheduler = findThread(Number(process), "scheduler");
  await Bun.sleep(3000);
  expect(show("NRestarts")).toBe("0");
  stopThread(scheduler);
  const answer = complete().catch(() => null);
  await answer;
  wait(scheduler);
  await until(async () => show("NRestarts") === "1" && (await health()) === 200, 20);
  expect((await complete()).status).toBe(200);
});

test("what cannot work is given up after some tries, with its reason in the journal", async () => {
  run("systemctl stop minisgl; systemctl reset-failed; sed -i s/m.gguf/none.gguf/ /etc/minisgl/minisgl.env");
  run("systemctl start minisgl");
  await until(() => show("ActiveState") === "failed", 40);
  expect(show("Result")).toBe("exit-code");
  expect(run("journalctl -u minisgl -o cat --no-pager -n 5")).toMatch(/model not found: .*none\.gguf/);
});
