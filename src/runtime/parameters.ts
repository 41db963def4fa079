/** Checks what a request asks for and decides every field that it leaves open. */
import type { GenerationDefaults } from "../checkpoint/types.ts";
import type { Sampling } from "../message/types.ts";
import { type ChatMessage, type GenerationParameters, InvalidRequest, type Prompt } from "./types.ts";

const MAX_STOP_STRINGS = 64;
const MAX_STOP_LENGTH = 1024;
const MAX_STOP_TOKEN_IDS = 256;

/** A request's parameters, checked; only maxTokens waits for the prompt's length. */
export interface CheckedParameters {
  sampling: Sampling;
  stop: readonly string[];
  stopTokenIds: readonly number[];
  ignoreEos: boolean;
  maxTokens: number | undefined;
}

/** What parameters are checked against. */
export interface ParameterContext {
  defaults: GenerationDefaults;
  vocabularySize: number;
  /** False where the model has no tokenizer: stop strings cannot be found then. */
  hasText: boolean;
}

/** @throws InvalidRequest naming the field. */
export function checkParameters(parameters: GenerationParameters, context: ParameterContext): CheckedParameters {
  const { defaults } = context;
  const stop = parameters.stop ?? [];
  const stopTokenIds = parameters.stopTokenIds ?? [];
  const maxTokens = parameters.maxTokens ?? undefined;
  if (maxTokens !== undefined) checkInteger(maxTokens, "maxTokens", 1, Number.MAX_SAFE_INTEGER);
  checkStop(stop, context.hasText);
  if (stopTokenIds.length > MAX_STOP_TOKEN_IDS) {
    throw new InvalidRequest(`at most ${MAX_STOP_TOKEN_IDS} stop token ids can be given`, "stopTokenIds");
  }
  checkTokens(stopTokenIds, context.vocabularySize, "stopTokenIds");
  const topK = parameters.topK ?? defaults.topK ?? 0;
  const sampling: Sampling = {
    temperature: parameters.temperature ?? defaults.temperature ?? 1,
    topK: topK === -1 ? 0 : topK,
    topP: parameters.topP ?? defaults.topP ?? 1,
    minP: parameters.minP ?? defaults.minP ?? 0,
    seed: parameters.seed ?? Math.floor(Math.random() * 2 ** 53),
  };
  checkRange(sampling.temperature, "temperature", "0 or more", (value) => value >= 0);
  checkInteger(sampling.topK, "topK", 0, 2 ** 31 - 1);
  checkRange(sampling.topP, "topP", "above 0 and at most 1", (value) => value > 0 && value <= 1);
  checkRange(sampling.minP, "minP", "between 0 and 1", (value) => value >= 0 && value <= 1);
  checkInteger(sampling.seed, "seed", 0, Number.MAX_SAFE_INTEGER);
  return { sampling, stop, stopTokenIds, ignoreEos: parameters.ignoreEos ?? false, maxTokens };
}

/**
 * The number of tokens to generate at most: `maxTokens`, or what fits.
 * @throws InvalidRequest if prompt and answer are longer than the context.
 */
export function fitContext(
  promptTokens: number,
  maxTokens: number | undefined,
  maxContext: number,
  promptParameter = "prompt",
): number {
  const room = maxContext - promptTokens;
  if (room < 1) {
    throw new InvalidRequest(
      `the prompt has ${promptTokens} tokens, and the context of ${maxContext} leaves no room for an answer`,
      promptParameter,
      "context_length_exceeded",
    );
  }
  if (maxTokens !== undefined && maxTokens > room) {
    throw new InvalidRequest(
      `the prompt has ${promptTokens} tokens and ${maxTokens} are asked for, but the context holds ${maxContext}`,
      "maxTokens",
      "context_length_exceeded",
    );
  }
  return maxTokens ?? room;
}

/** @throws InvalidRequest unless every id is an integer within the vocabulary. */
export function checkTokens(tokens: readonly number[], vocabularySize: number, parameter: string): void {
  for (const token of tokens) {
    if (!Number.isInteger(token) || token < 0 || token >= vocabularySize) {
      throw new InvalidRequest(`token id ${token} is not within the vocabulary of ${vocabularySize}`, parameter);
    }
  }
}

/** Memory that a waiting prompt takes, about. */
export function promptBytes(prompt: Prompt): number {
  if ("text" in prompt) return prompt.text.length;
  if ("tokens" in prompt) return prompt.tokens.length * 4;
  return prompt.messages.reduce((sum, { content }: ChatMessage) => sum + (content?.length ?? 0), 0);
}

function checkStop(stop: readonly string[], hasText: boolean): void {
  if (stop.length === 0) return;
  if (!hasText) throw new InvalidRequest("this model has no tokenizer, so it cannot stop at strings", "stop");
  if (stop.length > MAX_STOP_STRINGS) {
    throw new InvalidRequest(`at most ${MAX_STOP_STRINGS} stop strings can be given, not ${stop.length}`, "stop");
  }
  for (const text of stop) {
    if (typeof text !== "string" || text.length === 0) {
      throw new InvalidRequest("a stop string must be a string that is not empty", "stop");
    }
    if (text.length > MAX_STOP_LENGTH) {
      throw new InvalidRequest(`a stop string has at most ${MAX_STOP_LENGTH} characters, not ${text.length}`, "stop");
    }
  }
}

/** What messages call a field, whatever the reader's API calls it. */
const LABELS = {
  maxTokens: "the number of tokens to generate",
  temperature: "the temperature",
  topK: "top-k",
  topP: "top-p",
  minP: "min-p",
  seed: "the seed",
} as const;
type NumberField = keyof typeof LABELS;

function checkRange(value: number, parameter: NumberField, range: string, inRange: (value: number) => boolean): void {
  if (!Number.isFinite(value) || !inRange(value)) {
    throw new InvalidRequest(`${LABELS[parameter]} must be ${range}, not ${value}`, parameter);
  }
}

function checkInteger(value: number, parameter: NumberField, least: number, most: number): void {
  if (!Number.isInteger(value) || value < least || value > most) {
    throw new InvalidRequest(
      `${LABELS[parameter]} must be an integer from ${least} to ${most}, not ${value}`,
      parameter,
    );
  }
}
