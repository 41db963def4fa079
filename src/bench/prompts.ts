/** Prompts of the asked number of tokens, for servers whose tokenizer is not known here. */
import { type PromptContent, stream, type Target } from "./online-client.ts";
import { randomItems, uniform } from "./workload.ts";

/** Makes the prompt of the index-th request, with as near to `length` tokens as the server's template allows. */
export type MakePrompt = (length: number, index: number) => PromptContent;

/** Random token ids below `vocabularySize`; no two prompts share a prefix by plan. */
export function tokenPrompts(vocabularySize: number, seed: number): MakePrompt {
  return (input, index) => randomItems([{ input, output: 1 }], vocabularySize, mix(seed, index))[0].tokens;
}

/** Words that are one token with the space before them in the vocabularies in use. */
const WORDS =
  `the of and to in is that it was for on are with as his they at be this from have or by one had not but what all
  were when we there can an your which their said if do will each about how up out them then she many some so these
  would other into has more her two like him see time could no make than first been its who now people my made over
  did down only way find use may water long little very after words called just where most know`.split(/\s+/);

/** Numbers of words that are sent to learn what a prompt costs. */
const PROBES = [16, 272];

/**
 * Random words. How many tokens a word has, and how many the chat template adds, is learnt from the usage that the
 * server gives for two short requests.
 * @throws Error where the server refuses those or counts no tokens
 */
export async function textPrompts(target: Target, seed: number): Promise<MakePrompt> {
  const counts: number[] = [];
  for (const words of PROBES) {
    const { inputTokens } = await stream(target, randomWords(words, seed), 1);
    if (inputTokens === 0)
      throw new Error("the server gives no usage, so that no prompt can be made of a given length");
    counts.push(inputTokens);
  }
  const perWord = (counts[1] - counts[0]) / (PROBES[1] - PROBES[0]);
  const added = counts[0] - perWord * PROBES[0];
  return (length, index) => randomWords(Math.max(1, Math.round((length - added) / perWord)), mix(seed, index));
}

function randomWords(count: number, seed: number): string {
  const draw = uniform(seed);
  return Array.from({ length: count }, () => WORDS[Math.floor(draw() * WORDS.length)]).join(" ");
}

/** A seed for each request of a run. */
const mix = (seed: number, index: number) => Math.imul(seed + 1, 0x85ebca6b) ^ (index + 1);
