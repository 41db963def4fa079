/** A model folder for the soak: the weights of a fixture of test/parity, with a tokenizer and a chat template. */
import { cpSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { byteAlphabet, specialToken } from "../unit/support/runtime-fixture.ts";

const fixture = resolve(import.meta.dir, "../parity/fixtures/qwen3");
const vocabularySize = 113;

/** Printable ASCII, a line feed, and bytes that begin and continue characters, which sampled tokens rarely complete. */
const bytes = [...Array.from({ length: 95 }, (_, index) => 32 + index), 10, 195, 226, 240];
for (let byte = 128; 3 + bytes.length < vocabularySize; byte++) bytes.push(byte);

/** Makes the folder at `path`: its text is ASCII and line feeds, a token a character. */
export function writeModel(path: string): void {
  cpSync(fixture, path, { recursive: true });
  const specials = ["<pad>", "<bos>", "<eos>"];
  const alphabet = byteAlphabet();
  const vocab = Object.fromEntries(
    [...specials, ...bytes.map((byte) => alphabet[byte])].map((token, id) => [token, id]),
  );
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: true };
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: specials.map((content, id) => specialToken(id, content)),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", dropout: null, unk_token: null, byte_fallback: false, vocab, merges: [] },
  };
  const template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:";
  writeFileSync(join(path, "tokenizer.json"), JSON.stringify(tokenizer));
  const settings = { tokenizer_class: "PreTrainedTokenizerFast", eos_token: "<eos>", chat_template: template };
  writeFileSync(join(path, "tokenizer_config.json"), JSON.stringify(settings));
}
