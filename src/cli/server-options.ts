/** The options of `serve` alone: where it listens, who may ask, how much, and what is told of it. */
import { createPrivateKey, X509Certificate } from "node:crypto";
import type { Option } from "commander";
import { LOG_LEVELS, type LogFormat, type LogLevel } from "../server/log.ts";
import type { Certificate } from "../server/server.ts";
import { readText, UserError } from "./errors.ts";
import { option } from "./options.ts";
import { address, choice, integer, number, origins } from "./values.ts";

export interface ServerFlags {
  host: string;
  port: number;
  servedModelName?: string[];
  shell?: boolean;
  apiKey?: string[];
  apiKeyFile?: string;
  adminApiKey?: string[];
  adminApiKeyFile?: string;
  protectMetrics?: boolean;
  allowedOrigins?: string[];
  sslCertfile?: string;
  sslKeyfile?: string;
  maxQueuedRequests: number;
  maxBodyBytes: number;
  requestTimeout: number;
  stallTimeout: number;
  drainTimeout: number;
  watchdogTimeout: number;
  logLevel: LogLevel;
  logFormat: LogFormat;
  logRequests?: boolean;
}

/** A number of seconds. */
const seconds = number("a number of seconds from 0 to 1000000", (value) => value >= 0 && value <= 1e6);

export function serverFlags(): Option[] {
  return [...listeningFlags(), ...accessFlags(), ...limitFlags(), ...logFlags()];
}

function listeningFlags(): Option[] {
  const group = "Server:";
  return [
    ...option(group, "--host <address>", "address to listen on", { parse: address, default: "127.0.0.1" }),
    ...option(group, "--port <number>", "port to listen on; 0: any that is free", {
      parse: integer(0, 65535),
      default: 1919,
    }),
    ...option(group, "--served-model-name <names...>", "the model's names in the API; without, the --model given"),
    ...option(group, "--shell, --shell-mode", "talk to the model in the terminal instead of serving it"),
  ];
}

function accessFlags(): Option[] {
  const group = "Access:";
  return [
    ...option(group, "--api-key <keys...>", "keys of which requests must carry one (also MINISGL_API_KEY)"),
    ...option(group, "--api-key-file <file>", "the same from a file, a key a line"),
    ...option(group, "--admin-api-key <keys...>", "other keys for admin routes (also MINISGL_ADMIN_API_KEY)"),
    ...option(group, "--admin-api-key-file <file>", "the same from a file, a key a line"),
    ...option(group, "--protect-metrics", "/metrics wants a key too"),
    ...option(group, "--allowed-origins, --cors-allow-origins <origins>", "origins whose pages may ask; *: all", {
      parse: origins,
    }),
    ...option(group, "--ssl-certfile <file>", "certificate chain (PEM): serve HTTPS"),
    ...option(group, "--ssl-keyfile <file>", "the certificate's private key (PEM)"),
  ];
}

function limitFlags(): Option[] {
  const group = "Limits:";
  return [
    ...option(group, "--max-queued-requests <n>", "requests that may wait; more are answered with 429", {
      parse: integer(0),
      default: 4096,
    }),
    ...option(group, "--max-body-bytes <n>", "largest body of a request", { parse: integer(1024), default: 32 << 20 }),
    ...option(group, "--request-timeout <seconds>", "longest time from a request to its answer's end; 0: any", {
      parse: seconds,
      default: 0,
    }),
    ...option(group, "--stall-timeout <seconds>", "a client that reads nothing of its stream for so long is cut off", {
      parse: number("a number of seconds above 0, at most 1000000", (value) => value > 0 && value <= 1e6),
      default: 60,
    }),
    ...option(group, "--drain-timeout <seconds>", "what running requests get to end after SIGTERM", {
      parse: seconds,
      default: 30,
    }),
    ...option(group, "--watchdog-timeout <seconds>", "end if work makes no step for so long; 0: never", {
      parse: seconds,
      default: 300,
    }),
  ];
}

function logFlags(): Option[] {
  const group = "Log:";
  return [
    ...option(group, "--log-level <level>", `least that is told: ${LOG_LEVELS.join(", ")}`, {
      parse: choice(LOG_LEVELS),
      default: "info",
    }),
    ...option(group, "--log-format <format>", "text, or json for a JSON object a line", {
      parse: choice(["text", "json"]),
      default: "text",
    }),
    ...option(group, "--log-requests, --enable-log-requests", "a line for each request"),
  ];
}

/**
 * The keys of one kind, from the command line, a file and the environment together.
 * @throws UserError where there is a source that gives none, or what cannot be sent as a key; it shows no key.
 */
export function readKeys(name: string, given: readonly string[] = [], file?: string, environment = ""): string[] {
  const lines = file === undefined ? [] : readText(`--${name}-file`, file).split("\n");
  const fromFile = lines.map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("#"));
  if (file !== undefined && fromFile.length === 0) throw new UserError(`--${name}-file ${file} holds no key`);
  const keys = [...given, ...fromFile, ...environment.split(/[\s,]+/).filter(Boolean)];
  if (!keys.every((key) => /^[\x21-\x7e]+$/.test(key))) {
    throw new UserError(`a key of --${name} is empty, or has spaces or characters outside of ASCII`);
  }
  return keys;
}

/** The files of --ssl-certfile and --ssl-keyfile, or null without. @throws UserError unless they fit together. */
export function readCertificate({ sslCertfile, sslKeyfile }: ServerFlags): Certificate | null {
  if (sslCertfile === undefined && sslKeyfile === undefined) return null;
  if (sslCertfile === undefined || sslKeyfile === undefined) {
    throw new UserError("--ssl-certfile and --ssl-keyfile are given together or not at all");
  }
  const cert = readText("--ssl-certfile", sslCertfile);
  const key = readText("--ssl-keyfile", sslKeyfile);
  const certificate = attempt(`--ssl-certfile ${sslCertfile} is not a certificate in PEM`, () => {
    return new X509Certificate(cert);
  });
  const locked = /ENCRYPTED/.test(key) ? "is encrypted, which is not supported" : "is not a private key in PEM";
  const privateKey = attempt(`--ssl-keyfile ${sslKeyfile} ${locked}`, () => createPrivateKey(key));
  if (!certificate.checkPrivateKey(privateKey)) {
    throw new UserError(`--ssl-keyfile ${sslKeyfile} is not the key of the certificate in ${sslCertfile}`);
  }
  return { cert, key };
}

function attempt<T>(complaint: string, action: () => T): T {
  try {
    return action();
  } catch {
    throw new UserError(complaint);
  }
}
