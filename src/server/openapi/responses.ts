/**
 * What is answered, as zod schemas. They are strict: a field that is written and not declared here fails the tests, which
 * hold real answers against them. At run time they only make /openapi.json.
 */
import { z } from "zod";

const count = z.int().min(0);
const tokenIds = z.array(count);
const text = z.string();
const number = z.number();

/** Every status that is not 200 has this body. */
export const error = z.strictObject({
  error: z.strictObject({
    message: text.describe("What to change."),
    type: z.enum([
      "invalid_request_error",
      "authentication_error",
      "rate_limit_error",
      "server_error",
      "service_unavailable_error",
    ]),
    param: text.nullable().describe("The field that is wrong."),
    code: text.nullable(),
  }),
});

const usage = z.strictObject({
  prompt_tokens: count,
  completion_tokens: count,
  total_tokens: count,
  prompt_tokens_details: z.strictObject({ cached_tokens: count.describe("Tokens found in the prefix cache.") }),
  completion_tokens_details: z.strictObject({ reasoning_tokens: count }).optional(),
});

const finishReason = z.enum(["stop", "length", "abort"]);
const stopReason = z.union([text, z.int()]).nullable().describe("The stop string or token id that ended the answer.");

const envelope = { id: text, created: z.int(), model: text };

const probable = { token: text, logprob: number, bytes: z.array(z.int().min(0).max(255)).nullable() };

/** `logprobs` of a choice of chat. */
const chatLogprobs = z.strictObject({
  content: z.array(z.strictObject({ ...probable, top_logprobs: z.array(z.strictObject(probable)) })),
  refusal: z.null(),
});

/** `logprobs` of a choice of /v1/completions. */
const legacyLogprobs = z.strictObject({
  tokens: z.array(text),
  token_logprobs: z.array(number.nullable()),
  top_logprobs: z.array(z.record(text, number).nullable()),
  text_offset: z.array(count),
});

const ranked = z.strictObject({ logprob: number, rank: count.nullable(), decoded_token: text });

const ofPrompt = {
  prompt_token_ids: tokenIds.optional(),
  prompt_logprobs: z
    .array(z.record(text, ranked).nullable())
    .optional()
    .describe("For each token of the prompt but the first, logprobs by token id."),
};

/** The chain of thought, under both names that clients look for. */
const thought = { reasoning_content: text.optional(), reasoning: text.optional() };

const ended = { index: count, finish_reason: finishReason, stop_reason: stopReason, token_ids: tokenIds.optional() };
const underWay = { ...ended, finish_reason: finishReason.nullable(), stop_reason: stopReason.optional() };

const message = z.strictObject({
  role: z.literal("assistant"),
  content: text.nullable(),
  refusal: z.null(),
  ...thought,
});

const delta = z.strictObject({ role: z.literal("assistant").optional(), content: text.optional(), ...thought });

export const chatCompletion = z.strictObject({
  ...envelope,
  object: z.literal("chat.completion"),
  choices: z.array(z.strictObject({ ...ended, message, logprobs: chatLogprobs.nullable() })),
  usage,
  ...ofPrompt,
});

export const chatCompletionChunk = z.strictObject({
  ...envelope,
  object: z.literal("chat.completion.chunk"),
  choices: z.array(z.strictObject({ ...underWay, delta, logprobs: chatLogprobs.nullable() })),
  usage: usage.nullable().optional(),
  prompt_token_ids: tokenIds.optional(),
});

const continuation = { text, logprobs: legacyLogprobs.nullable() };

export const completion = z.strictObject({
  ...envelope,
  object: z.literal("text_completion"),
  choices: z.array(z.strictObject({ ...ended, ...continuation, ...ofPrompt })),
  usage,
});

export const completionChunk = z.strictObject({
  ...envelope,
  object: z.literal("text_completion"),
  choices: z.array(z.strictObject({ ...underWay, ...continuation, prompt_token_ids: tokenIds.optional() })),
  usage: usage.nullable().optional(),
});

