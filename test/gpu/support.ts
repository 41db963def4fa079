/**
 * What GPU tests share. They import nothing from node_modules and drive the executable from outside, so that a GPU host
 * needs only it and the tracked files: BUN_BE_BUN=1 ./minisgl test test/gpu
 */
import { expect } from "bun:test";
import { existsSync, mkdtempSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

const root = join(import.meta.dir, "../..");
const folder = join(root, "test/parity/fixtures");

/** The executable under test; MINISGL_DEVICE chooses another device than a GPU to try the tests themselves. */
export const executable = process.env.MINISGL_EXECUTABLE ?? join(root, "minisgl");
export const device = process.env.MINISGL_DEVICE ?? "cuda";

export const fixtures = readdirSync(folder).filter((name) => existsSync(join(folder, name, "expected.json")));
export const fixturePath = (name: string) => join(folder, name);
export const scratch = mkdtempSync(join(tmpdir(), "minisgl-gpu-"));

/** A GGUF file that is not among the tracked ones: see the README. */
export const demoModel = process.env.MINISGL_DEMO_MODEL ?? join(root, "models/SmolLM2-135M-Instruct.Q4_1.gguf");
export const demoReference = join(root, "test/parity/demo-model.json");

/**
 * What half precision may change a logprob of a fixture by. Activations, weights and the KV pool are rounded to 8
 * (bfloat16) or 11 (float16) bits at some ten places in each of two layers. A rounding errs by 2^-8 or 2^-11 at most and
 * by 0.4 of that on average, so twenty of them add up to 0.7% or 0.09% of the logits, of magnitude 2 to 4.3: 0.03 or
 * 0.004, and the largest of a thousand is three times as far off. A wrong rotation, scale or page gives
 * differences of order 1.
 */
export const bounds = { bfloat16: 0.1, float16: 0.015 } as const;

/** As the executable runs for a user: not as Bun. */
const env = { ...process.env, BUN_BE_BUN: undefined };

/** What transformers computed: see scripts/make-fixtures.py. */
export interface Expected {
  prompts: number[][];
  tokens: number[][];
  logprobs: number[][];
  gaps: number[][];
}

export const expected = (name: string): Promise<Expected> => Bun.file(join(folder, name, "expected.json")).json();

/** Runs a command of the executable; its standard output. Throws with standard error if it fails. */
export async function run(...args: string[]): Promise<string> {
  const child = Bun.spawn([executable, ...args], { env, stdout: "pipe", stderr: "pipe" });
  const [output, errors, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  if (code !== 0) throw new Error(`minisgl ${args[0]} ended with ${code}: ${errors}${output}`);
  return output;
}

export interface Scored {
  logprobs: number[];
  tokens: number[];
}

/** Logprobs of the reference's continuations by a model on the device, by `minisgl score`. */
export async function score(model: string, reference: Expected, ...flags: string[]): Promise<Scored[]> {
  const file = join(scratch, `${basename(model)}.jsonl`);
  const lines = reference.prompts.map((prompt, index) => ({ prompt, continuation: reference.tokens[index] }));
  await Bun.write(file, lines.map((line) => JSON.stringify(line)).join("\n"));
  const output = await run("score", file, "--model", model, "--device", device, ...flags);
  return output
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

/** Largest difference of logprobs. */
export function difference(one: readonly { logprobs: number[] }[], other: { logprobs: number[][] }): number {
  const differences = one.flatMap(({ logprobs }, index) => {
    const others = other.logprobs[index] as number[];
    expect(logprobs.length).toBe(others.length);
    return logprobs.map((value, step) => Math.abs(value - (others[step] as number)));
  });
  return Math.max(...differences);
}

export interface Drawn {
  token_ids: number[];
  /** Tokens are named "token_id:7". */
  logprobs: { token_logprobs: number[]; top_logprobs: Record<string, number>[] };
}

export interface Choice extends Drawn {
  finish_reason: string;
  prompt_logprobs: (Record<string, { logprob: number }> | null)[];
}

export interface Completion {
  choices: Choice[];
  usage: { prompt_tokens_details: { cached_tokens: number } };
}

/** /v1/completions with token ids instead of text. */
export async function complete(url: string, body: object, signal?: AbortSignal): Promise<Completion> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ignore_eos: true, return_token_ids: true, return_tokens_as_token_ids: true, ...body }),
    signal,
  });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return response.json() as Promise<Completion>;
}

export async function serverInfo(url: string): Promise<Record<string, number>> {
  return (await fetch(`${url}/server_info`)).json() as Promise<Record<string, number>>;
}

/** What two runs in bfloat16 may differ by: both are within the bound of the exact logprobs. */
export const rounding = 2 * bounds.bfloat16;

/**
 * Expects two greedy answers to each prompt to have the same logprobs but for rounding, as long as the tokens before are
 * the same; at least so many are. Where two logits are close, another token may be drawn, with a logprob that is close as
 * well: from there on the answers have nothing in common.
 */
export function expectAlike(what: string, one: readonly Drawn[], other: readonly Drawn[], least: number): void {
  let [compared, largest] = [0, 0];
  for (const [index, { token_ids, logprobs }] of one.entries()) {
    const { token_ids: tokens, logprobs: others } = other[index] as Drawn;
    expect(token_ids.length).toBe(tokens.length);
    for (const [i, token] of token_ids.entries()) {
      const [a, b] = [logprobs.token_logprobs[i] as number, others.token_logprobs[i] as number];
      largest = Math.max(largest, Math.abs(a - b));
      compared++;
      if (token !== tokens[i]) break;
    }
  }
  console.log(`${what}: ${compared} logprobs differ by at most ${largest.toFixed(4)}`);
  expect(largest).toBeLessThan(rounding);
  expect(compared).toBeGreaterThan(least);
}

/** A prompt of random tokens that every fixture has. */
export const randomPrompt = (draw: () => number, length: number) =>
  Array.from({ length }, () => 3 + Math.floor(draw() * 90));

/** A server on a free port, stopped by `await using`. */
export async function startServer(...flags: string[]) {
  const args = ["serve", "--port", "0", "--device", device, ...flags];
  const child = Bun.spawn([executable, ...args], { env, stdout: "pipe", stderr: "inherit" });
  let text = "";
  const decoder = new TextDecoder();
  for await (const chunk of child.stdout) {
    text += decoder.decode(chunk, { stream: true });
    const url = text.match(/http:\/\/[^\s/]+/)?.[0];
    if (url === undefined) continue;
    const stop = async () => {
      child.kill("SIGTERM");
      await child.exited;
    };
    return { url, [Symbol.asyncDispose]: stop };
  }
  throw new Error(`the server did not start: ${text}`);
}
