/** From the fields of a request to what the runtime is asked, and the refusal of what cannot be done yet. */
import {
  type ChatMessage,
  type GenerationParameters,
  InvalidRequest,
  type Prompt,
  type RuntimeInterface,
} from "../runtime/types.ts";
import { type ChatFields, type SamplingFields, show } from "./schemas.ts";

const isFalse = (value: unknown): boolean => value === false;
const isOne = (value: unknown): boolean => value === 1;
const isEmpty = (value: unknown): boolean =>
  typeof value === "object" && value !== null && Object.keys(value).length === 0;
const never = (): boolean => false;

/** Fields that change the answer and are not implemented, with the values that ask for nothing. */
const unsupported: Record<string, (value: unknown) => boolean> = {
  length_penalty: isOne,
  tools: isEmpty,
  functions: isEmpty,
  tool_choice: (value) => value === "none" || value === "auto",
  function_call: (value) => value === "none" || value === "auto",
  response_format: (value) => (value as { type?: unknown }).type === "text",
  structured_outputs: isEmpty,
  guided_json: never,
  guided_regex: never,
  guided_choice: never,
  guided_grammar: never,
  json_schema: never,
  regex: never,
  ebnf: never,
  modalities: (value) => Array.isArray(value) && value.every((kind) => kind === "text"),
  audio: never,
  suffix: (value) => value === "",
  best_of: isOne,
  use_beam_search: isFalse,
  bad_words: isEmpty,
  allowed_token_ids: never,
  logits_processors: isEmpty,
  custom_logit_processor: never,
  truncate_prompt_tokens: never,
  stop_regex: isEmpty,
  chat_template: never,
  return_hidden_states: isFalse,
  token_ids_logprob: isEmpty,
  input_embeds: never,
  image_data: isEmpty,
  audio_data: isEmpty,
  lora_path: never,
};

/** @throws InvalidRequest naming the first field of `body` that would change the answer and cannot be done yet */
export function refuseUnsupported(body: Record<string, unknown>): void {
  for (const name in body) {
    if (!Object.hasOwn(unsupported, name)) continue;
    const value = body[name];
    if (value === null || unsupported[name](value)) continue;
    throw new InvalidRequest(`${name} is not supported, got ${show(value)}`, name, "unsupported_parameter");
  }
}

/** Fields of generation that the routes call by names of their own, or take from other places. */
export interface GenerationFields extends SamplingFields {
  min_tokens?: number;
  priority?: number;
  cache_salt?: string;
  logprobs?: number;
  prompt_logprobs?: number;
}

/** The runtime's parameters for the n-th answer to a prompt: a given seed counts up, so that the answers differ. */
export function generationParameters(
  fields: GenerationFields,
  maxTokens: number | undefined,
  choice: number,
): GenerationParameters {
  const { seed, logit_bias, top_k } = fields;
  return {
    maxTokens,
    temperature: fields.temperature,
    topK: top_k === undefined ? undefined : Math.max(0, top_k),
    topP: fields.top_p,
    minP: fields.min_p,
    seed: seed === undefined ? undefined : wrapSeed(seed + choice),
    stop: fields.stop,
    stopTokenIds: fields.stop_token_ids,
    ignoreEos: fields.ignore_eos,
    skipSpecialTokens: fields.skip_special_tokens,
    minTokens: fields.min_tokens,
    repetitionPenalty: fields.repetition_penalty,
    presencePenalty: fields.presence_penalty,
    frequencyPenalty: fields.frequency_penalty,
    logitBias: logit_bias && new Map(Object.entries(logit_bias).map(([token, value]) => [Number(token), value])),
    logprobs: fields.logprobs,
    promptLogprobs: fields.prompt_logprobs,
    priority: fields.priority,
    cacheSalt: fields.cache_salt,
  };
}

/** Any integer as one of 0 .. 2^53 - 1, distinct for those of usual size, negative ones included. */
function wrapSeed(seed: number): number {
  const span = 2 ** 53;
  const rest = seed % span;
  return rest < 0 ? rest + span : rest;
}

