import type { Metadata } from "./gguf-model.ts";
import { CheckpointError, type TokenizerSource } from "./types.ts";

/** Token types of tokenizer.ggml.token_type. */
const CONTROL = 3;
const USER_DEFINED = 4;
const UNKNOWN = 2;

const GPT2_SPLIT = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
const LLAMA3_SPLIT = (digits: string) =>
  String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|` +
  digits +
  String.raw`| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/** What a name in tokenizer.ggml.pre stands for. */
interface PreTokenizer {
  /** The expressions that split a text, one after the other. */
  splits: string[];
  /** A word that is a token needs no merges. */
  ignoreMerges?: boolean;
  normalizer?: string;
  /** BOS goes in front unless the file says otherwise. */
  addBos?: boolean;
}

const LLAMA3: PreTokenizer = {
  splits: [LLAMA3_SPLIT(String.raw`\p{N}{1,3}`)],
  ignoreMerges: true,
  addBos: true,
};
const QWEN2: PreTokenizer = { splits: [LLAMA3_SPLIT(String.raw`\p{N}`)], normalizer: "NFC" };

const PRE_TOKENIZERS: Record<string, PreTokenizer> = {
  "gpt-2": { splits: [GPT2_SPLIT] },
  smollm: { splits: [String.raw`\p{N}`, GPT2_SPLIT] },
  "llama-bpe": LLAMA3,
  llama3: LLAMA3,
  "llama-v3": LLAMA3,
  qwen2: QWEN2,
  "deepseek-r1-qwen": QWEN2,
  // Also for files older than the key, as in llama.cpp.
  default: { splits: [String.raw`[\p{P}\$\+<=>\^~\|]+`, GPT2_SPLIT, String.raw`\p{N}+`, "[0-9][0-9][0-9]"] },
};

/**
 * Rebuilds tokenizer.json and tokenizer_config.json from GGUF's metadata.
 * @returns null where the file has no vocabulary
 * @throws CheckpointError for a kind of tokenizer that is not supported, or a damaged one
 */
export function ggufTokenizer(metadata: Metadata): TokenizerSource | null {
  const kind = metadata.string("tokenizer.ggml.model");
  const tokens = metadata.strings("tokenizer.ggml.tokens");
  if (kind === undefined || tokens === undefined || kind === "no_vocab") return null;
  if (kind !== "gpt2" && kind !== "llama") {
    throw new CheckpointError(
      `${metadata.path}: tokenizer.ggml.model ${JSON.stringify(kind)} is not supported: gpt2, llama`,
    );
  }
  const types = metadata.numbers("tokenizer.ggml.token_type");
  if (types !== undefined && types.length !== tokens.length) {
    throw new CheckpointError(`${metadata.path}: ${types.length} token types for ${tokens.length} tokens`);
  }
  const content = (key: string) => {
    const id = metadata.number(`tokenizer.ggml.${key}_token_id`);
    return id === undefined ? null : (tokens[id] ?? null);
  };
  const added = addedTokens(tokens, types);
  const special = { bos_token: content("bos"), eos_token: content("eos"), unk_token: content("unknown") };
  const built = kind === "gpt2" ? byteLevel(metadata, tokens) : sentencePiece(metadata, tokens, special.unk_token);
  const addBos = metadata.boolean("tokenizer.ggml.add_bos_token") ?? built.addBos;
  const addEos = metadata.boolean("tokenizer.ggml.add_eos_token") ?? false;
  return {
    tokenizerJson: {
      version: "1.0",
      added_tokens: added,
      normalizer: built.normalizer,
      pre_tokenizer: built.preTokenizer,
      post_processor: template(addBos ? special.bos_token : null, addEos ? special.eos_token : null),
      decoder: built.decoder,
      model: built.model,
    },
    tokenizerConfig: { ...special, clean_up_tokenization_spaces: false },
    chatTemplate: metadata.string("tokenizer.chat_template") ?? null,
  };
}

