/** `minisgl generate`: answers one prompt on the terminal, or a file of prompts as JSON lines. */
import { createWriteStream, openSync, readFileSync } from "node:fs";
import type { Writable } from "node:stream";
import type { ChatMessage, GenerationParameters, Prompt, RuntimeInterface } from "../runtime/types.ts";
import { describe, UserError } from "./errors.ts";

export interface GenerateFlags {
  prompts?: string;
  output?: string;
  chat?: boolean;
  stats?: boolean;
}

/** The result of one prompt, as a line of the output has it. */
interface Result {
  index: number;
  text: string;
  tokens: number[];
  finish_reason: string | null;
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
}

/** What is to be answered and where the answers go: found before a model is loaded for it. */
export interface GenerateJob {
  prompts: Prompt[];
  /** Stream the one answer as it is, instead of a JSON line per prompt. */
  streamed: boolean;
  output: Writable;
  stats: boolean;
}

/**
 * The job of a command line: `text` ("-" or nothing: standard input), or the file of --prompts.
 * Throws a UserError where a file cannot be read or written, and for an empty prompt.
 */
export async function prepareJob(text: string | undefined, flags: GenerateFlags): Promise<GenerateJob> {
  const { chat = false, stats = false } = flags;
  const streamed = flags.prompts === undefined;
  if (text !== undefined && !streamed) throw new UserError("give a prompt or --prompts, not both");
  const prompts =
    flags.prompts === undefined ? [toPrompt(await readPrompt(text), chat)] : readPrompts(flags.prompts, chat);
  return { prompts, streamed, output: openOutput(flags.output), stats };
}

async function readPrompt(text: string | undefined): Promise<string> {
  // The newline that ends the last line, as of `echo`, is not meant for the model.
  const prompt = text === undefined || text === "-" ? (await Bun.stdin.text()).replace(/\r?\n$/, "") : text;
  if (prompt === "") throw new UserError("the prompt is empty");
  return prompt;
}

function openOutput(path: string | undefined): Writable {
  if (path === undefined) return process.stdout;
  try {
    return createWriteStream(path, { fd: openSync(path, "w") });
  } catch (error) {
    throw new UserError(`cannot write the answers: ${describe(error)}`);
  }
}

/**
 * Runs a job. Every prompt is in flight at once as far as the queue allows, and results come in the prompts' order.
 * Throws a UserError if some failed.
 */
export async function generate(
  runtime: RuntimeInterface,
  job: GenerateJob,
  parameters: GenerationParameters,
  signal: AbortSignal,
): Promise<void> {
  const failures = job.streamed
    ? await stream(runtime, job, parameters, signal)
    : await answerAll(runtime, job, parameters, signal);
  if (job.output !== process.stdout) await new Promise<void>((resolve) => job.output.end(resolve));
  if (failures > 0) throw new UserError(`${failures} of ${job.prompts.length} prompts failed`);
}

/**
 * The prompts of a file: each line of a text, or each line of a .jsonl: a string, {"prompt": ...}, {"messages": [...]}
 * or {"tokens": [...]}. Throws a UserError that names the line.
 */
export function readPrompts(path: string, chat: boolean): Prompt[] {
  const lines = readText(path)
    .split(/\r?\n/)
    .map((line, index) => ({ line, index }));
  const filled = lines.filter(({ line }) => line.trim() !== "");
  if (filled.length === 0) throw new UserError(`${path} holds no prompts`);
  if (!/\.jsonl?$/.test(path)) return filled.map(({ line }) => toPrompt(line, chat));
  return filled.map(({ line, index }) => {
    const prompt = parseRecord(line, chat);
    if (prompt === null) {
      throw new UserError(
        `${path}:${index + 1}: expected a JSON string or an object with "prompt", "messages" or "tokens"`,
      );
    }
    return prompt;
  });
}

/** A text in UTF-8, less the byte order mark that editors put before it. */
function readText(path: string): string {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw new UserError(`cannot read the prompts: ${describe(error)}`);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new UserError(`${path} is not a text in UTF-8`);
  }
}

function parseRecord(line: string, chat: boolean): Prompt | null {
  let record: unknown;
  try {
    record = JSON.parse(line);
  } catch {
    return null;
  }
  if (typeof record === "string") return toPrompt(record, chat);
  if (typeof record !== "object" || record === null) return null;
  const { prompt, messages, tokens } = record as Record<string, unknown>;
  if (typeof prompt === "string") return toPrompt(prompt, chat);
  if (Array.isArray(tokens) && tokens.every(Number.isInteger)) return { tokens };
  const isMessage = (message: unknown) =>
    typeof (message as ChatMessage | null)?.role === "string" && typeof (message as ChatMessage).content === "string";
  if (Array.isArray(messages) && messages.length > 0 && messages.every(isMessage)) return { messages };
  return null;
}

