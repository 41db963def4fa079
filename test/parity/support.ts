/** What parity tests share: fixtures, and an engine driven directly, a sequence at a time. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { Engine } from "../../src/engine/engine.ts";
import { loadEngine } from "../../src/engine/load.ts";
import type { EngineOptions, Sampling } from "../../src/message/types.ts";

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

export const greedy: Sampling = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0 };

export function engineOptions(model: string, overrides: Partial<EngineOptions> = {}): EngineOptions {
  return {
    model,
    dtype: "float32",
    device: "cpu",
    threads: 0,
    dummyWeight: false,
    tensorParallelSize: 1,
    maxRunningRequests: 8,
    maxSequenceLength: 0,
    maxPrefillLength: 256,
    memoryRatio: 0,
    numPages: 1024,
    pageSize: 1,
    cache: "radix",
    graphMaxBatchSize: 0,
    attention: { prefill: "auto", decode: "auto" },
    overlap: true,
    ...overrides,
  };
}

/** An engine on a fixture, closed by `await using`. */
export async function openEngine(name: string, overrides: Partial<EngineOptions> = {}) {
  const { engine } = await loadEngine(engineOptions(fixturePath(name), overrides));
  return Object.assign(engine, { [Symbol.dispose]: () => engine.close() });
}

/** Runs one sequence alone in slot 0 with pages 0, 1, 2, ...: the plainest use of an engine. */
export function runAlone(
  engine: Engine,
  prompt: readonly number[],
  count: number,
  options: { chunk?: number; sampling?: Sampling; forced?: readonly number[] } = {},
): { tokens: number[]; logits: Float32Array[] } {
  const { chunk = prompt.length, sampling = greedy, forced } = options;
  const pages = Array.from({ length: Math.ceil((prompt.length + count) / engine.pageSize) }, (_, page) => page);
  const tokens: number[] = [];
  const logits: Float32Array[] = [];
  let computed = 0;
  while (tokens.length < count) {
    const ids = [...prompt, ...(forced ?? tokens).slice(0, tokens.length)];
    const end = Math.min(computed + chunk, ids.length);
    const last = end === ids.length;
    const batch = engine.nextBatch();
    if (computed === 0) batch.pagePatches.write(0, 0, pages, 0, pages.length);
    batch.tokenPatches.write(0, computed, ids, computed, end);
    batch.add(0, computed, end - computed, last && tokens.length > 0, last ? sampling : null);
    engine.launch(batch);
    computed = end;
    if (!last) continue;
    tokens.push(engine.collect(batch)[0] as number);
    logits.push(engine.logits());
  }
  return { tokens, logits };
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

/** log softmax of one value. */
export function logprob(logits: Float32Array, token: number): number {
  let largest = Number.NEGATIVE_INFINITY;
  for (const value of logits) largest = Math.max(largest, value);
  let sum = 0;
  for (const value of logits) sum += Math.exp(value - largest);
  return (logits[token] as number) - largest - Math.log(sum);
}
