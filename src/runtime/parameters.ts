/** Checks what a request asks for and decides every field that it leaves open. */
import type { GenerationDefaults } from "../checkpoint/types.ts";
import type { LogitBias, Penalties, Request, Sampling } from "../message/types.ts";
import { type ChatMessage, type GenerationParameters, InvalidRequest, type Prompt } from "./types.ts";

const MAX_STOP_STRINGS = 64;
const MAX_STOP_LENGTH = 1024;
const MAX_STOP_TOKEN_IDS = 256;
const MAX_LOGIT_BIAS = 1024;
const MAX_LOGPROBS = 20;
const MAX_SALT_LENGTH = 1024;

/** A request's parameters, checked; only maxTokens waits for the prompt's length. */
export interface CheckedParameters extends Omit<Request, "uid" | "tokens" | "queuedAt" | "maxTokens"> {
  stop: readonly string[];
  skipSpecialTokens: boolean;
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
  const maxTokens = parameters.maxTokens ?? undefined;
  const minTokens = parameters.minTokens ?? 0;
  const priority = parameters.priority ?? 0;
  if (maxTokens !== undefined) checkInteger(maxTokens, "maxTokens", 1, Number.MAX_SAFE_INTEGER);
  checkInteger(minTokens, "minTokens", 0, maxTokens ?? Number.MAX_SAFE_INTEGER);
  checkInteger(priority, "priority", -(2 ** 31), 2 ** 31 - 1);
  const stop = parameters.stop ?? [];
  const stopTokenIds = parameters.stopTokenIds ?? [];
  checkStop(stop, context.hasText);
  if (stopTokenIds.length > MAX_STOP_TOKEN_IDS) {
    throw new InvalidRequest(`at most ${MAX_STOP_TOKEN_IDS} stop token ids can be given`, "stopTokenIds");
  }
  checkTokens(stopTokenIds, context.vocabularySize, "stopTokenIds");
  return {
    sampling: checkSampling(parameters, context.defaults),
    stop,
    skipSpecialTokens: parameters.skipSpecialTokens ?? true,
    stopTokenIds,
    ignoreEos: parameters.ignoreEos ?? false,
    maxTokens,
    minTokens,
    penalties: checkPenalties(parameters, context.defaults),
    logitBias: checkLogitBias(parameters.logitBias, context.vocabularySize),
    logprobs: checkLogprobs(parameters.logprobs, "logprobs"),
    promptLogprobs: checkLogprobs(parameters.promptLogprobs, "promptLogprobs"),
    priority,
    namespace: checkSalt(parameters.cacheSalt ?? null),
  };
}

function checkSampling(parameters: GenerationParameters, defaults: GenerationDefaults): Sampling {
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
  return sampling;
}

/** Null where they change nothing. */
function checkPenalties(parameters: GenerationParameters, defaults: GenerationDefaults): Penalties | null {
  const penalties: Penalties = {
    repetition: parameters.repetitionPenalty ?? defaults.repetitionPenalty ?? 1,
    presence: parameters.presencePenalty ?? 0,
    frequency: parameters.frequencyPenalty ?? 0,
  };
  const between = (value: number) => Math.abs(value) <= 2;
  checkRange(penalties.repetition, "repetitionPenalty", "above 0 and at most 10", (value) => value > 0 && value <= 10);
  checkRange(penalties.presence, "presencePenalty", "between -2 and 2", between);
  checkRange(penalties.frequency, "frequencyPenalty", "between -2 and 2", between);
  return penalties.repetition === 1 && penalties.presence === 0 && penalties.frequency === 0 ? null : penalties;
}

function checkLogitBias(given: ReadonlyMap<number, number> | undefined, vocabularySize: number): LogitBias | null {
  const bias = given ?? new Map<number, number>();
  if (bias.size === 0) return null;
  if (bias.size > MAX_LOGIT_BIAS) {
    throw new InvalidRequest(`at most ${MAX_LOGIT_BIAS} tokens can be biased, not ${bias.size}`, "logitBias");
  }
  const ids = [...bias.keys()];
  checkTokens(ids, vocabularySize, "logitBias");
  for (const value of bias.values()) {
    checkRange(value, "logitBias", "between -100 and 100", () => Math.abs(value) <= 100);
  }
  return { ids: Int32Array.from(ids), values: Float32Array.from(bias.values()) };
}

/** -1: none are asked for. */
function checkLogprobs(count: number | undefined, parameter: "logprobs" | "promptLogprobs"): number {
  if ((count ?? null) === null) return -1;
  checkInteger(count as number, parameter, 0, MAX_LOGPROBS);
  return count as number;
}

/** The namespace of the prefix cache, "" without a salt. */
function checkSalt(salt: string | null): string {
  if (salt === null) return "";
  if (typeof salt !== "string" || salt.length < 1 || salt.length > MAX_SALT_LENGTH) {
    throw new InvalidRequest(`the cache salt must be a string of 1 to ${MAX_SALT_LENGTH} characters`, "cacheSalt");
  }
  return salt;
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
  minTokens: "the least number of tokens to generate",
  repetitionPenalty: "the repetition penalty",
  presencePenalty: "the presence penalty",
  frequencyPenalty: "the frequency penalty",
  logitBias: "a logit's bias",
  logprobs: "the number of logprobs",
  promptLogprobs: "the number of the prompt's logprobs",
  priority: "the priority",
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