function addedTokens(tokens: readonly string[], types: ArrayLike<number> | undefined) {
  const added = [];
  for (let id = 0; id < tokens.length; id++) {
    const type = types?.[id];
    if (type !== CONTROL && type !== USER_DEFINED && type !== UNKNOWN) continue;
    if (tokens[id] === "") continue;
    const special = type !== USER_DEFINED;
    added.push({
      id,
      content: tokens[id],
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special,
    });
  }
  return added;
}

function template(bos: string | null, eos: string | null) {
  const special = (token: string | null) => (token === null ? [] : [{ SpecialToken: { id: token, type_id: 0 } }]);
  const sequence = { Sequence: { id: "A", type_id: 0 } };
  return { type: "TemplateProcessing", single: [...special(bos), sequence, ...special(eos)], pair: [] };
}

function vocabulary(tokens: readonly string[]): Record<string, number> {
  const entries: Record<string, number> = Object.create(null);
  // The first of two equal tokens is the one that encoding finds.
  for (let id = tokens.length - 1; id >= 0; id--) entries[tokens[id]] = id;
  return entries;
}

function byteLevel(metadata: Metadata, tokens: readonly string[]) {
  const pre = metadata.string("tokenizer.ggml.pre") ?? "default";
  if (!Object.hasOwn(PRE_TOKENIZERS, pre)) {
    const known = Object.keys(PRE_TOKENIZERS).join(", ");
    throw new CheckpointError(`${metadata.path}: tokenizer.ggml.pre ${JSON.stringify(pre)} is not supported: ${known}`);
  }
  const merges = metadata.strings("tokenizer.ggml.merges");
  if (merges === undefined) throw new CheckpointError(`${metadata.path}: tokenizer.ggml.merges is missing`);
  const { splits, ignoreMerges = false, normalizer, addBos = false } = PRE_TOKENIZERS[pre];
  const bytes = { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false };
  const isolate = (Regex: string) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false });
  return {
    addBos,
    normalizer: normalizer === undefined ? null : { type: normalizer },
    preTokenizer: { type: "Sequence", pretokenizers: [...splits.map(isolate), bytes] },
    decoder: bytes,
    model: { type: "BPE", vocab: vocabulary(tokens), merges, ignore_merges: ignoreMerges, byte_fallback: false },
  };
}

/**
 * SentencePiece's BPE: its merges are the pairs of tokens that make a token, in the order of their scores
 * (what transformers' converter makes of a tokenizer.model).
 */
function sentencePiece(metadata: Metadata, tokens: readonly string[], unknown: string | null) {
  const scores = metadata.numbers("tokenizer.ggml.scores");
  if (scores === undefined || scores.length !== tokens.length) {
    throw new CheckpointError(`${metadata.path}: tokenizer.ggml.scores must have one score for each token`);
  }
  const vocab = vocabulary(tokens);
  const prefix = metadata.boolean("tokenizer.ggml.add_space_prefix") ?? true;
  const replaceSpace = { type: "Replace", pattern: { String: " " }, content: "▁" };
  const prepend = { type: "Prepend", prepend: "▁" };
  const strip = prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : [];
  return {
    addBos: true,
    normalizer: { type: "Sequence", normalizers: prefix ? [prepend, replaceSpace] : [replaceSpace] },
    preTokenizer: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...strip,
      ],
    },
    model: {
      type: "BPE",
      vocab,
      merges: mergesByScore(tokens, vocab, scores),
      unk_token: unknown,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
    },
  };
}

/** Longer tokens are no merges of words; looking for their parts would take a hostile file's time. */
const LONGEST_MERGED = 1024;

function mergesByScore(tokens: readonly string[], vocab: Record<string, number>, scores: ArrayLike<number>) {
  const merges: { pair: [string, string]; score: number }[] = [];
  for (let id = 0; id < tokens.length; id++) {
    const token = tokens[id];
    if (vocab[token] !== id || token.length > LONGEST_MERGED) continue;
    for (let i = token.length - 1; i > 0; i--) {
      const left = token.slice(0, i);
      const right = token.slice(i);
      if (left in vocab && right in vocab) merges.push({ pair: [left, right], score: scores[id] });
    }
  }
  // The sort is stable: pairs that make the same token stay in order, the longest left part first.
  return merges.sort((a, b) => b.score - a.score).map(({ pair }) => pair);
}
