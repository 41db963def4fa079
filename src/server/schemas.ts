/**
 * What may be asked, as zod schemas. Messages are written as predicates ("must be ..."), so that parse() can turn the
 * first issue into one sentence with the parameter's name in front. Unknown fields are ignored, null is "not given".
 */
import { z } from "zod";
import { InvalidRequest } from "../runtime/types.ts";

/** Upper bounds of lists and strings that cost time for as long as a request runs. */
const maxStops = 64;
const maxStopLength = 1024;
const maxChoices = 128;
const maxBiases = 1024;
const maxTop = 20;

function withoutNulls(value: unknown): unknown {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== null));
}

const object = <Shape extends z.ZodRawShape>(shape: Shape) =>
  z.preprocess(withoutNulls, z.object(shape, { error: "must be an object" }));

const flag = z.boolean({ error: "must be true or false" }).optional();

const between = (least: number, most: number) => {
  const error = `must be a number between ${least} and ${most}`;
  return z.number({ error }).min(least, { error }).max(most, { error });
};

const integer = (least: number, most: number, error = `must be an integer between ${least} and ${most}`) =>
  z.number({ error }).int({ error }).min(least, { error }).max(most, { error });

/** Text that UTF-8 can express. */
const text = (error = "must be a string") =>
  z.string({ error }).refine((value) => value.isWellFormed(), { error: "must not contain lone surrogates" });

const positive = integer(1, 2 ** 31 - 1, "must be a positive integer").optional();
const tokenId = integer(0, 2 ** 31 - 1, "must be a token id");
const top = integer(0, maxTop).optional();

const repetition = "must be a number above 0 and at most 10";
const bias = z
  .record(z.string().regex(/^\d{1,10}$/), between(-100, 100), {
    error: ({ code }) =>
      code === "invalid_key"
        ? "must be named by a token id"
        : "must be an object of token ids and numbers between -100 and 100",
  })
  .refine((biases) => Object.keys(biases).length <= maxBiases, { error: `must have at most ${maxBiases} token ids` })
  .optional();

/** JSON Schema of values that parameters.ts checks by hand, where one sentence of zod's could not say what is wrong. */
const string = { type: "string", minLength: 1 };
const texts = z.unknown().meta({
  description: "A text, or an array of them.",
  anyOf: [string, { type: "array", items: string, minItems: 1 }],
});
const ids = { type: "array", items: { type: "integer", minimum: 0, maximum: 2 ** 31 - 1 }, minItems: 1 };
const idLists = { type: "array", items: ids, minItems: 1 };
const tokens = z.unknown().meta({
  description: "Token ids, or an array of such arrays.",
  anyOf: [ids, idLists],
});
const prompt = z.unknown().meta({
  description: "A text, an array of texts, token ids, or an array of such arrays.",
  anyOf: [string, { type: "array", items: string, minItems: 1 }, ids, idLists],
});
const textPart = {
  type: "object",
  properties: { type: { const: "text" }, text: { type: "string" } },
  required: ["type", "text"],
};
const content = z.unknown().meta({
  description: "A text, or an array of text parts; an assistant's may be missing.",
  anyOf: [{ type: "string" }, { type: "array", items: textPart }, { type: "null" }],
});

const topP = "must be a number above 0 and at most 1";
const stopString = text()
  .min(1, { error: "must not be empty" })
  .max(maxStopLength, { error: `must be at most ${maxStopLength} characters long` });
const stops = `must be a string or an array of at most ${maxStops} strings`;

const stop = z.preprocess(
  (value) => (typeof value === "string" ? [value] : value),
  z.array(stopString, { error: stops }).max(maxStops, { error: stops }).optional(),
);

/** Parameters of generation that OpenAI's routes and /generate's sampling_params share. */
const sampling = {
  temperature: between(0, 2).optional(),
  top_k: integer(-1, 2 ** 31 - 1, "must be an integer of at least 1, or -1 or 0 for all").optional(),
  top_p: z.number({ error: topP }).gt(0, { error: topP }).max(1, { error: topP }).optional(),
  min_p: between(0, 1).optional(),
  seed: z
    .number({ error: "must be an integer of 64 bits" })
    .refine((value) => Number.isInteger(value) && Math.abs(value) <= 2 ** 63, {
      error: "must be an integer of 64 bits",
    })
    .optional(),
  stop,
  stop_token_ids: z
    .array(tokenId, { error: "must be an array of token ids" })
    .max(256, { error: "must have at most 256 token ids" })
    .optional(),
  ignore_eos: flag,
  skip_special_tokens: flag,
  repetition_penalty: z
    .number({ error: repetition })
    .gt(0, { error: repetition })
    .max(10, { error: repetition })
    .optional(),
  presence_penalty: between(-2, 2).optional(),
  frequency_penalty: between(-2, 2).optional(),
  logit_bias: bias,
  n: integer(1, maxChoices).optional(),
};