function toPrompt(text: string, chat: boolean): Prompt {
  return chat ? { messages: [{ role: "user", content: text }] } : { text };
}

async function stream(
  runtime: RuntimeInterface,
  { prompts, output, stats }: GenerateJob,
  parameters: GenerationParameters,
  signal: AbortSignal,
): Promise<number> {
  const begin = performance.now();
  const generation = await runtime.generate(prompts[0] as Prompt, parameters, signal);
  let first = 0;
  let last = "\n";
  for await (const event of generation) {
    if (first === 0) first = performance.now();
    if (event.text === "") continue;
    output.write(event.text);
    last = event.text;
  }
  if (process.stdout.isTTY && !last.endsWith("\n")) process.stdout.write("\n");
  if (stats) process.stderr.write(`${describeSpeed(generation, begin, first, performance.now())}\n`);
  return 0;
}

/** "12 prompt tokens (0 cached), 34 tokens at 56.7 a second, the first after 0.12 s". Times in milliseconds. */
export function describeSpeed(
  answer: { promptTokens: readonly number[]; cachedTokens: number; completionTokens: number },
  begin: number,
  first: number,
  end: number,
): string {
  const { promptTokens, cachedTokens, completionTokens } = answer;
  const rate =
    completionTokens > 1 ? ` at ${(((completionTokens - 1) * 1000) / (end - first)).toFixed(1)} a second` : "";
  const wait = ((first - begin) / 1000).toFixed(2);
  return `${promptTokens.length} prompt tokens (${cachedTokens} cached), ${completionTokens} tokens${rate}, the first after ${wait} s`;
}

/** Writes a line per prompt, in order, and the speed of all together to standard error; returns how many failed. */
async function answerAll(
  runtime: RuntimeInterface,
  { prompts, output, stats }: GenerateJob,
  parameters: GenerationParameters,
  signal: AbortSignal,
): Promise<number> {
  const lines: (string | undefined)[] = new Array(prompts.length);
  let next = 0;
  let written = 0;
  let failures = 0;
  const begin = performance.now();
  const total = { promptTokens: 0, cachedTokens: 0, completionTokens: 0 };
  const worker = async (): Promise<void> => {
    while (next < prompts.length && !signal.aborted) {
      const index = next++;
      try {
        const result = await answer(runtime, prompts[index] as Prompt, index, parameters, signal);
        total.promptTokens += result.prompt_tokens;
        total.cachedTokens += result.cached_tokens;
        total.completionTokens += result.completion_tokens;
        lines[index] = JSON.stringify(result);
      } catch (error) {
        failures++;
        lines[index] = JSON.stringify({ index, error: describe(error) });
      }
      for (; lines[written] !== undefined; written++) output.write(`${lines[written]}\n`);
    }
  };
  await Promise.all(Array.from({ length: Math.min(prompts.length, 2 * runtime.info.maxRunningRequests) }, worker));
  if (stats) process.stderr.write(`${describeTotal(total, (performance.now() - begin) / 1000)}\n`);
  return failures;
}

/** "12 prompt tokens (0 cached), 34 tokens in 0.50 s, 68.0 a second": of many answers together. */
export function describeTotal(
  total: { promptTokens: number; cachedTokens: number; completionTokens: number },
  seconds: number,
): string {
  const { promptTokens, cachedTokens, completionTokens } = total;
  const rate = (completionTokens / seconds).toFixed(1);
  return `${promptTokens} prompt tokens (${cachedTokens} cached), ${completionTokens} tokens in ${seconds.toFixed(2)} s, ${rate} a second`;
}

async function answer(
  runtime: RuntimeInterface,
  prompt: Prompt,
  index: number,
  parameters: GenerationParameters,
  signal: AbortSignal,
): Promise<Result> {
  const generation = await runtime.generate(prompt, parameters, signal);
  const result: Result = {
    index,
    text: "",
    tokens: [],
    finish_reason: null,
    prompt_tokens: generation.promptTokens.length,
    cached_tokens: 0,
    completion_tokens: 0,
  };
  for await (const event of generation) {
    result.text += event.text;
    result.tokens.push(...event.tokens);
    result.finish_reason = event.finishReason;
  }
  result.cached_tokens = generation.cachedTokens;
  result.completion_tokens = generation.completionTokens;
  return result;
}
