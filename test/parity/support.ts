/** What parity tests share: fixtures, and engines on them. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { loadEngine } from "../../src/engine/load.ts";
import type { EngineOptions } from "../../src/message/types.ts";
import { DEFAULT_OPTIONS } from "../../src/runtime/options.ts";

const root = join(import.meta.dir, "fixtures");

/** Names of the fixtures that scripts/make-fixtures.py made. */
export const fixtures = readdirSync(root).filter((name) => existsSync(join(root, name, "expected.json")));
export const fixturePath = (name: string) => join(root, name);

/** What transformers computed: see scripts/make-fixtures.py. */
export interface Expected {
  prompts: number[][];
  tokens: number[][];
  logits: number[][];
  logprobs: number[][];
  gaps: number[][];
}

export const expected = (name: string): Promise<Expected> => Bun.file(join(root, name, "expected.json")).json();

export function engineOptions(model: string, overrides: Partial<EngineOptions> = {}): EngineOptions {
  const small = { maxRunningRequests: 8, maxPrefillLength: 256, numPages: 1024, graphMaxBatchSize: 0 };
  return { ...DEFAULT_OPTIONS, model, dtype: "float32", device: "cpu", ...small, ...overrides };
}

/** An engine on a fixture, closed by `await using`. */
export async function openEngine(name: string, overrides: Partial<EngineOptions> = {}) {
  const { engine } = await loadEngine(engineOptions(fixturePath(name), overrides));
  return Object.assign(engine, { [Symbol.dispose]: () => engine.close() });
}

/** max|a - b| / max|b|. */
export function relativeError(actual: ArrayLike<number>, reference: ArrayLike<number>): number {
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < reference.length; i++) {
    difference = Math.max(difference, Math.abs((actual[i] as number) - (reference[i] as number)));
    largest = Math.max(largest, Math.abs(reference[i] as number));
  }
  return difference / largest;
}
