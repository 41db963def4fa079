/** `minisgl score`: logprobs of given continuations, by which models, types and devices are compared. */
import { readFileSync } from "node:fs";
import { z } from "zod";
import { loadEngine } from "../engine/load.ts";
import { logprob, runLone } from "../engine/lone.ts";
import type { EngineOptions } from "../message/types.ts";
import { describe, UserError } from "./errors.ts";

const tokens = z.array(z.int().nonnegative()).min(1);
const lineSchema = z.object({ prompt: tokens, continuation: tokens });
type Line = z.infer<typeof lineSchema>;

/**
 * Reads lines of {"prompt": [ids], "continuation": [ids]} and prints for each one of {"logprobs": [...], "tokens": [...]}:
 * the logprob of each token of the continuation, and the most probable token in its place.
 * @throws UserError naming the line that cannot be scored
 */
export async function score(file: string, chunk: number, options: EngineOptions): Promise<void> {
  const lines = readLines(file);
  const { engine, info } = await loadEngine(options);
  if (info.warning !== null) process.stderr.write(`minisgl: ${info.warning}\n`);
  try {
    lines.forEach((line, index) => {
      check(line, index, engine.maxContext, info.vocabularySize);
      const { prompt, continuation } = line;
      const size = Math.min(chunk || engine.limits.maxTokens, engine.limits.maxTokens);
      const result = runLone(engine, prompt, continuation.length, { forced: continuation, chunk: size });
      const logprobs = result.logits.map((logits, at) => logprob(logits, continuation[at] as number));
      console.log(JSON.stringify({ logprobs, tokens: result.tokens }));
    });
  } finally {
    engine.close();
  }
}

function readLines(file: string): Line[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw new UserError(`cannot read what is to be scored: ${describe(error)}`);
  }
  return text
    .split("\n")
    .filter((line) => line.trim() !== "")
    .map((line, index) => {
      try {
        return lineSchema.parse(JSON.parse(line));
      } catch {
        throw new UserError(`${file}, line ${index + 1}: expected {"prompt": [ids], "continuation": [ids]}`);
      }
    });
}

function check({ prompt, continuation }: Line, index: number, context: number, vocabulary: number): void {
  const length = prompt.length + continuation.length;
  if (length > context) throw new UserError(`line ${index + 1} has ${length} tokens, the context ${context}`);
  const outside = [...prompt, ...continuation].find((token) => token >= vocabulary);
  if (outside !== undefined) {
    throw new UserError(`line ${index + 1}: token ${outside} is outside the vocabulary of ${vocabulary}`);
  }
}
