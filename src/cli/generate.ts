/** `minisgl generate`: answers one prompt on the terminal, or a file of prompts as JSON lines. */
import { createWriteStream, readFileSync } from "node:fs";
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

/**
 * Runs the command. Without a file, `text` is the prompt ("-" or nothing: standard input) and the answer is streamed.
 * With a file, every prompt is in flight at once as far as the queue allows, and results come in the file's order.
 */
export async function generate(
  runtime: RuntimeInterface,
  text: string | undefined,
  flags: GenerateFlags,
  parameters: GenerationParameters,
  signal: AbortSignal,
): Promise<void> {
  if (flags.prompts === undefined) {
    const prompt = toPrompt(text === undefined || text === "-" ? await Bun.stdin.text() : text, flags.chat ?? false);
    await stream(runtime, prompt, parameters, flags, signal);
    return;
  }
  const prompts = readPrompts(flags.prompts, flags.chat ?? false);
  const failures = await answerAll(runtime, prompts, parameters, flags, signal);
  if (failures > 0) throw new UserError(`${failures} of ${prompts.length} prompts failed`);
}

/**
 * The prompts of a file: each line of a text, or each line of a .jsonl: a string, {"prompt": ...}, {"messages": [...]}
 * or {"tokens": [...]}. Throws a UserError that names the line.
 */
export function readPrompts(path: string, chat: boolean): Prompt[] {
  let content: string;
  try {
    content = readFileSync(path, "utf8");
  } catch (error) {
    throw new UserError(`cannot read the prompts: ${describe(error)}`);
  }
  const lines = content.split(/\r?\n/).map((line, index) => ({ line, index }));
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
  prompt: Prompt,
  parameters: GenerationParameters,
  flags: GenerateFlags,
  signal: AbortSignal,
): Promise<void> {
  const output = flags.output === undefined ? process.stdout : createWriteStream(flags.output);
  const begin = performance.now();
  const generation = await runtime.generate(prompt, parameters, signal);
  let first = 0;
  let last = "\n";
  for await (const event of generation) {
    if (first === 0) first = performance.now();
    if (event.text === "") continue;
    output.write(event.text);
    last = event.text;
  }
  if (process.stdout.isTTY && !last.endsWith("\n")) process.stdout.write("\n");
  if (output !== process.stdout) await new Promise<void>((resolve) => output.end(resolve));
  if (flags.stats) process.stderr.write(`${describeSpeed(generation, begin, first, performance.now())}\n`);
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

/** Writes a line per prompt, in order; returns how many failed. */
async function answerAll(
  runtime: RuntimeInterface,
  prompts: Prompt[],
  parameters: GenerationParameters,
  flags: GenerateFlags,
  signal: AbortSignal,
): Promise<number> {
  const output = flags.output === undefined ? process.stdout : createWriteStream(flags.output);
  const lines: (string | undefined)[] = new Array(prompts.length);
  let next = 0;
  let written = 0;
  let failures = 0;
  const worker = async (): Promise<void> => {
    while (next < prompts.length && !signal.aborted) {
      const index = next++;
      try {
        lines[index] = JSON.stringify(await answer(runtime, prompts[index] as Prompt, index, parameters, signal));
      } catch (error) {
        failures++;
        lines[index] = JSON.stringify({ index, error: describe(error) });
      }
      for (; lines[written] !== undefined; written++) output.write(`${lines[written]}\n`);
    }
  };
  await Promise.all(Array.from({ length: Math.min(prompts.length, runtime.info.maxRunningRequests) }, worker));
  if (output !== process.stdout) await new Promise<void>((resolve) => output.end(resolve));
  return failures;
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
