import { expect, test } from "bun:test";
import { ServiceManager } from "../../src/native/service-manager.ts";
import { Watchdog } from "../../src/runtime/watchdog.ts";

test("a watchdog counts the time that work makes no step, and begins anew when one is made", async () => {
  const watched = { busy: false, steps: 7 };
  const watchdog = new Watchdog(watched, 10);
  const looks: number[] = [];
  const look = async () => {
    await Bun.sleep(30);
    looks.push(watchdog.look());
  };
  await look();
  await look();
  expect(looks).toEqual([0, 0]);
  // The first look with work sees the steps of the last one without: that is no step made.
  watched.busy = true;
  await look();
  await look();
  expect(looks[2]).toBeGreaterThan(0.025);
  expect(looks[3]).toBeGreaterThan(looks[2] + 0.025);
  watched.steps++;
  await look();
  await look();
  expect(looks[4]).toBe(0);
  expect(looks[5]).toBeWithin(0.025, looks[3]);
  watched.busy = false;
  await look();
  expect(looks[6]).toBe(0);
});

test("time in which nothing looked hardly counts", async () => {
  const watchdog = new Watchdog({ busy: true, steps: 0 }, 0.01);
  watchdog.look();
  await Bun.sleep(100);
  expect(watchdog.look()).toBeLessThanOrEqual(0.02);
});

test("a service manager's watchdog is this process's, and needs a socket", () => {
  const NOTIFY_SOCKET = "/run/notify";
  const pid = String(process.pid);
  expect(new ServiceManager({ NOTIFY_SOCKET, WATCHDOG_USEC: "1500000" }).watchdogSeconds).toBe(1.5);
  expect(new ServiceManager({ NOTIFY_SOCKET, WATCHDOG_USEC: "1500000", WATCHDOG_PID: pid }).watchdogSeconds).toBe(1.5);
  for (const environment of [
    { NOTIFY_SOCKET, WATCHDOG_USEC: "1500000", WATCHDOG_PID: "1" },
    { NOTIFY_SOCKET, WATCHDOG_USEC: "x" },
    { NOTIFY_SOCKET },
    { WATCHDOG_USEC: "1500000" },
    { NOTIFY_SOCKET: "vsock:2:1", WATCHDOG_USEC: "1500000" },
    { NOTIFY_SOCKET: `/${"a".repeat(200)}`, WATCHDOG_USEC: "1500000" },
  ]) {
    const manager = new ServiceManager(environment);
    expect(manager.watchdogSeconds).toBe(0);
    // Where nobody listens nothing happens.
    manager.notify("READY=1");
  }
});
