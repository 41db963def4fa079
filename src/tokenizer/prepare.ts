/**
 * Puts a tokenizer.json into the form that `@huggingface/tokenizers` encodes as the Rust library does: what the
 * JavaScript one understands differently is said in terms that both share.
 */
import { CheckpointError, type TokenizerSource } from "../checkpoint/types.ts";
import { type BpeModel, MAX_ID } from "./bpe.ts";
import type { AddedToken } from "./vocabulary.ts";

interface Component {
  type: string;
  [key: string]: unknown;
}

export interface PreparedTokenizer {
  model: BpeModel;
  added_tokens: AddedToken[];
  normalizer: Component | null;
  pre_tokenizer: Component | null;
  post_processor: Component | null;
  decoder: Component | null;
}

const NAMED_TOKENS = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];
const GPT2_SPLIT = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
const PREFIX_SPACE: Component = { type: "Replace", pattern: { Regex: String.raw`\A(?! )` }, content: " " };

/** @throws CheckpointError for a tokenizer that would not encode as the model was trained */
export function prepareTokenizer(source: TokenizerSource): PreparedTokenizer {
  const json = source.tokenizerJson as Partial<PreparedTokenizer>;
  const model = json.model;
  if (model === undefined || (model.type ?? "BPE") !== "BPE" || typeof model.vocab !== "object" || !model.vocab) {
    throw new CheckpointError(`tokenizer.json: model ${model?.type ?? "missing"} is not supported; BPE is`);
  }
  if (!Array.isArray(model.merges)) throw new CheckpointError("tokenizer.json: model.merges is missing");
  const added_tokens = mergeAddedTokens(json.added_tokens ?? [], model.vocab, source.tokenizerConfig);
  return {
    model: { ...model, type: "BPE" },
    added_tokens,
    normalizer: json.normalizer ?? null,
    pre_tokenizer: preparePreTokenizer(json.pre_tokenizer ?? null),
    post_processor: json.post_processor ?? null,
    decoder: json.decoder ?? null,
  };
}

/** The text of each special token that tokenizer_config.json names: "bos_token", "eos_token", … */
export function namedTokens(config: Record<string, unknown>): Record<string, string> {
  const named: Record<string, string> = {};
  for (const key of NAMED_TOKENS) {
    const value = config[key];
    const content = typeof value === "object" && value !== null ? (value as { content?: unknown }).content : value;
    if (typeof content === "string") named[key] = content;
  }
  return named;
}

/**
 * As transformers 5.17 merges them: what tokenizer_config.json says makes a token special, and never takes that from it;
 * its named tokens need only be in the vocabulary.
 */
function mergeAddedTokens(
  tokens: readonly AddedToken[],
  vocabulary: Record<string, number>,
  config: Record<string, unknown>,
): AddedToken[] {
  const merged = new Map(tokens.map((token) => [token.content, { ...token }]));
  for (const [id, token] of Object.entries((config.added_tokens_decoder ?? {}) as Record<string, AddedToken>)) {
    if (typeof token?.content !== "string") continue;
    const known = merged.get(token.content);
    merged.set(token.content, {
      ...known,
      ...token,
      id: Number(id),
      special: token.special || known?.special === true,
    });
  }
  const named = Object.values(namedTokens(config));
  const extra = config.additional_special_tokens ?? config.extra_special_tokens;
  for (const content of [...named, ...(Array.isArray(extra) ? extra : [])]) {
    const known = merged.get(content);
    if (known !== undefined) known.special ||= named.includes(content);
    else if (typeof content === "string" && Object.hasOwn(vocabulary, content)) {
      merged.set(content, { id: vocabulary[content], content, special: true, normalized: false });
    }
  }
  for (const { id, content } of merged.values()) {
    if (typeof content !== "string" || !Number.isInteger(id) || id < 0 || id >= MAX_ID) {
      throw new CheckpointError(`tokenizer.json: the added token ${JSON.stringify(content)} has the id ${id}`);
    }
  }
  return [...merged.values()];
}

function preparePreTokenizer(component: Component | null): Component | null {
  switch (component?.type) {
    case "Sequence":
      return sequence((component.pretokenizers as Component[]).map((part) => preparePreTokenizer(part)!));
    // Rust's digits are all of Unicode's numbers.
    case "Digits":
      return isolate(component.individual_digits ? String.raw`\p{N}` : String.raw`\p{N}+`);
    // As a Split, the expression's \s means what it means in Rust.
    case "ByteLevel":
      if (component.use_regex === false) return component;
      return sequence([
        ...(component.add_prefix_space ? [PREFIX_SPACE] : []),
        isolate(GPT2_SPLIT),
        { ...component, add_prefix_space: false, use_regex: false },
      ]);
    case "Metaspace":
      return prepareMetaspace(component);
    case "Split":
      return prepareSplit(component);
    default:
      return component;
  }
}

function prepareMetaspace(component: Component): Component {
  const scheme = component.prepend_scheme ?? (component.add_prefix_space === false ? "never" : "always");
  const metaspace = { ...component, prepend_scheme: scheme };
  return component.split === false ? metaspace : sequence([metaspace, isolate("▁[^▁]*|[^▁]+")]);
}

function prepareSplit(component: Component): Component {
  const behavior = String(component.behavior).toLowerCase();
  if (behavior === "isolated") return { ...component, invert: false };
  if (behavior === "removed") return component;
  throw new CheckpointError(`tokenizer.json: Split with behavior ${component.behavior} is not supported`);
}

function sequence(pretokenizers: Component[]): Component {
  return { type: "Sequence", pretokenizers };
}

function isolate(Regex: string): Component {
  return { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false };
}
