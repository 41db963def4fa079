/**
 * The bench room: what is measured, apart from the options that ask for it. Read workload.ts (what is sent), drive.ts
 * (how it is sent and timed), a file per benchmark, roofline.ts (what the hardware would allow), report.ts.
 */
import { inputLengths, outputLengths } from "./offline-lengths.ts";

/** A request of a benchmark: random token ids, and as many tokens to answer whatever they are. */
export interface WorkItem {
  tokens: number[];
  maxTokens: number;
}

/** Prompt ids of the offline benchmark are below this. */
const PROMPT_IDS = 10000;

/** A small generator (splitmix32): the same ids in every run, uniform in 0 .. 1. */
export function uniform(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let word = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
    return ((word ^ (word >>> 15)) >>> 0) / 2 ** 32;
  };
}

/** Prompts and answers of the given lengths, with ids that the vocabulary has. No two prompts share a prefix by plan. */
export function randomItems(
  shapes: readonly { input: number; output: number }[],
  vocabularySize: number,
  seed = 0,
): WorkItem[] {
  const draw = uniform(seed);
  const ids = Math.min(PROMPT_IDS, vocabularySize);
  return shapes.map(({ input, output }) => ({
    tokens: Array.from({ length: input }, () => Math.floor(draw() * ids)),
    maxTokens: output,
  }));
}

/**
 * The offline benchmark of Nano-vLLM and Mini-SGLang: 256 sequences, prompts and answers of 100 to 1024 tokens as
 * Python's random gives them for seed 0. `sequences` takes the first few, `scale` shortens all lengths.
 */
export function offlineItems(vocabularySize: number, sequences = 256, scale = 1): WorkItem[] {
  const scaled = (length: number) => Math.max(1, Math.round(length * scale));
  const shapes = inputLengths
    .slice(0, sequences)
    .map((input, index) => ({ input: scaled(input), output: scaled(outputLengths[index] as number) }));
  return randomItems(shapes, vocabularySize);
}
