import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import { CheckpointError } from "../../src/checkpoint/types.ts";
import {
  type GgufTensorSpec,
  GgufType,
  ggufBytes,
  llamaMetadata,
  llamaTensors,
  makeFolder,
} from "./support/checkpoint-files.ts";

const folder = makeFolder();
let count = 0;
async function openBytes(bytes: Uint8Array<ArrayBuffer>) {
  const path = join(folder, `${count++}.gguf`);
  await Bun.write(path, bytes);
  return openCheckpoint(path, { requireWeights: true });
}
const openModel = (metadata: Record<string, unknown> = {}, tensors: GgufTensorSpec[] = [], architecture = "llama") =>
  openBytes(ggufBytes(llamaMetadata(architecture, metadata), llamaTensors(tensors)));
async function refuse(opened: Promise<unknown>): Promise<string> {
  const error = await opened.then(
    () => new Error("accepted"),
    (reason: unknown) => reason as Error,
  );
  expect(error).toBeInstanceOf(CheckpointError);
  return error.message;
}

describe("the demo model", () => {
  test("its configuration and tensors", async () => {
    const { config, tensors, eosTokenIds, format } = await openCheckpoint("models/SmolLM2-135M-Instruct.Q4_1.gguf", {
      requireWeights: true,
    });
    expect(format).toBe("gguf");
    expect(config).toMatchObject({
      architecture: "llama",
      vocabularySize: 49152,
      hiddenSize: 576,
      intermediateSize: 1536,
      numLayers: 30,
      numHeads: 9,
      numKvHeads: 3,
      headDim: 64,
      ropeTheta: 100000,
      tieWordEmbeddings: true,
      maxPosition: 8192,
      dtype: "quantized",
    });
    expect(config.rmsNormEpsilon).toBeCloseTo(1e-5, 12);
    expect(eosTokenIds).toEqual([2]);
    expect(tensors.size).toBe(272);
    expect(tensors.get("model.embed_tokens.weight")).toMatchObject({ type: "Q8_0", shape: [49152, 576] });
    const query = { type: "Q4_1", shape: [576, 576], bytes: (576 * 576 * 20) / 32, interleavedRows: true };
    expect(tensors.get("model.layers.29.self_attn.q_proj.weight")).toMatchObject(query);
    expect(tensors.get("model.layers.0.self_attn.k_proj.weight")).toMatchObject({
      shape: [192, 576],
      interleavedRows: true,
    });
    expect(tensors.get("model.layers.0.self_attn.v_proj.weight")!.interleavedRows).toBe(false);
    expect(tensors.get("model.layers.0.mlp.down_proj.weight")!.shape).toEqual([576, 1536]);
  });
});

