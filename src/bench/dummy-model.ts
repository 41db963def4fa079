import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The shapes of Qwen3-0.6B. */
const QWEN3_SMALL = {
  architectures: ["Qwen3ForCausalLM"],
  model_type: "qwen3",
  torch_dtype: "bfloat16",
  vocab_size: 151936,
  hidden_size: 1024,
  intermediate_size: 3072,
  num_hidden_layers: 28,
  num_attention_heads: 16,
  num_key_value_heads: 8,
  head_dim: 128,
  hidden_act: "silu",
  rms_norm_eps: 1e-6,
  rope_theta: 1000000,
  max_position_embeddings: 40960,
  tie_word_embeddings: true,
  attention_bias: false,
  eos_token_id: 151645,
};

/**
 * Writes a model folder of Qwen3-0.6B's shapes without weights, with a tokenizer of that size whose words are made up:
 * what `bench host` runs where no model is given. `remove` takes it away again.
 */
export function writeDummyModel(): { path: string; remove(): void } {
  const path = mkdtempSync(join(tmpdir(), "minisgl-bench-"));
  writeFileSync(join(path, "config.json"), JSON.stringify(QWEN3_SMALL));
  writeFileSync(join(path, "tokenizer.json"), JSON.stringify(tokenizer(QWEN3_SMALL.vocab_size)));
  writeFileSync(join(path, "tokenizer_config.json"), JSON.stringify({ tokenizer_class: "PreTrainedTokenizerFast" }));
  return { path, remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** A byte-level BPE tokenizer: a token for each byte, then " a", " b", ... as far as the vocabulary goes. */
function tokenizer(size: number): object {
  const vocab: Record<string, number> = {};
  for (let byte = 0; byte < 256; byte++) vocab[byteCharacter(byte)] = byte;
  for (let id = 256; id < size; id++) vocab[`\u0120${word(id - 256)}`] = id;
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: true };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", dropout: null, unk_token: null, byte_fallback: false, vocab, merges: [] },
  };
}

/** How byte-level BPE writes a byte: itself where it is printable Latin-1, else a letter from U+0100 on. */
function byteCharacter(byte: number): string {
  const isPrintable = (code: number) => (code >= 33 && code <= 126) || (code >= 161 && code !== 173);
  if (isPrintable(byte)) return String.fromCharCode(byte);
  let before = 0;
  for (let other = 0; other < byte; other++) if (!isPrintable(other)) before++;
  return String.fromCharCode(256 + before);
}

/** The number in letters: 0 is "a", 25 "z", 26 "aa". */
function word(index: number): string {
  let text = "";
  for (let rest = index; rest >= 0; rest = Math.floor(rest / 26) - 1)
    text = String.fromCharCode(97 + (rest % 26)) + text;
  return text;
}
