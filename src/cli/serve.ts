/** `minisgl serve`: the port first, so that a taken one is known before the model is loaded; then the model. */
import type { Runtime } from "../runtime/runtime.ts";
import type { RuntimeOptions, SpawnWorker } from "../runtime/types.ts";
import { serve as listen, type RunningServer } from "../server/server.ts";
import { fail, UserError } from "./errors.ts";
import type { ServerFlags } from "./options.ts";
import { describeModel, startRuntime } from "./runtime.ts";

/** Seconds that requests get to end after SIGTERM. */
const DRAIN_SECONDS = 30;

/** Serves until a signal or a failure ends the process. Throws what keeps it from starting. */
export async function serve(options: RuntimeOptions, flags: ServerFlags, spawn: SpawnWorker): Promise<void> {
  let runtime: Runtime | null = null;
  const server = openPort(() => runtime, options, flags);
  endOnSignals(server, () => runtime);
  runtime = await startRuntime(options, spawn);
  console.log(`minisgl: serving ${describeModel(runtime.info)} at ${server.url.replace(/\/$/, "")}`);
}

function openPort(runtime: () => Runtime | null, options: RuntimeOptions, flags: ServerFlags): RunningServer {
  try {
    return listen(runtime, {
      hostname: flags.host,
      port: flags.port,
      servedModelNames: flags.servedModelName === undefined ? [] : [flags.servedModelName],
      settings: { ...options, host: flags.host, port: flags.port },
    });
  } catch (error) {
    if ((error as { code?: string }).code === "EADDRINUSE") {
      throw new UserError(`port ${flags.port} of ${flags.host} is in use; choose another with --port`);
    }
    const reason = error instanceof Error ? error.message : String(error);
    throw new UserError(`cannot listen on ${flags.host}:${flags.port}: ${reason}`);
  }
}

/** SIGTERM and SIGINT let running requests end and exit with 0; a second SIGINT ends at once. */
function endOnSignals(server: RunningServer, runtime: () => Runtime | null): void {
  let ending = false;
  const end = async (signal: "SIGTERM" | "SIGINT"): Promise<void> => {
    if (ending) {
      if (signal === "SIGINT") process.exit(130);
      return;
    }
    ending = true;
    const started = runtime();
    if (started === null) process.exit(0);
    const { size } = server.context.active;
    if (size > 0) {
      const requests = size === 1 ? "1 request is" : `${size} requests are`;
      const next = signal === "SIGINT" ? "again" : "SIGINT";
      process.stderr.write(`minisgl: ${requests} still running; ${next} stops at once\n`);
    }
    const aborted = await server.drain(DRAIN_SECONDS);
    if (aborted > 0) process.stderr.write(`minisgl: aborted ${aborted} requests that did not end in time\n`);
    await server.stop();
    await started.stop();
    process.exit(0);
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      end(signal).catch(fail);
    });
  }
}
