import { afterEach, describe, expect, test } from "bun:test";
import { truncateSync } from "node:fs";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import { type Checkpoint, CheckpointError } from "../../src/checkpoint/types.ts";
import { makeFolder, safetensorsBytes, safetensorsHeader } from "./support/checkpoint-files.ts";

const config = {
  model_type: "llama",
  vocab_size: 10,
  hidden_size: 8,
  intermediate_size: 12,
  num_hidden_layers: 1,
  num_attention_heads: 2,
};
const weights = (shapes: Record<string, number[]>) => {
  const { header, bytes } = safetensorsHeader(shapes);
  return safetensorsBytes(header, bytes);
};
const embedding = { "model.embed_tokens.weight": [10, 8] };
const open = (path: string, requireWeights = true) => openCheckpoint(path, { requireWeights });
const refuse = async (opened: Promise<Checkpoint>) => {
  const error = await opened.then(
    () => new Error("accepted"),
    (reason: unknown) => reason as Error,
  );
  expect(error).toBeInstanceOf(CheckpointError);
  expect(error.message).not.toContain("\n");
  return error.message;
};

describe("safetensors", () => {
  test("one file: where each tensor lies", async () => {
    const folder = makeFolder({
      "config.json": config,
      "model.safetensors": weights({ ...embedding, "model.norm.weight": [8] }),
    });
    const { tensors, format, path, name } = await open(folder);
    expect({ format, path, name }).toEqual({ format: "safetensors", path: folder, name: folder });
    const first = tensors.get("model.embed_tokens.weight")!;
    expect(first).toMatchObject({ type: "F32", shape: [10, 8], bytes: 320, interleavedRows: false });
    expect(first.file).toBe(join(folder, "model.safetensors"));
    expect(tensors.get("model.norm.weight")!.offset).toBe(first.offset + 320);
  });

  test("shards by the index", async () => {
    const index = {
      weight_map: { "model.embed_tokens.weight": "a.safetensors", "model.norm.weight": "b.safetensors" },
    };
    const files = { "config.json": config, "model.safetensors.index.json": index, "a.safetensors": weights(embedding) };
    const whole = makeFolder({ ...files, "b.safetensors": weights({ "model.norm.weight": [8] }) });
    const { tensors } = await open(whole);
    expect([...tensors.keys()]).toEqual(["model.embed_tokens.weight", "model.norm.weight"]);
    expect(tensors.get("model.norm.weight")!.file).toBe(join(whole, "b.safetensors"));

    expect(await refuse(open(makeFolder(files)))).toMatch(
      /b\.safetensors is missing; .* names it for model\.norm\.weight/,
    );
    const other = makeFolder({ ...files, "b.safetensors": weights({ "x.weight": [8] }) });
    expect(await refuse(open(other))).toContain("model.norm.weight is not in b.safetensors");
    const escaping = { weight_map: { "model.norm.weight": "../b.safetensors" } };
    const outside = makeFolder({ ...files, "model.safetensors.index.json": escaping });
    expect(await refuse(open(outside))).toContain('"../b.safetensors"');
    const empty = makeFolder({ ...files, "model.safetensors.index.json": {} });
    expect(await refuse(open(empty))).toContain("weight_map is missing");
  });

  const refusedHeaders: [string, Record<string, unknown>, RegExp][] = [
    [
      "a shape that does not fit its bytes",
      { "a.weight": { dtype: "F32", shape: [3], data_offsets: [0, 16] } },
      /a\.weight has 16 bytes, but F32 \[3\] takes 12/,
    ],
    [
      "an end past the file",
      { "a.weight": { dtype: "F32", shape: [100], data_offsets: [0, 400] } },
      /truncated: a\.weight/,
    ],
    [
      "offsets in the wrong order",
      { "a.weight": { dtype: "F32", shape: [0], data_offsets: [8, 4] } },
      /a\.weight is malformed/,
    ],
    ["a negative size", { "a.weight": { dtype: "F32", shape: [-1, -4], data_offsets: [0, 16] } }, /malformed/],
    ["a fractional size", { "a.weight": { dtype: "F32", shape: [0.5, 8], data_offsets: [0, 16] } }, /malformed/],
    ["no offsets", { "a.weight": { dtype: "F32", shape: [4] } }, /malformed/],
    ["an entry that is null", { "a.weight": null }, /malformed/],
    [
      "an unsupported type",
      { "a.weight": { dtype: "F64", shape: [2], data_offsets: [0, 16] } },
      /a\.weight is of type F64; supported are F32, F16 and BF16/,
    ],
    [
      "a type named like a method",
      { "a.weight": { dtype: "toString", shape: [2], data_offsets: [0, 16] } },
      /toString/,
    ],
    [
      "overlapping tensors",
      {
        "a.weight": { dtype: "F32", shape: [3], data_offsets: [0, 12] },
        "b.weight": { dtype: "F32", shape: [2], data_offsets: [8, 16] },
      },
      /a\.weight and b\.weight overlap/,
    ],
  ];
  test.each(refusedHeaders)("refuses %s", async (_, header, message) => {
    const folder = makeFolder({ "config.json": config, "model.safetensors": safetensorsBytes(header, 16) });
    expect(await refuse(open(folder))).toMatch(message);
  });

  test("buffers of other types are no weights and are left out", async () => {
    const header = { "attn.masked_bias": { dtype: "F64", shape: [2], data_offsets: [0, 16] } };
    const folder = makeFolder({ "config.json": config, "model.safetensors": safetensorsBytes(header, 16) });
    expect((await open(folder)).tensors.size).toBe(0);
  });

  test("a truncated file, and files that are something else", async () => {
    const folder = makeFolder({ "config.json": config, "model.safetensors": weights(embedding) });
    truncateSync(join(folder, "model.safetensors"), 300);
    expect(await refuse(open(folder))).toMatch(
      /truncated: model\.embed_tokens\.weight ends at byte \d+, the file has 300 bytes/,
    );
    truncateSync(join(folder, "model.safetensors"), 40);
    expect(await refuse(open(folder))).toContain("truncated");
    truncateSync(join(folder, "model.safetensors"), 3);
    expect(await refuse(open(folder))).toContain("truncated: it has 3 bytes");
    const text = (content: string) => makeFolder({ "config.json": config, "model.safetensors": content });
    expect(await refuse(open(text("version https://git-lfs.github.com/spec/v1")))).toContain("not a safetensors file");
    const notJson = new Uint8Array(24);
    notJson[0] = 16;
    const binary = makeFolder({ "config.json": config, "model.safetensors": notJson });
    expect(await refuse(open(binary))).toContain("its header is not JSON");
    const list = makeFolder({ "config.json": config, "model.safetensors": safetensorsBytes([1], 0) });
    expect(await refuse(open(list))).toContain("not a JSON object");
  });

  test("damaged headers never do worse than a CheckpointError", async () => {
    const good = weights({ ...embedding, "model.norm.weight": [8] });
    const folder = makeFolder({ "config.json": config });
    let refused = 0;
    let state = 12345;
    const random = (limit: number) => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return (state >>> 8) % limit;
    };
    for (let round = 0; round < 400; round++) {
      const bytes = good.slice();
      for (let i = 0; i <= random(4); i++) bytes[random(round % 2 ? 8 : 230)] = random(256);
      await Bun.write(join(folder, "model.safetensors"), bytes);
      await open(folder).catch((error: unknown) => {
        expect(error).toBeInstanceOf(CheckpointError);
        refused++;
      });
    }
    expect(refused).toBeGreaterThan(300);
  });
});

