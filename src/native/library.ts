/**
 * The native room: the C library as TypeScript sees it, and the only place that calls bun:ffi.
 * Read library.ts (loading), tensor.ts (what ops work on), device.ts (memory, events, graphs), weight.ts, then ops.ts
 * (a typed function for each op). The documentation of every function is cuda/include/minisgl.h.
 */
import { dlopen, type Pointer, ptr } from "bun:ffi";
import { accessSync, constants, statfsSync, statSync } from "node:fs";
import { symbols } from "./symbols.ts";

/** An error that the native library reported. */
export class NativeError extends Error {}

const open = (path: string) => dlopen(path, symbols).symbols;

/** The library's functions. Missing arguments silently become 0: call them through device.ts, weight.ts and ops.ts. */
export type Library = ReturnType<typeof open>;

const opened = new Map<string, Library>();

/**
 * Opens one of the libraries that implement minisgl.h.
 * @throws NativeError where the file cannot be loaded, with what to do about it.
 */
export function openLibrary(path: string): Library {
  const known = opened.get(path);
  if (known) return known;
  try {
    const library = open(path);
    opened.set(path, library);
    return library;
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new NativeError(explain(path, reason));
  }
}

/** Why a library cannot be opened. Bun unpacks those within the executable first, and gives their own path if it fails. */
function explain(path: string, reason: string): string {
  const folder = process.env.BUN_TMPDIR || process.env.TMPDIR || "/tmp";
  const unpacked = !reason.includes(`open library "${path}"`);
  if (!path.startsWith("/$bunfs/") || !reason.includes("open library")) {
    return `cannot load the native library: ${reason}`;
  }
  const problem = unpacked ? reason.replace(/^.*: /, "") : whyNotWritten(folder, statSync(path).size);
  return (
    `cannot unpack the native library to ${folder}, or run it from there: ${problem}. ` +
    "Set TMPDIR to a folder that can be written and allows execution"
  );
}

function whyNotWritten(folder: string, bytes: number): string {
  try {
    accessSync(folder, constants.W_OK | constants.X_OK);
    const { bavail, bsize } = statfsSync(folder);
    if (bavail * bsize < bytes) return `there is no space left for ${bytes} bytes`;
    return "it cannot be written";
  } catch (error) {
    return (error as Error).message;
  }
}

/** The text of the calling thread's last native error. */
function lastError(library: Library): string {
  return String(library.msgl_last_error()) || "unknown native error";
}

/** @throws NativeError with the library's text if status is not 0. */
export function check(library: Library, status: number): void {
  if (status !== 0) throw new NativeError(lastError(library));
}

/** Calls a function with an out parameter of 8 bytes and returns it as a number or pointer. */
export function out(library: Library, call: (cell: Pointer) => number): number {
  const cell = new BigInt64Array(1);
  check(library, call(ptr(cell)));
  return Number(cell[0]);
}

/** The same for an out parameter of type int32_t. */
export function out32(library: Library, call: (cell: Pointer) => number): number {
  const cell = new Int32Array(2);
  check(library, call(ptr(cell)));
  return cell[0] as number;
}

/** Number of devices the library can open. */
export function deviceCount(library: Library): number {
  return out32(library, (cell) => library.msgl_device_count(cell));
}

/** What a library stands on: where it was found, or why not (then the version is empty). */
export interface Foundation {
  name: string;
  version: string;
  where: string;
}

/** What a library found on this host, whether or not a device answers. */
export function foundations(library: Library): Foundation[] {
  const bytes = new Uint8Array(16384);
  check(library, library.msgl_libraries(ptr(bytes), bytes.length));
  const lines = new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0))).split("\n");
  return lines.filter(Boolean).map((line) => {
    const [name = "", version = "", where = ""] = line.split("\t");
    return { name, version, where };
  });
}
