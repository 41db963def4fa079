import { existsSync } from "node:fs";
import { join } from "node:path";
import { isObject, readJsonObject, readText } from "./read.ts";
import { CheckpointError, type TokenizerSource } from "./types.ts";

/** Qwen3's tokenizer.json has 11 MB; those of multilingual models three times that. */
const MAX_TOKENIZER_BYTES = 256 << 20;

/**
 * Reads what a folder's tokenizer is built from.
 * @returns null where the folder has no tokenizer.json
 * @throws CheckpointError where a file is damaged
 */
export function readTokenizerSource(folder: string): TokenizerSource | null {
  const path = join(folder, "tokenizer.json");
  const tokenizerJson = readJsonObject(path, MAX_TOKENIZER_BYTES);
  if (tokenizerJson === null) return null;
  if (!isObject(tokenizerJson.model)) throw new CheckpointError(`${path}: model is missing`);
  const tokenizerConfig = readJsonObject(join(folder, "tokenizer_config.json")) ?? {};
  return { tokenizerJson, tokenizerConfig, chatTemplate: readChatTemplate(folder, tokenizerConfig) };
}

/**
 * The template named "default", or the only one. As in transformers, chat_template.jinja wins over
 * chat_template.json, and that over tokenizer_config.json.
 */
function readChatTemplate(folder: string, tokenizerConfig: Record<string, unknown>): string | null {
  const file = readText(join(folder, "chat_template.jinja"));
  if (file !== null) return file;
  const legacy = join(folder, "chat_template.json");
  const source = existsSync(legacy) ? readJsonObject(legacy)?.chat_template : tokenizerConfig.chat_template;
  if (typeof source === "string") return source;
  if (source === undefined || source === null) return null;
  const named = new Map<string, string>();
  for (const entry of Array.isArray(source) ? source : []) {
    if (isObject(entry) && typeof entry.name === "string" && typeof entry.template === "string") {
      named.set(entry.name, entry.template);
    }
  }
  if (isObject(source)) {
    for (const [name, text] of Object.entries(source)) if (typeof text === "string") named.set(name, text);
  }
  return named.get("default") ?? (named.size === 1 ? [...named.values()][0] : null);
}

/** The id of a special token that tokenizer_config.json names, e.g. "eos_token". */
export function specialTokenId(source: TokenizerSource, key: string): number | null {
  const content = specialTokenText(source.tokenizerConfig[key]);
  if (content === null) return null;
  const added = source.tokenizerJson.added_tokens;
  for (const token of Array.isArray(added) ? added : []) {
    if (isObject(token) && token.content === content && typeof token.id === "number") return token.id;
  }
  const model = source.tokenizerJson.model;
  const id = isObject(model) && isObject(model.vocab) ? model.vocab[content] : undefined;
  return typeof id === "number" ? id : null;
}

/** A special token stands as its text, or as an object that holds it. */
export function specialTokenText(value: unknown): string | null {
  const content = isObject(value) ? value.content : value;
  return typeof content === "string" ? content : null;
}
