/** What /openapi.json says of request fields beyond their zod schemas: a sentence each, and the forms they come in. */
import { z } from "zod";

/** By field name, or "Body.field" where a body means something else by it. */
export const descriptions: Record<string, string> = {
  model: "A name of /v1/models; left out, empty or `default`: the model that is served.",
  messages: "The conversation, rendered by the model's chat template.",
  role: "`developer` counts as `system`.",
  content: "A text, or an array of text parts.",
  name: "Given to the chat template.",
  tool_call_id: "Given to the chat template.",
  tool_calls: "Given to the chat template.",
  prompt: "A text or token ids, or an array of either, answered in order.",
  "TokenizeRequest.prompt": "A text, or an array of texts; `messages` may stand in its place.",
  temperature: "0 is greedy. Left out: the model's own, else 1.",
  top_k: "Draw from the k likeliest tokens; -1 or 0: from all.",
  top_p: "Draw from the likeliest tokens that together have this probability.",
  min_p: "Draw from tokens that are at least this likely, relative to the likeliest.",
  seed: "Equal seeds give equal answers; the n-th answer takes seed + n.",
  sampling_seed: "The same as `seed`, and stronger.",
  stop: "Texts that end the answer, and are not in it.",
  stop_token_ids: "Token ids that end the answer.",
  ignore_eos: "Goes on after the model's end-of-sequence tokens.",
  skip_special_tokens: "False leaves special tokens in the text.",
  repetition_penalty: "Divides the logits of tokens of prompt and answer: above 1 is against repetition.",
  presence_penalty: "Is taken off the logits of tokens that the answer has.",
  frequency_penalty: "Is taken off the logits of tokens, once for each time that the answer has them.",
  logit_bias: "By token id, what is added to its logit.",
  n: "Answers to each prompt.",
  min_tokens: "Tokens before an end-of-sequence or stop token may come.",
  min_new_tokens: "Tokens before an end-of-sequence or stop token may come.",
  priority: "The lower, the earlier.",
  cache_salt: "Shares cached prefixes only with requests of the same salt.",
  logprobs: "The answer tells the logprobs of its tokens.",
  "CompletionRequest.logprobs": "How many of the likeliest tokens the answer tells the logprobs of, at each position.",
  top_logprobs: "How many of the likeliest tokens are told at each position; needs `logprobs`.",
  prompt_logprobs: "As many of the likeliest tokens are told at each position of the prompt.",
  include_stop_str_in_output: "The stop text is in the answer.",
  no_stop_trim: "The stop text is in the answer.",
  return_tokens_as_token_ids: "Logprobs name tokens as `token_id:17`.",
  reasoning_content: "What the assistant thought, given to the chat template.",
  reasoning: "The same as `reasoning_content`.",
  continue_final_message: "Goes on with the last message in place of opening a turn.",
  separate_reasoning: "False leaves what stands in `<think>` in the content.",
  include_reasoning: "False leaves the reasoning out.",
  max_tokens: "Tokens of an answer at the most. Left out: what fits into the context.",
  "CompletionRequest.max_tokens": "Tokens of an answer at the most. Left out: 16.",
  max_completion_tokens: "The newer name of `max_tokens`, and stronger.",
  max_new_tokens: "Tokens of an answer at the most. Left out: 128.",
  stream: "Answers with server-sent events.",
  stream_options: "What a stream tells beside the text.",
  include_usage: "A last chunk tells the usage.",
  continuous_usage_stats: "Every chunk tells the usage so far.",
  return_token_ids: "The answer tells the token ids of prompt and text.",
  add_generation_prompt: "Opens the assistant's turn after the messages; true where left out.",
  chat_template_kwargs: "Further variables of the chat template, `enable_thinking` for example.",
  "CompletionRequest.echo": "The text begins with the prompt.",
  "ChatCompletionRequest.echo": "Only completions can begin with their prompt.",
  text: "A text, or an array of texts.",
  input_ids: "Token ids in place of `text`, or an array of such.",
  sampling_params: "How tokens are chosen, and when to end.",
  return_logprob: "The answer tells the logprobs of its tokens.",
  top_logprobs_num: "How many of the likeliest tokens are told at each position.",
  logprob_start_len: "The first position of the prompt whose logprobs are told; -1: none.",
  return_text_in_logprobs: "Logprobs tell the tokens' texts.",
  rid: "The request's id: what /abort_request knows it by.",
  "AbortRequest.rid": "The answer's id, the x-request-id, or the `rid` of /generate.",
  abort_all: "Stops every request.",
  return_token_strs: "The answer tells each token's text.",
  add_special_tokens: "The prompt gets the tokenizer's BOS; true where left out.",
  tokens: "Token ids, or an array of such.",
};

const seed = z
  .number()
  .min(-(2 ** 63))
  .max(2 ** 63)
  .meta({ type: "integer" });
const stop = z.string().min(1).max(1024);

/** Fields that zod brings into one form first, or checks with code, as they may come. */
export const formsAccepted: Record<string, z.ZodType> = {
  stop: z.union([stop, z.array(stop).max(64)]),
  seed,
  sampling_seed: seed,
};
