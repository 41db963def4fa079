import type { ServiceManager } from "../native/service-manager.ts";
import type { Runtime } from "../runtime/runtime.ts";
import { Watchdog } from "../runtime/watchdog.ts";
import { fail } from "./errors.ts";

/**
 * Ends the process when the scheduler has had work and made no step for `timeout` seconds (0: never), and tells the
 * service manager regularly that all is well, as long as it is.
 *
 * With a watchdog of W seconds it is told every W / 4, and no more once the scheduler stands still for W / 2: so steps of
 * up to W seconds do no harm, and the service manager acts at the latest 1.5 W after the last step.
 */
export function watch(runtime: Runtime, timeout: number, manager: ServiceManager): void {
  const { watchdogSeconds } = manager;
  const interval = Math.min(1, (watchdogSeconds || Infinity) / 4, (timeout || Infinity) / 4);
  const watchdog = new Watchdog(runtime, interval);
  let told = 0;
  setInterval(() => {
    const stalled = watchdog.look();
    if (timeout > 0 && stalled >= timeout) {
      fail(
        new Error(
          `there is work, but no step was made for ${Math.round(stalled)} s: the scheduler or a tokenizer stands still`,
        ),
      );
    }
    const now = performance.now();
    const due = watchdogSeconds > 0 && now - told >= (watchdogSeconds * 1000) / 4 - interval * 500;
    if (!due || stalled >= watchdogSeconds / 2) return;
    told = now;
    const { runningRequests, waitingRequests } = runtime.statistics();
    manager.notify("WATCHDOG=1", `STATUS=${runningRequests} requests running, ${waitingRequests} waiting`);
  }, interval * 1000);
}