describe("folders", () => {
  test("without weights only where none are asked for", async () => {
    const folder = makeFolder({ "config.json": config });
    const checkpoint = await open(folder, false);
    expect(checkpoint).toMatchObject({ format: "config-only", tokenizer: null, eosTokenIds: [2], bosTokenId: 1 });
    expect(checkpoint.tensors.size).toBe(0);
    expect(await refuse(open(folder))).toContain("has no weights: no model.safetensors");
    const bin = makeFolder({ "config.json": config, "pytorch_model.bin": "x" });
    expect(await refuse(open(bin))).toContain("pytorch_model.bin is not supported");
  });

  test("an unstated type is that of the weights", async () => {
    const folder = makeFolder({ "config.json": config, "model.safetensors": weights(embedding) });
    expect((await open(folder)).config.dtype).toBe("float32");
  });

  test("generation_config.json wins over config.json, and that over the tokenizer", async () => {
    const tokenizer = { model: { type: "BPE", vocab: { a: 0, "</s>": 5 }, merges: [] } };
    const files = {
      "config.json": config,
      "tokenizer.json": tokenizer,
      "tokenizer_config.json": { eos_token: { content: "</s>" } },
    };
    expect((await open(makeFolder(files), false)).eosTokenIds).toEqual([5]);
    const configured = { ...files, "config.json": { ...config, eos_token_id: 3, bos_token_id: 4 } };
    expect(await open(makeFolder(configured), false)).toMatchObject({ eosTokenIds: [3], bosTokenId: 4 });
    const generated = { ...configured, "generation_config.json": { eos_token_id: [6, 7], top_k: 5 } };
    expect(await open(makeFolder(generated), false)).toMatchObject({
      eosTokenIds: [6, 7],
      bosTokenId: 4,
      generation: { topK: 5 },
    });
  });

  test("where the chat template comes from", async () => {
    const template = async (files: Record<string, unknown>) => {
      const tokenizer = { model: { type: "BPE", vocab: { a: 0 }, merges: [] } };
      const folder = makeFolder({ "config.json": config, "tokenizer.json": tokenizer, ...files });
      return (await open(folder, false)).tokenizer!.chatTemplate;
    };
    const named = [
      { name: "tool_use", template: "T" },
      { name: "default", template: "D" },
    ];
    expect(await template({})).toBeNull();
    expect(await template({ "tokenizer_config.json": { chat_template: "C" } })).toBe("C");
    expect(await template({ "tokenizer_config.json": { chat_template: named } })).toBe("D");
    expect(await template({ "tokenizer_config.json": { chat_template: named.slice(0, 1) } })).toBe("T");
    expect(
      await template({ "chat_template.json": { chat_template: "J" }, "tokenizer_config.json": { chat_template: "C" } }),
    ).toBe("J");
    expect(
      await template({ "chat_template.jinja": "{{ x }}\n", "tokenizer_config.json": { chat_template: "C" } }),
    ).toBe("{{ x }}\n");
  });

  test("what cannot be read says which file it is", async () => {
    expect(await refuse(open(makeFolder({ "config.json": "{" })))).toMatch(/config\.json is not valid JSON/);
    expect(await refuse(open(makeFolder({ "config.json": "[]" })))).toMatch(/config\.json does not hold a JSON object/);
    expect(await refuse(open(makeFolder({ "config.json/x": "" })))).toMatch(/config\.json is not a file/);
    expect(await refuse(open(makeFolder()))).toContain("has no config.json and no .gguf file");
    expect(await refuse(open(makeFolder({ "a.gguf": "", "b.gguf": "" })))).toContain(
      "has 2 .gguf files; name one of them: a.gguf, b.gguf",
    );
    const damaged = makeFolder({ "config.json": config, "tokenizer.json": "{}" });
    expect(await refuse(open(damaged, false))).toMatch(/tokenizer\.json: model is missing/);
  });
});