describe("models", () => {
  test("names, shapes and places", async () => {
    const data = new Uint8Array(new Float32Array([1, 2, 3, 4, 5, 6, 7, 8]).buffer);
    const { tensors, config, tokenizer } = await openModel({}, [
      { name: "output.weight", dimensions: [8, 10] },
      { name: "blk.1.attn_q.bias", dimensions: [8], data },
    ]);
    expect([...tensors.keys()].sort()).toEqual(
      [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        ...[0, 1].flatMap((layer) =>
          [
            "input_layernorm",
            "post_attention_layernorm",
            "mlp.down_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "self_attn.k_proj",
            "self_attn.o_proj",
            "self_attn.q_proj",
            "self_attn.v_proj",
          ].map((name) => `model.layers.${layer}.${name}.weight`),
        ),
      ].sort(),
    );
    expect(config).toMatchObject({
      tieWordEmbeddings: false,
      headDim: 4,
      numKvHeads: 1,
      vocabularySize: 10,
      dtype: "float32",
    });
    expect(tokenizer).toBeNull();
    const bias = tensors.get("model.layers.1.self_attn.q_proj.bias")!;
    expect(bias.interleavedRows).toBe(true);
    const bytes = await Bun.file(bias.file)
      .slice(bias.offset, bias.offset + bias.bytes)
      .arrayBuffer();
    expect([...new Float32Array(bytes)]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  test("qwen's rows lie as the model has them, and head_dim may be its own", async () => {
    const norms = ["q", "k"].map((name) => ({ name: `blk.0.attn_${name}_norm.weight`, dimensions: [4] }));
    const { tensors, config } = await openModel({ "qwen3.attention.key_length": 6 }, norms, "qwen3");
    expect(config).toMatchObject({ architecture: "qwen3", headDim: 6, attentionBias: false });
    expect(tensors.get("model.layers.0.self_attn.q_proj.weight")!.interleavedRows).toBe(false);
    expect(tensors.get("model.layers.0.self_attn.q_norm.weight")!.shape).toEqual([4]);
    const biases = ["q", "k", "v"].map((name) => ({ name: `blk.0.attn_${name}.bias`, dimensions: [4] }));
    expect((await openModel({}, biases, "qwen2")).config.attentionBias).toBe(true);
  });

  test("every type that is supported has the size ggml gives it", async () => {
    const sizes = { F32: 2048, F16: 1024, Q4_0: 288, Q4_1: 320, Q8_0: 544, Q4_K: 288, Q6_K: 420, BF16: 1024 };
    const numbers = { F32: 0, F16: 1, Q4_0: 2, Q4_1: 3, Q8_0: 8, Q4_K: 12, Q6_K: 14, BF16: 30 };
    for (const [type, number] of Object.entries(numbers)) {
      const { tensors, config } = await openModel({}, [{ name: "output.weight", dimensions: [256, 2], type: number }]);
      expect(tensors.get("lm_head.weight")).toMatchObject({ type, bytes: sizes[type as keyof typeof sizes] });
      const expected = { F32: "float32", F16: "float16", BF16: "bfloat16" }[type] ?? "quantized";
      expect(config.dtype).toBe(expected as typeof config.dtype);
    }
    const message = await refuse(openModel({}, [{ name: "output.weight", dimensions: [256, 2], type: 13 }]));
    expect(message).toContain("output.weight is of type Q5_K, which is not supported; supported: F32, F16, Q4_0,");
  });

  test("what is not such a model is refused", async () => {
    expect(await refuse(openModel({}, [], "gemma3"))).toContain(
      'architecture "gemma3" is not supported in GGUF; supported: llama, qwen2, qwen3',
    );
    expect(await refuse(openModel({ "llama.expert_count": 8 }))).toContain("llama.expert_count 8");
    expect(await refuse(openModel({ "llama.rope.dimension_count": 2 }))).toContain("rope.dimension_count 2");
    const split = ggufBytes({ ...llamaMetadata(), "split.count": 2 }, llamaTensors().slice(0, 5));
    expect(await refuse(openBytes(split))).toContain("a model split into 2 files is not supported");
    expect(await refuse(openModel({ "llama.attention.head_count": 3 }))).toContain("hidden_size 8 is not a multiple");
    expect(await refuse(openModel({ "llama.attention.head_count_kv": [1, 2] }))).toContain("differs between layers");
    expect((await openModel({ "llama.attention.head_count_kv": [1, 1] })).config.numKvHeads).toBe(1);
    expect(await refuse(openModel({ "llama.block_count": "2" }))).toContain(
      "llama.block_count must be a number or a list of numbers",
    );
    expect(await refuse(openModel({ "llama.block_count": 0 }))).toContain(
      "llama.block_count must be a whole number from 1",
    );
    expect(await refuse(openModel({}, [{ name: "blk.0.ssm_in.weight", dimensions: [8] }]))).toContain(
      "blk.0.ssm_in.weight",
    );
    expect(await refuse(openBytes(ggufBytes({}, llamaTensors())))).toContain("architecture null");
    expect(await refuse(openBytes(ggufBytes(llamaMetadata())))).toContain("token_embd.weight is missing");
  });
});

describe("rotary scaling", () => {
  const scaling = async (metadata: Record<string, unknown>, tensors: GgufTensorSpec[] = []) => {
    const keys = Object.entries(metadata).map(([key, value]) => [`llama.rope.scaling.${key}`, value]);
    return (await openModel(Object.fromEntries(keys), tensors)).config.ropeScaling;
  };
  const factors = (...values: number[]): GgufTensorSpec => {
    const data = new Uint8Array(Float32Array.from(values).buffer);
    return { name: "rope_freqs.weight", dimensions: [values.length], data };
  };

  test("by keys", async () => {
    expect(await scaling({})).toEqual({ type: "none" });
    expect(await scaling({ type: "linear", factor: 4 })).toEqual({ type: "linear", factor: 4 });
    expect(await scaling({ type: "yarn", factor: 4, original_context_length: 128 })).toEqual({
      type: "yarn",
      factor: 4,
      originalMaxPosition: 128,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: expect.closeTo(1.138629436, 8),
    });
    expect(await refuse(scaling({ type: "longrope", factor: 4 }))).toContain(
      "rope.scaling.type longrope is not supported",
    );
  });

  test("by the factors of rope_freqs.weight, for heads of 4", async () => {
    expect(await scaling({}, [factors(1, 5.5)])).toEqual({ type: "factors", factors: Float32Array.of(1, 5.5) });
    expect(await refuse(scaling({}, [factors(1, 2, 3)]))).toContain("rope_freqs.weight must be F32 [2]");
    for (const bad of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(await refuse(scaling({}, [factors(1, bad)]))).toContain("a factor that is not above 0");
    }
    expect(await refuse(scaling({ type: "linear", factor: 2 }, [factors(1, 2)]))).toContain("is not supported");
  });
});

describe("hostile files", () => {
  test("other formats and versions", async () => {
    const bytes = ggufBytes(llamaMetadata(), llamaTensors());
    expect(await refuse(openBytes(new Uint8Array(0)))).toContain("it ends within its header");
    expect(await refuse(openBytes(new TextEncoder().encode("<!doctype html>..."))).then(String)).toContain(
      "not a GGUF file",
    );
    for (const version of [1, 4, 0x03000000]) {
      const other = bytes.slice();
      new DataView(other.buffer).setUint32(4, version, true);
      expect(await refuse(openBytes(other))).toContain(`GGUF version ${version}`);
    }
    expect((await openBytes(ggufBytes(llamaMetadata(), llamaTensors(), { version: 2 }))).tensors.size).toBe(20);
  });

  test("counts and lengths that the file cannot hold", async () => {
    const at = (position: number, value: bigint) => {
      const bytes = ggufBytes(llamaMetadata(), llamaTensors());
      new DataView(bytes.buffer).setBigUint64(position, value, true);
      return openBytes(bytes);
    };
    expect(await refuse(at(8, 1n << 40n))).toContain("the number of tensors is 1099511627776");
    expect(await refuse(at(16, (1n << 64n) - 1n))).toContain("the number of metadata keys is");
    expect(await refuse(at(24, 1n << 62n))).toContain("the length of a string is");
    const array = (element: number, length: number) => {
      const bytes = ggufBytes({ a: { type: GgufType.array, value: [], element } });
      new DataView(bytes.buffer).setBigUint64(bytes.length - 8 - ((bytes.length - 8) % 8), 0n);
      const view = new DataView(bytes.buffer);
      // magic, version, counts, key length, key, type, element type: then the length
      view.setBigUint64(4 + 4 + 16 + 8 + 1 + 4 + 4, BigInt(length), true);
      return openBytes(bytes);
    };
    expect(await refuse(array(GgufType.string, 1 << 20))).toContain("an array of 1048576 strings does not fit");
    expect(await refuse(array(GgufType.u64, 1 << 24))).toContain("it ends within its header");
    expect(await refuse(array(GgufType.u32, 1e12))).toContain("the length of an array is 1000000000000");
    expect(await refuse(array(GgufType.array, 1))).toContain("a metadata value has the type 9");
  });

  test("keys, tensors and alignments that make no sense", async () => {
    const tensors = (...more: GgufTensorSpec[]) => openBytes(ggufBytes(llamaMetadata(), llamaTensors(more)));
    const norm = { name: "output.weight", dimensions: [8] };
    expect(await refuse(tensors(norm, norm))).toContain("the tensor output.weight stands twice");
    expect(await refuse(tensors({ ...norm, dimensions: [] }))).toContain("has 0 dimensions");
    expect(await refuse(tensors({ ...norm, dimensions: [1, 1, 1, 1, 1] }))).toContain("has 5 dimensions");
    expect(await refuse(tensors({ ...norm, offset: 7 }))).toContain("not aligned to 32 bytes");
    expect(await refuse(tensors({ ...norm, dimensions: [33], type: 8 }))).toContain("no whole number of Q8_0 blocks");
    expect(await refuse(tensors({ ...norm, offset: 0 }))).toContain("overlap");
    for (const alignment of [0, 3, 24]) {
      const bytes = ggufBytes(llamaMetadata("llama", { "general.alignment": alignment }), llamaTensors());
      expect(await refuse(openBytes(bytes))).toContain(`general.alignment ${alignment}`);
    }
    const wide = ggufBytes(llamaMetadata("llama", { "general.alignment": 256 }), llamaTensors(), { alignment: 256 });
    expect((await openBytes(wide)).tensors.get("model.norm.weight")!.offset % 256).toBe(0);
    const whole = ggufBytes(llamaMetadata(), llamaTensors());
    expect(await refuse(openBytes(whole.slice(0, whole.length - 64)))).toMatch(/truncated: .* ends at byte/);
  });

  test("random damage never does worse than a CheckpointError", async () => {
    const tokens = ["a", "b", "ab"];
    const metadata = llamaMetadata("llama", {
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.pre": "gpt-2",
      "tokenizer.ggml.tokens": tokens,
      "tokenizer.ggml.token_type": [1, 1, 1],
      "tokenizer.ggml.merges": ["a b"],
    });
    const good = ggufBytes(metadata, llamaTensors());
    let state = 99;
    const random = (limit: number) => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return (state >>> 8) % limit;
    };
    let refused = 0;
    for (let round = 0; round < 500; round++) {
      const bytes = round % 5 === 0 ? good.slice(0, random(good.length)) : good.slice();
      for (let i = 0; i <= random(4); i++) bytes[random(Math.min(bytes.length, 1800))] = random(3) ? random(256) : 255;
      await openBytes(bytes).catch((error: unknown) => {
        expect(error).toBeInstanceOf(CheckpointError);
        refused++;
      });
    }
    expect(refused).toBeGreaterThan(300);
  });
});
