/** The rooms' order: what a room may know of the others. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { Glob } from "bun";

/** A room imports only itself and rooms above it; message, which all threads speak, stands first. */
const ROOMS = [
  "message",
  "native",
  "checkpoint",
  "weights",
  "layer",
  "model",
  "cache",
  "engine",
  "scheduler",
  "tokenizer",
  "runtime",
  "server",
  "bench",
  "doctor",
  "cli",
];

const source = join(import.meta.dir, "../../src");
const files = [...new Glob("**/*.ts").scanSync(source)].sort();

interface Import {
  /** Relative to src/; null for a package. */
  file: string | null;
  specifier: string;
  typeOnly: boolean;
}

function importsOf(file: string): Import[] {
  const text = readFileSync(join(source, file), "utf8").replace(/\/\*[\s\S]*?\*\//g, "");
  const statements = text.matchAll(
    /^(?:import|export)\b(?:\s+(type)\b)?[^;"']*?["']([^"']+)["']|\bimport\(["']([^"']+)["']\)/gm,
  );
  return [...statements].map(([, type, plain, dynamic]) => {
    const specifier = (plain ?? dynamic) as string;
    const target = specifier.startsWith(".") ? relative(source, join(source, dirname(file), specifier)) : null;
    return { file: target, specifier, typeOnly: type !== undefined };
  });
}

/** The folder, or "" for the entry points beside the rooms. */
const roomOf = (file: string) => (file.includes("/") ? (file.split("/")[0] as string) : "");

test("every folder is a room", () => {
  expect([...new Set(files.map(roomOf))].sort()).toEqual(["", ...ROOMS].sort());
});

test("a room imports only rooms above it", () => {
  const wrong: string[] = [];
  for (const file of files) {
    const room = ROOMS.indexOf(roomOf(file));
    if (room < 0) continue;
    for (const { file: target, specifier } of importsOf(file)) {
      if (target === null || !target.endsWith(".ts")) continue;
      const other = ROOMS.indexOf(roomOf(target));
      if (other < 0 || other > room) wrong.push(`${file} imports ${specifier}`);
    }
  }
  expect(wrong).toEqual([]);
});

test("only src/native/ calls the native library", () => {
  const callers = files.filter((file) =>
    importsOf(file).some(({ specifier, typeOnly }) => specifier === "bun:ffi" && !typeOnly),
  );
  expect(callers.filter((file) => roomOf(file) !== "native")).toEqual([]);
  expect(callers.length).toBeGreaterThan(0);
});

test("no file needs itself by way of others", () => {
  const done = new Set<string>();
  const visit = (file: string, path: string[]): void => {
    if (path.includes(file)) throw new Error(`circle: ${[...path.slice(path.indexOf(file)), file].join(" -> ")}`);
    if (done.has(file)) return;
    for (const { file: target, typeOnly } of importsOf(file)) {
      if (target?.endsWith(".ts") && !typeOnly) visit(target, [...path, file]);
    }
    done.add(file);
  };
  for (const file of files) visit(file, []);
  expect(done.size).toBeGreaterThanOrEqual(files.length);
});