describe("names", () => {
  const saved = { ...process.env };
  afterEach(() => {
    for (const key of ["HF_HUB_CACHE", "HF_HOME"]) {
      if (saved[key] === undefined) delete process.env[key];
      else process.env[key] = saved[key];
    }
  });

  test("a repository is found in the Hugging Face cache", async () => {
    const snapshot = "models--Org--Some-Model/snapshots/0123abc";
    const cache = makeFolder({ "models--Org--Some-Model/refs/main": "0123abc\n", [`${snapshot}/config.json`]: config });
    process.env.HF_HUB_CACHE = cache;
    expect(await open("Org/Some-Model", false)).toMatchObject({ name: "Org/Some-Model", path: join(cache, snapshot) });
    delete process.env.HF_HUB_CACHE;
    process.env.HF_HOME = makeFolder();
    const message = await refuse(open("Org/Some-Model", false));
    expect(message).toContain('"Org/Some-Model" is no file or folder, nor in the Hugging Face cache');
    expect(message).toContain(join(process.env.HF_HOME, "hub", "models--Org--Some-Model"));
    expect(message).toContain("Downloading is not available yet");
  });

  test("a repository fetched by its revision has no refs/main: its only snapshot is meant", async () => {
    const snapshots = "models--Org--Some-Model/snapshots";
    const one = { [`${snapshots}/0123abc/config.json`]: config };
    process.env.HF_HOME = makeFolder();
    process.env.HF_HUB_CACHE = makeFolder(one);
    expect((await open("Org/Some-Model", false)).path).toBe(join(process.env.HF_HUB_CACHE, snapshots, "0123abc"));
    process.env.HF_HUB_CACHE = makeFolder({ ...one, [`${snapshots}/4567def/config.json`]: config });
    expect(await refuse(open("Org/Some-Model", false))).toContain("model not found");
  });

  test("a reference that leads out of the cache is not followed", async () => {
    process.env.HF_HUB_CACHE = makeFolder({ "models--a--b/refs/main": "../../..", "models--a--b/snapshots/x": "" });
    process.env.HF_HOME = makeFolder();
    expect(await refuse(open("a/b", false))).toContain("model not found");
  });

  test("paths that are no model", async () => {
    expect(await refuse(open("/dev/null"))).toContain("neither a folder nor a file");
    expect(await refuse(open(`./${"x".repeat(5000)}`))).toMatch(/not found|cannot read/);
    const folder = makeFolder({ "config.json": config, "model.safetensors": weights(embedding) });
    expect(await refuse(open(join(folder, "model.safetensors")))).toContain(
      "is not a GGUF file (of a model in safetensors, give the folder)",
    );
  });

  test("paths that are not there", async () => {
    for (const path of ["", "./nothing", "/nothing/here", "a/b/c", "nothing.gguf", "../x", "a\u0000b"]) {
      expect(await refuse(open(path))).toMatch(/not found|empty/);
    }
  });
});