const finish = z.union([
  z.strictObject({ type: z.literal("stop"), matched: z.union([text, z.int()]).nullable() }),
  z.strictObject({ type: z.literal("length"), length: count }),
  z.strictObject({ type: z.literal("abort"), message: text }),
]);

/** Logprob, token id, and the text where it was asked for. */
const nativeEntry = z.array(z.union([number, text]).nullable()).length(3);
const nativeRun = z.array(nativeEntry).optional();
const nativeTop = z.array(z.array(nativeEntry).nullable()).optional();

const generated = {
  text,
  output_ids: tokenIds,
  meta_info: z.strictObject({
    id: text,
    finish_reason: finish.nullable(),
    prompt_tokens: count,
    completion_tokens: count,
    cached_tokens: count,
    input_token_logprobs: nativeRun,
    input_top_logprobs: nativeTop,
    output_token_logprobs: nativeRun,
    output_top_logprobs: nativeTop,
  }),
};

/** One answer, or a list where several were asked for. */
export const generation = z.union([z.strictObject(generated), z.array(z.strictObject(generated))]);

export const generationSnapshot = z.strictObject({ ...generated, index: count.optional() });

const model = z.strictObject({
  id: text,
  object: z.literal("model"),
  created: z.int(),
  owned_by: z.literal("minisgl"),
  root: text,
  parent: z.null(),
  max_model_len: count,
});

export { model };

export const models = z.strictObject({ object: z.literal("list"), data: z.array(model) });

export const modelInfo = z.strictObject({
  model_path: text,
  tokenizer_path: text,
  served_model_name: text,
  is_generation: z.literal(true),
  model_type: text,
  dtype: text,
  vocab_size: count,
  max_model_len: count,
  has_chat_template: z.boolean(),
});

/** For a list of prompts, lists of all that is said of one. */
export const tokenized = z.strictObject({
  tokens: z.union([tokenIds, z.array(tokenIds)]),
  count: z.union([count, tokenIds]),
  max_model_len: count,
  token_strs: z.union([z.array(text), z.array(z.array(text))]).optional(),
});

const texts = z.union([text, z.array(text)]);

export const detokenized = z.strictObject({ prompt: texts, text: texts });

export const serverInfo = z.strictObject({
  version: text,
  model_path: text,
  served_model_name: text,
  architecture: text,
  dtype: text,
  device: text,
  library: text,
  max_model_len: count,
  context_length: count,
  max_running_requests: count,
  max_total_num_tokens: count,
  page_size: count,
  weight_bytes: count,
  pool_bytes: count,
  load_seconds: number,
  weight_seconds: number,
  capture_seconds: number,
  num_running_requests: count,
  num_waiting_requests: count,
  num_used_pages: count,
  num_cached_pages: count,
  num_total_pages: count,
  num_steps: count,
  num_ring_stalls: count,
  num_preemptions: count,
  num_prompt_tokens: count,
  num_cached_tokens: count,
  num_generated_tokens: count,
  options: z.record(text, z.unknown()).describe("What the server was started with."),
});

export const loads = z.strictObject({
  timestamp: text,
  version: text,
  dp_rank_count: z.literal(1),
  loads: z.array(
    z.strictObject({
      dp_rank: count,
      timestamp: number,
      num_running_reqs: count,
      num_waiting_reqs: count,
      num_total_reqs: count,
      num_used_tokens: count,
      max_total_num_tokens: count,
      token_usage: number,
      gen_throughput: number,
      cache_hit_rate: number,
      utilization: number,
      max_running_requests: count,
    }),
  ),
});

export const status = z.strictObject({ status: z.literal("ok") });

export const versionInfo = z.strictObject({ version: text });

export const server = z.strictObject({ name: z.literal("minisgl"), version: text });

export const flushed = z.strictObject({ success: z.literal(true), message: text });

export const aborted = z.strictObject({ aborted: count.describe("Requests that were found and stopped.") });
