/** `minisgl serve`: the port first, so that a taken one is known before the model is loaded; then the model. */
import { ServiceManager } from "../native/service-manager.ts";
import type { Runtime } from "../runtime/runtime.ts";
import type { RuntimeOptions, SpawnWorker } from "../runtime/types.ts";
import { createLog, type Log } from "../server/log.ts";
import { serve as listen, type RunningServer, type ServerOptions } from "../server/server.ts";
import { fail, reportFailuresTo, UserError } from "./errors.ts";
import { describeModel, startRuntime } from "./runtime.ts";
import { readCertificate, readKeys, type ServerFlags } from "./server-options.ts";
import { watch } from "./supervision.ts";

/** Serves until a signal or a failure ends the process. Throws what keeps it from starting. */
export async function serve(engineOptions: RuntimeOptions, flags: ServerFlags, spawn: SpawnWorker): Promise<void> {
  const options = { ...engineOptions, maxQueuedRequests: flags.maxQueuedRequests };
  const manager = new ServiceManager();
  const log = createLog(flags.logLevel, flags.logFormat);
  reportFailuresTo((message) => log("error", message));
  outliveReaders();
  let runtime: Runtime | null = null;
  const server = openPort(() => runtime, serverOptions(options, flags, log), flags);
  const url = server.url.replace(/\/$/, "");
  log("info", `loading ${options.model}, listening on ${hostAndPort(flags.host, server.port)}`);
  manager.notify(`STATUS=loading ${options.model}`);
  warnIfOpen(server, flags, log);
  endOnSignals(server, () => runtime, flags, manager, log);
  // A terminal gets a bar, what collects lines gets lines like all others.
  const progress = process.stderr.isTTY ? process.stderr : { write: (line: string) => log("info", line.trimEnd()) };
  const started = await startRuntime(options, spawn, progress, (message) => log("warning", message));
  warnIfShortened(options, started, log);
  watch(started, flags.watchdogTimeout, manager);
  runtime = started;
  log("info", `serving ${describeModel(started.info)} at ${url}`);
  manager.notify("READY=1", `STATUS=serving ${started.info.model} at ${url}`);
}

/** A log on a full disk, or whose reader has gone, is lost; the server goes on. */
function outliveReaders(): void {
  for (const stream of [process.stdout, process.stderr]) stream.removeAllListeners("error").on("error", () => {});
}

function serverOptions(options: RuntimeOptions, flags: ServerFlags, log: Log): ServerOptions {
  const { MINISGL_API_KEY, MINISGL_ADMIN_API_KEY } = process.env;
  const { host, port } = flags;
  return {
    servedModelNames: flags.servedModelName ?? [],
    corsOrigins: flags.allowedOrigins ?? [],
    apiKeys: readKeys("api-key", flags.apiKey, flags.apiKeyFile, MINISGL_API_KEY),
    adminKeys: readKeys("admin-api-key", flags.adminApiKey, flags.adminApiKeyFile, MINISGL_ADMIN_API_KEY),
    protectMetrics: flags.protectMetrics ?? false,
    maxBodyBytes: flags.maxBodyBytes,
    requestTimeoutSeconds: flags.requestTimeout,
    stallTimeoutSeconds: flags.stallTimeout,
    requestLog: flags.logRequests ? log : null,
    settings: snakeCase({ ...options, host, port }),
  };
}

function openPort(runtime: () => Runtime | null, options: ServerOptions, flags: ServerFlags): RunningServer {
  const certificate = readCertificate(flags);
  try {
    return listen(runtime, { ...options, hostname: flags.host, port: flags.port, certificate });
  } catch (error) {
    if ((error as { code?: string }).code === "EADDRINUSE") {
      throw new UserError(`port ${flags.port} of ${flags.host} is in use; choose another with --port`);
    }
    const reason = error instanceof Error ? error.message : String(error);
    throw new UserError(`cannot listen on ${hostAndPort(flags.host, flags.port)}: ${reason}`);
  }
}

function warnIfOpen({ context }: RunningServer, { host }: ServerFlags, log: Log): void {
  if (context.options.apiKeys.length > 0 || /^(localhost|127\.|\[?::1\]?$)/.test(host)) return;
  log("warning", `whoever reaches ${host} may use this server: there is no --api-key`);
}

function warnIfShortened({ maxSequenceLength }: RuntimeOptions, { info }: Runtime, log: Log): void {
  if (info.maxContext >= maxSequenceLength) return;
  const pool = `${info.numPages} pages of ${info.pageSize} hold no more`;
  log("warning", `the context is ${info.maxContext} tokens, not the ${maxSequenceLength} asked for: ${pool}`);
}

/** SIGTERM and SIGINT let running requests end and exit with 0; a second SIGINT ends at once. */
function endOnSignals(
  server: RunningServer,
  runtime: () => Runtime | null,
  flags: ServerFlags,
  manager: ServiceManager,
  log: Log,
): void {
  let ending = false;
  const end = async (signal: "SIGTERM" | "SIGINT"): Promise<void> => {
    if (ending) {
      if (signal === "SIGINT") process.exit(130);
      return;
    }
    ending = true;
    const { size } = server.context.active;
    const running = count(size);
    manager.notify("STOPPING=1", `STATUS=draining ${running}`);
    log(
      "info",
      `${signal}: ending${size > 0 ? ` after ${running}; ${signal === "SIGINT" ? "again" : "SIGINT"} stops at once` : ""}`,
    );
    const started = runtime();
    if (started !== null) {
      const aborted = await server.drain(flags.drainTimeout);
      if (aborted > 0) log("warning", `aborted ${count(aborted)} that did not end in ${flags.drainTimeout} s`);
      await server.stop();
      await started.stop();
    }
    log("info", "ended");
    process.exit(0);
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.on(signal, () => {
      end(signal).catch(fail);
    });
  }
}

const hostAndPort = (host: string, port: number) => `${host.includes(":") ? `[${host}]` : host}:${port}`;

const count = (requests: number) => `${requests} request${requests === 1 ? "" : "s"}`;

/** The options under names that look like those of the other fields that the API shows. */
function snakeCase(options: object): Record<string, unknown> {
  const name = (key: string) => key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  return Object.fromEntries(Object.entries(options).map(([key, value]) => [name(key), value]));
}