/** The lower, the earlier, as in vLLM. */
const priority = integer(-(2 ** 31), 2 ** 31 - 1, "must be an integer of 32 bits").optional();
const cacheSalt = text()
  .min(1, { error: "must not be empty" })
  .max(256, { error: "must be at most 256 characters long" })
  .optional();

const openai = {
  ...sampling,
  model: text().optional(),
  stream: flag,
  stream_options: object({ include_usage: flag, continuous_usage_stats: flag }).optional(),
  min_tokens: integer(0, 2 ** 31 - 1, "must be an integer of at least 0").optional(),
  priority,
  cache_salt: cacheSalt,
  prompt_logprobs: top,
  include_stop_str_in_output: flag,
  return_token_ids: flag,
  return_tokens_as_token_ids: flag,
};

const message = object({
  role: z.enum(["system", "developer", "user", "assistant", "tool"], {
    error: "must be system, developer, user, assistant or tool",
  }),
  content: content.optional(),
  reasoning_content: text().optional(),
  reasoning: text().optional(),
  name: text().optional(),
  tool_call_id: text().optional(),
  tool_calls: z.array(z.record(z.string(), z.unknown()), { error: "must be an array of objects" }).optional(),
});

const messages = z
  .array(message, { error: "must be an array of messages" })
  .min(1, { error: "must have at least one message" })
  .max(16384, { error: "must have at most 16384 messages" });

const chat = {
  add_generation_prompt: flag,
  continue_final_message: flag,
  chat_template_kwargs: z.record(z.string(), z.unknown(), { error: "must be an object" }).optional(),
};

export const chatSchema = object({
  ...openai,
  ...chat,
  messages,
  max_tokens: positive,
  max_completion_tokens: positive,
  logprobs: flag,
  top_logprobs: top,
  echo: z.literal(false, { error: "can only be false on this route" }).optional(),
  separate_reasoning: flag,
  include_reasoning: flag,
});

export const completionSchema = object({
  ...openai,
  prompt,
  max_tokens: integer(0, 2 ** 31 - 1, "must be a positive integer, or 0 with echo").optional(),
  echo: flag,
  logprobs: top,
  add_special_tokens: flag,
});

/** `sampling_params` of SGLang's native API. */
const nativeSampling = object({
  ...sampling,
  max_new_tokens: positive,
  min_new_tokens: openai.min_tokens,
  sampling_seed: sampling.seed,
  no_stop_trim: flag,
});

export const generateSchema = object({
  text: texts.optional(),
  input_ids: tokens.optional(),
  sampling_params: nativeSampling.optional(),
  stream: flag,
  rid: text().max(256, { error: "must be at most 256 characters long" }).optional(),
  return_logprob: flag,
  top_logprobs_num: top,
  logprob_start_len: integer(-1, 2 ** 31 - 1, "must be a position in the prompt, or -1 for its end").optional(),
  return_text_in_logprobs: flag,
  priority,
});

export const tokenizeSchema = object({
  ...chat,
  model: text().optional(),
  prompt: texts.optional(),
  messages: messages.optional(),
  return_token_strs: flag,
  add_special_tokens: flag,
});

export const detokenizeSchema = object({ model: text().optional(), tokens });

export const abortSchema = object({ rid: text().optional(), abort_all: flag });

export type SamplingFields = z.infer<z.ZodObject<typeof sampling>>;
export type OpenAIFields = z.infer<z.ZodObject<typeof openai>>;
export type ChatBody = z.infer<typeof chatSchema>;
export type ChatFields = Pick<ChatBody, "messages" | keyof typeof chat>;
export type CompletionBody = z.infer<typeof completionSchema>;
export type TokenizeBody = z.infer<typeof tokenizeSchema>;
export type GenerateBody = z.infer<typeof generateSchema>;

/**
 * The body as the schema types it.
 * @throws InvalidRequest with a sentence about the first parameter that is wrong
 */
export function parse<Schema extends z.ZodType>(schema: Schema, body: Record<string, unknown>): z.infer<Schema> {
  const result = schema.safeParse(body, { reportInput: true });
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const name = parameterName(issue.path);
  if (issue.input === undefined) {
    // Zod's own words are of values that are checked elsewhere.
    const demand = issue.message.startsWith("must ") ? `, it ${issue.message}` : "";
    throw new InvalidRequest(`${name} is missing${demand}`, name);
  }
  throw new InvalidRequest(`${name} ${issue.message}, got ${show(issue.input)}`, name);
}

/** ["messages", 0, "content"] as messages[0].content. */
function parameterName(path: readonly PropertyKey[]): string {
  return path
    .map((key, at) => (typeof key === "number" ? `[${key}]` : at > 0 ? `.${String(key)}` : String(key)))
    .join("");
}

/** A value as JSON, short enough for a sentence. */
export function show(value: unknown): string {
  if (typeof value === "number") return String(value);
  if (Array.isArray(value) && value.length > 8) return `an array of ${value.length}`;
  if (typeof value === "string" && value.length > 60) return `a string of ${value.length} characters`;
  const json = JSON.stringify(value) ?? "nothing";
  return json.length > 80 ? `${json.slice(0, 77)}...` : json;
}
