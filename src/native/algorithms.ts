/**
 * Which algorithm computes a matrix product, measured by `minisgl tune`: the tables that the executable has for some
 * cards, and the user's own beside them. cuda/kernels/algorithm.h has the form of a line.
 */
import { ptr } from "bun:ffi";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import h200 from "./algorithms/nvidia-h200.txt" with { type: "text" };
import type { Device } from "./device.ts";
import { out32 } from "./library.ts";
import { MSGL_LINEAR_ADD, MSGL_LINEAR_GATED } from "./symbols.ts";
import { DType } from "./tensor.ts";

/** By the card's name. All of Hopper has the multiprocessors of the H200, of which its products have the order too. */
const SHIPPED: readonly [card: RegExp, table: string][] = [[/^NVIDIA (GH200|H100|H200)\b(?!.*\bMIG\b)/, h200]];

/** The table that this executable has for a card; "" where it has none. */
export const shippedTable = (card: string): string => SHIPPED.find(([pattern]) => pattern.test(card))?.[1] ?? "";

/** A product out[tokens, n] = x[tokens, k] W^T and what is done with it, as msgl_linear_tune has it. */
export interface Product {
  n: number;
  k: number;
  form: "plain" | "add" | "f32" | "gated";
}

/** The user's table for a card. */
export function algorithmFile(card: string): string {
  const cache = process.env.XDG_CACHE_HOME || join(homedir(), ".cache");
  return join(cache, "minisgl", "algorithms", `${card.replace(/[^\w.-]+/g, "-").toLowerCase()}.txt`);
}

/** Gives a device the tables for its name, the user's after this executable's. Returns how many lines it took. */
export function loadAlgorithms(device: Device): number {
  const { name } = device.properties();
  return [shippedTable(name), cachedTable(name)].reduce((sum, table) => sum + takeAlgorithms(device, table), 0);
}

/** The user's table; what cannot be read in a cache must not stop a start. */
function cachedTable(card: string): string {
  try {
    return readTable(algorithmFile(card));
  } catch {
    return "";
  }
}

/** Gives a device a table. Returns how many of its lines it took. */
export function takeAlgorithms(device: Device, table: string): number {
  if (table === "") return 0;
  const bytes = Buffer.from(`${table}\0`);
  return out32(device.library, (cell) => device.library.msgl_linear_algorithms(device.handle, ptr(bytes), cell));
}

/** The line of the fastest algorithm, which the device uses from now on; "" where it has but one. Takes up to seconds. */
export function tuneProduct(device: Device, { n, k, form }: Product, tokens: number, dtype: DType): string {
  const text = new Uint8Array(512);
  const variant = form === "add" ? MSGL_LINEAR_ADD : form === "gated" ? MSGL_LINEAR_GATED : 0;
  const outDtype = form === "f32" ? DType.F32 : dtype;
  const { library, handle } = device;
  device.check(library.msgl_linear_tune(handle, ptr(text), text.length, n, k, tokens, dtype, outDtype, variant));
  return new TextDecoder().decode(text.subarray(0, text.indexOf(0)));
}

/** A table; "" where there is none. @throws where it is there and cannot be read. */
export function readTable(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return "";
    throw error;
  }
}

/** Puts lines into a table: they take the place of those for the same product, and all stand in order. */
export function mergeTable(table: string, lines: readonly string[]): string {
  const entries = new Map<string, string>();
  const header: string[] = [];
  for (const line of [...table.split("\n"), ...lines]) {
    if (line.startsWith("#")) header.push(line);
    else if (line.trim() !== "") entries.set(productOf(line), line);
  }
  const numbers = (line: string) => line.split(" ", 3).map(Number);
  const sorted = [...entries.values()].sort((a, b) => {
    const [left, right] = [numbers(a), numbers(b)];
    const differing = left.findIndex((value, i) => value !== right[i]);
    const [p, q] = [left[differing], right[differing]];
    return p === undefined || q === undefined ? a.localeCompare(b) : p - q;
  });
  return `${[...header, ...sorted].join("\n")}\n`;
}

const productOf = (line: string) => line.split(" ", 4).join(" ");

/** Writes a table so that a process that starts meanwhile reads the old or the new one. */
export function writeTable(path: string, table: string): void {
  mkdirSync(dirname(path), { recursive: true });
  const unfinished = `${path}.${process.pid}`;
  writeFileSync(unfinished, table);
  renameSync(unfinished, path);
}