/** The messages as a prompt, by the model's template. */
export function chatPrompt(runtime: RuntimeInterface, body: ChatFields): Prompt {
  if (!runtime.hasChatTemplate) {
    throw new InvalidRequest("this model has no chat template, use /v1/completions", "messages");
  }
  const { add_generation_prompt, continue_final_message, chat_template_kwargs: templateArguments } = body;
  const messages = chatMessages(body.messages);
  const asked = add_generation_prompt ?? templateArguments?.add_generation_prompt;
  if (continue_final_message !== true) return { messages, addGenerationPrompt: asked !== false, templateArguments };
  if (asked === true) {
    throw new InvalidRequest(
      "continue_final_message and add_generation_prompt exclude each other",
      "continue_final_message",
    );
  }
  return { messages, addGenerationPrompt: false, continueFinalMessage: true, templateArguments };
}

/** The messages as templates take them: text only, and "developer" as the "system" that templates know. */
function chatMessages(messages: ChatFields["messages"]): ChatMessage[] {
  return messages.map(({ role, content, reasoning, ...rest }, index) => ({
    ...(reasoning !== undefined && { reasoning_content: reasoning }),
    ...rest,
    role: role === "developer" ? "system" : role,
    content: contentText(content, `messages[${index}].content`, role === "assistant"),
  }));
}

function contentText(content: unknown, name: string, optional: boolean): string {
  if (typeof content === "string") return wellFormed(content, name);
  if (content === undefined && optional) return "";
  if (!Array.isArray(content)) {
    const reason = content === undefined ? "is missing, it must" : "must";
    throw new InvalidRequest(`${name} ${reason} be a string or an array of text parts`, name);
  }
  return content.map((part, index) => partText(part, `${name}[${index}]`)).join("\n");
}

function partText(part: unknown, name: string): string {
  const { type, text } = (part ?? {}) as { type?: unknown; text?: unknown };
  if (type === "text" && typeof text === "string") return wellFormed(text, `${name}.text`);
  if (typeof type === "string" && type !== "text") {
    throw new InvalidRequest(
      `${name} is of type ${show(type)}, this model takes only text`,
      name,
      "unsupported_content",
    );
  }
  throw new InvalidRequest(`${name} must be {"type": "text", "text": "..."}`, name);
}

function wellFormed(text: string, name: string): string {
  if (!text.isWellFormed()) throw new InvalidRequest(`${name} must not contain lone surrogates`, name);
  return text;
}

/** A string, or an array of them, as prompts. */
export function textPrompts(value: unknown, name: string, addSpecialTokens?: boolean): Prompt[] {
  const texts = Array.isArray(value) ? value : [value];
  if (texts.length === 0) throw new InvalidRequest(`${name} must not be empty`, name);
  return texts.map((text, index) => {
    const place = Array.isArray(value) ? `${name}[${index}]` : name;
    if (typeof text !== "string") throw new InvalidRequest(`${place} must be a string, got ${show(text)}`, place);
    if (text === "") throw new InvalidRequest(`${place} must not be empty`, place);
    return { text: wellFormed(text, place), ...(addSpecialTokens === false && { addSpecialTokens }) };
  });
}

/** An array of token ids, or an array of those, as prompts. */
export function tokenPrompts(value: unknown, name: string): Prompt[] {
  if (!Array.isArray(value) || value.length === 0) {
    throw new InvalidRequest(`${name} must be a non-empty array of token ids, or an array of those`, name);
  }
  if (!Array.isArray(value[0])) return [{ tokens: tokenIds(value, name) }];
  return value.map((tokens, index) => ({ tokens: tokenIds(tokens, `${name}[${index}]`) }));
}

function tokenIds(value: unknown, name: string): number[] {
  if (!Array.isArray(value) || value.length === 0) {
    throw new InvalidRequest(`${name} must be a non-empty array of token ids, got ${show(value)}`, name);
  }
  for (let i = 0; i < value.length; i++) {
    const id = value[i];
    if (!Number.isInteger(id) || id < 0 || id >= 2 ** 31) {
      throw new InvalidRequest(`${name}[${i}] must be a token id, got ${show(id)}`, name);
    }
  }
  return value;
}

/** The `prompt` of a completion: string, strings, token ids, or lists of those. */
export function completionPrompts(value: unknown, addSpecialTokens?: boolean): Prompt[] {
  if (value === undefined || value === null) throw new InvalidRequest("prompt is missing", "prompt");
  if (typeof value === "string") return textPrompts(value, "prompt", addSpecialTokens);
  if (!Array.isArray(value)) {
    throw new InvalidRequest(`prompt must be a string, an array of strings or token ids, got ${show(value)}`, "prompt");
  }
  if (typeof value[0] === "string") return textPrompts(value, "prompt", addSpecialTokens);
  return tokenPrompts(value, "prompt");
}
