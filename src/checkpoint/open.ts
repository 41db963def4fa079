/** How a checkpoint is found, recognised and described. Nothing of the weights is read but where they lie. */
import { existsSync, readdirSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { readConfig, readGenerationConfig } from "./config.ts";
import { readGguf } from "./gguf.ts";
import { ggufConfig, ggufTensors, Metadata } from "./gguf-model.ts";
import { ggufTokenizer } from "./gguf-tokenizer.ts";
import { findInHubCache } from "./hub-cache.ts";
import { readJsonObject } from "./read.ts";
import { readSafetensorsFolder } from "./safetensors.ts";
import { readTokenizerSource, specialTokenId } from "./tokenizer-source.ts";
import { type Checkpoint, CheckpointError, type TensorInfo } from "./types.ts";

/**
 * Opens a checkpoint.
 * @param model a folder, a .gguf file, or a repository name found in the local Hugging Face cache
 * @param options.requireWeights false: config.json suffices (dummy weights)
 * @throws CheckpointError with one line that says what is wrong and where
 */
export async function openCheckpoint(model: string, options: { requireWeights: boolean }): Promise<Checkpoint> {
  try {
    return openPath(model, locate(model), options.requireWeights);
  } catch (error) {
    // What the file system refuses (no permission, a name too long) is as much wrong with the checkpoint.
    if (error instanceof Error && "code" in error) throw new CheckpointError(`cannot read ${model}: ${error.message}`);
    throw error;
  }
}

function openPath(model: string, path: string, requireWeights: boolean): Checkpoint {
  const stat = statSync(path);
  if (stat.isFile()) return openGguf(model, path);
  if (!stat.isDirectory()) throw new CheckpointError(`${path} is neither a folder nor a file`);
  if (existsSync(join(path, "config.json"))) return openFolder(model, path, requireWeights);
  const files = readdirSync(path).filter((name) => name.endsWith(".gguf"));
  if (files.length === 1) return openGguf(model, join(path, files[0]));
  throw new CheckpointError(
    files.length === 0
      ? `${path} has no config.json and no .gguf file: it is no model folder`
      : `${path} has ${files.length} .gguf files; name one of them: ${files.sort().join(", ")}`,
  );
}

function locate(model: string): string {
  if (model === "") throw new CheckpointError("the model's name is empty");
  const path = resolve(model);
  if (existsSync(path)) return path;
  if (!/^[\w-][\w.-]*(\/[\w-][\w.-]*)?$/.test(model) || model.endsWith(".gguf")) {
    throw new CheckpointError(`model not found: there is no file or folder ${path}`);
  }
  const { folder, searched } = findInHubCache(model);
  if (folder !== null) return folder;
  throw new CheckpointError(
    `model not found: ${JSON.stringify(model)} is no file or folder, nor in the Hugging Face cache ` +
      `(looked at ${searched.join(", ")}). Downloading is not available yet: fetch it with "hf download ${model}", ` +
      "or give a folder or a .gguf file",
  );
}

function openFolder(name: string, path: string, requireWeights: boolean): Checkpoint {
  const file = join(path, "config.json");
  const read = readConfig(readJsonObject(file)!, file);
  const generationFile = join(path, "generation_config.json");
  const { generation, ...tokens } = readGenerationConfig(readJsonObject(generationFile), generationFile);
  const tensors = readSafetensorsFolder(path);
  if (tensors === null && requireWeights) throw new CheckpointError(describeMissingWeights(path));
  const tokenizer = readTokenizerSource(path);
  const eosOfTokenizer = tokenizer === null ? null : specialTokenId(tokenizer, "eos_token");
  const config = read.dtypeIsKnown ? read.config : { ...read.config, dtype: typeOfWeights(tensors) };
  return {
    name,
    path,
    format: tensors === null ? "config-only" : "safetensors",
    config,
    tensors: tensors ?? new Map(),
    eosTokenIds:
      tokens.eosTokenIds ?? read.eosTokenIds ?? (eosOfTokenizer === null ? read.defaultEosTokenIds : [eosOfTokenizer]),
    bosTokenId: tokens.bosTokenId ?? read.bosTokenId,
    generation,
    tokenizer,
  };
}

function describeMissingWeights(path: string): string {
  const other = readdirSync(path).find((name) => /\.(bin|pt|pth|gguf)$/.test(name));
  if (other?.endsWith(".gguf"))
    return `${path} has no .safetensors file; to use its GGUF file, give ${join(path, other)}`;
  const hint = other === undefined ? "" : ` (${other} is not supported: convert it with transformers' save_pretrained)`;
  return `${path} has no weights: no model.safetensors and no model.safetensors.index.json${hint}`;
}

function typeOfWeights(tensors: ReadonlyMap<string, TensorInfo> | null): "float32" | "bfloat16" | "float16" {
  const type = tensors?.values().next().value?.type;
  if (type === "F32") return "float32";
  return type === "F16" ? "float16" : "bfloat16";
}

function openGguf(name: string, path: string): Checkpoint {
  const file = readGguf(path);
  const metadata = new Metadata(file.metadata, path);
  const tensors = ggufTensors(file, metadata);
  const id = (key: string) => {
    const value = metadata.number(`tokenizer.ggml.${key}_token_id`);
    return value === undefined || value < 0 ? [] : [value];
  };
  return {
    name,
    path,
    format: "gguf",
    config: ggufConfig(file, metadata, tensors),
    tensors,
    eosTokenIds: [...new Set([...id("eos"), ...id("eot"), ...id("eom")])],
    bosTokenId: id("bos")[0] ?? null,
    generation: {},
    tokenizer: ggufTokenizer(metadata),
  };
}
