/**
 * What GPU tests share. They import nothing from node_modules and drive the executable from outside, so that a GPU host
 * needs only it and the tracked files: BUN_BE_BUN=1 ./minisgl test test/gpu
 */
import { existsSync, mkdtempSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dir, "../..");
const folder = join(root, "test/parity/fixtures");

/** The executable under test; MINISGL_DEVICE chooses another device than a GPU to try the tests themselves. */
export const executable = process.env.MINISGL_EXECUTABLE ?? join(root, "minisgl");
export const device = process.env.MINISGL_DEVICE ?? "cuda";

export const fixtures = readdirSync(folder).filter((name) => existsSync(join(folder, name, "expected.json")));
export const fixturePath = (name: string) => join(folder, name);
export const scratch = mkdtempSync(join(tmpdir(), "minisgl-gpu-"));

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

/** Logprobs of the reference's continuations on the device, by `minisgl score`. */
export async function score(name: string, reference: Expected, ...flags: string[]): Promise<Scored[]> {
  const file = join(scratch, `${name}.jsonl`);
  const lines = reference.prompts.map((prompt, index) => ({ prompt, continuation: reference.tokens[index] }));
  await Bun.write(file, lines.map((line) => JSON.stringify(line)).join("\n"));
  const output = await run("score", file, "--model", fixturePath(name), "--device", device, ...flags);
  return output
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

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
