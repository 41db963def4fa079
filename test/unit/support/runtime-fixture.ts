/** A runtime on a byte-level model of 260 tokens, answered by echo-scheduler.ts. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DEFAULT_OPTIONS } from "../../../src/runtime/options.ts";
import { Runtime } from "../../../src/runtime/runtime.ts";
import type { RuntimeOptions, SpawnWorker } from "../../../src/runtime/types.ts";

export const BOS = 256;
export const EOS = 257;
/** Seeds that the echo scheduler takes for a signal to misbehave. */
export const Seeds = { crash: 1001, exit: 1002, reject: 1003 } as const;

export interface EchoBehaviour {
  /** Jinja source in place of the working template. */
  template?: string;
  failStart?: boolean;
  stepMilliseconds?: number;
}

export const spawnEcho =
  (behaviour: EchoBehaviour = {}): SpawnWorker =>
  (name, workerData, transferList) => {
    const entry = name === "scheduler" ? "./echo-scheduler.ts" : "../../../src/tokenizer-worker.ts";
    const data = { ...(workerData as object), behaviour };
    return new Worker(new URL(entry, import.meta.url), { workerData: data, transferList } as unknown as WorkerOptions);
  };

export function echoOptions(model: string, options: Partial<RuntimeOptions> = {}): RuntimeOptions {
  return { ...DEFAULT_OPTIONS, maxRunningRequests: 256, maxSequenceLength: 1000, dummyWeight: true, ...options, model };
}

/** Starts a runtime on a model folder that exists as long as it does. */
export async function startEcho(
  options: Partial<RuntimeOptions> = {},
  behaviour: EchoBehaviour = {},
  onProgress?: (stage: string, done: number, total: number) => void,
): Promise<Runtime> {
  const folder = writeByteModel(behaviour.template);
  try {
    return await Runtime.start(echoOptions(folder, options), spawnEcho(behaviour), onProgress);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const TEMPLATE = `{{ bos_token }}{% for message in messages %}{% if message.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}[{{ message.role }}]{{ message.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}`;

/** A folder with a model's configuration and a byte-level tokenizer, and no weights. */
export function writeByteModel(template = TEMPLATE): string {
  const folder = mkdtempSync(join(tmpdir(), "minisgl-echo-"));
  const write = (name: string, value: unknown): void => writeFileSync(join(folder, name), JSON.stringify(value));
  write("config.json", {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: 260,
    hidden_size: 64,
    intermediate_size: 64,
    num_hidden_layers: 1,
    num_attention_heads: 2,
    num_key_value_heads: 2,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    max_position_embeddings: 4096,
    torch_dtype: "float32",
    bos_token_id: BOS,
    eos_token_id: EOS,
  });
  write("generation_config.json", { eos_token_id: [EOS], temperature: 0.5, top_k: 7, top_p: 0.75 });
  write("tokenizer.json", byteTokenizer());
  write("tokenizer_config.json", {
    tokenizer_class: "PreTrainedTokenizerFast",
    bos_token: "<bos>",
    eos_token: "<eos>",
    chat_template: template,
  });
  return folder;
}

/** How byte-level BPE writes each byte: itself where it is printable Latin-1, else a letter from U+0100 on. */
export function byteAlphabet(): string[] {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let extra = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : extra++));
}

/** A special token, as tokenizer.json has it. */
export const specialToken = (id: number, content: string) => ({
  id,
  content,
  single_word: false,
  lstrip: false,
  rstrip: false,
  normalized: false,
  special: true,
});

/** Byte-level BPE without merges: token ids are bytes. */
function byteTokenizer(): unknown {
  const vocab = Object.fromEntries(byteAlphabet().map((character, byte) => [character, byte]));
  const bos = { SpecialToken: { id: "<bos>", type_id: 0 } };
  const sequence = { Sequence: { id: "A", type_id: 0 } };
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [specialToken(BOS, "<bos>"), specialToken(EOS, "<eos>")],
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: {
      type: "TemplateProcessing",
      single: [bos, sequence],
      pair: [bos, sequence],
      special_tokens: { "<bos>": { id: "<bos>", ids: [BOS], tokens: ["<bos>"] } },
    },
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: { type: "BPE", dropout: null, unk_token: null, fuse_unk: false, byte_fallback: false, vocab, merges: [] },
  };
}
