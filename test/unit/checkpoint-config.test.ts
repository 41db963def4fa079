import { describe, expect, test } from "bun:test";
import { readConfig, readGenerationConfig } from "../../src/checkpoint/config.ts";
import { CheckpointError } from "../../src/checkpoint/types.ts";

const base = {
  model_type: "llama",
  architectures: ["LlamaForCausalLM"],
  vocab_size: 1000,
  hidden_size: 64,
  intermediate_size: 100,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
  torch_dtype: "bfloat16",
};
const qwen3 = { ...base, model_type: "qwen3", architectures: ["Qwen3ForCausalLM"], head_dim: 32 };
const read = (fields: object) => readConfig({ ...base, ...fields }, "config.json").config;
const refuse = (fields: object) => {
  try {
    readConfig({ ...base, ...fields }, "m/config.json");
  } catch (error) {
    expect(error).toBeInstanceOf(CheckpointError);
    return (error as Error).message;
  }
  throw new Error(`accepted ${JSON.stringify(fields)}`);
};

describe("sizes", () => {
  test("a plain configuration", () => {
    expect(read({})).toEqual({
      architecture: "llama",
      vocabularySize: 1000,
      hiddenSize: 64,
      intermediateSize: 100,
      numLayers: 2,
      numHeads: 4,
      numKvHeads: 2,
      headDim: 16,
      rmsNormEpsilon: 1e-5,
      ropeTheta: 10000,
      ropeScaling: { type: "none" },
      attentionBias: false,
      attentionOutputBias: false,
      tieWordEmbeddings: false,
      maxPosition: 4096,
      slidingWindow: 0,
      dtype: "bfloat16",
    });
  });

  test("head_dim: given, null, absent, and qwen3's own default", () => {
    expect(read({ head_dim: 80 }).headDim).toBe(80);
    expect(read({ head_dim: null }).headDim).toBe(16);
    const { head_dim: _, ...without } = qwen3;
    expect(readConfig(without, "").config.headDim).toBe(128);
    expect(refuse({ hidden_size: 62 })).toContain("hidden_size 62 is not a multiple of num_attention_heads 4");
    expect(read({ hidden_size: 62, head_dim: 16 }).headDim).toBe(16);
    expect(refuse({ head_dim: 15 })).toContain("head_dim 15 is odd");
  });

  test("key-value heads default as transformers has them", () => {
    const { num_key_value_heads: _, ...without } = base;
    expect(readConfig(without, "").config.numKvHeads).toBe(4);
    expect(readConfig({ ...without, model_type: "mistral", num_attention_heads: 16 }, "").config.numKvHeads).toBe(8);
    expect(read({ num_key_value_heads: null }).numKvHeads).toBe(4);
    expect(refuse({ num_key_value_heads: 3 })).toContain("not a multiple of num_key_value_heads 3");
  });

  test.each([
    ["vocab_size", -5],
    ["vocab_size", 1e12],
    ["hidden_size", 0],
    ["hidden_size", 64.5],
    ["num_hidden_layers", 100000],
    ["num_attention_heads", "4"],
    ["intermediate_size", null],
    ["intermediate_size", Number.NaN],
    ["max_position_embeddings", -1],
    ["eos_token_id", "x"],
    ["rope_theta", -1],
    ["tie_word_embeddings", "yes"],
  ])("an absurd %s of %p is refused by name", (field, value) => {
    expect(refuse({ [field]: value })).toContain(field);
  });

  test("a missing field is named", () => {
    expect(refuse({ hidden_size: undefined })).toContain(
      "hidden_size must be a whole number from 1 to 262144; it is missing",
    );
  });
});

describe("architectures", () => {
  test("by model_type, or by class name", () => {
    expect(readConfig(qwen3, "").config.architecture).toBe("qwen3");
    const { model_type: _, ...unnamed } = qwen3;
    expect(readConfig(unnamed, "").config.architecture).toBe("qwen3");
    expect(readConfig({ ...base, model_type: "qwen2", architectures: undefined }, "").config.architecture).toBe(
      "qwen2",
    );
  });

  test("others are refused with the list of what works", () => {
    const message = refuse({ model_type: "mixtral", architectures: ["MixtralForCausalLM"] });
    expect(message).toBe(
      "m/config.json: architecture not supported: mixtral, MixtralForCausalLM. Supported: llama, mistral, qwen2, qwen3 (…ForCausalLM)",
    );
    expect(refuse({ architectures: ["LlamaForSequenceClassification"] })).toContain("LlamaForSequenceClassification");
    expect(refuse({ model_type: "constructor", architectures: [] })).toContain("not supported");
  });

  test("biases", () => {
    expect(read({ attention_bias: true })).toMatchObject({ attentionBias: true, attentionOutputBias: true });
    expect(read({ model_type: "qwen2" })).toMatchObject({ attentionBias: true, attentionOutputBias: false });
    expect(readConfig({ ...qwen3, attention_bias: true }, "").config.attentionBias).toBe(true);
    expect(read({ model_type: "mistral", attention_bias: true }).attentionBias).toBe(false);
  });

  test("a window limits the context to itself", () => {
    const mistral = { model_type: "mistral", architectures: ["MistralForCausalLM"] };
    expect(read({ ...mistral, sliding_window: 1024 })).toMatchObject({ slidingWindow: 1024, maxPosition: 1024 });
    expect(read({ ...mistral, sliding_window: null })).toMatchObject({ slidingWindow: 0, maxPosition: 4096 });
    expect(read({ ...mistral, max_position_embeddings: 9000 }).maxPosition).toBe(4096);
    const qwen = { model_type: "qwen2", sliding_window: 100 };
    expect(read(qwen).slidingWindow).toBe(0);
    expect(read({ ...qwen, use_sliding_window: true, max_window_layers: 1 }).maxPosition).toBe(100);
    expect(read({ ...qwen, use_sliding_window: true, max_window_layers: 2 }).slidingWindow).toBe(0);
    const layers = ["full_attention", "sliding_attention"];
    expect(read({ ...qwen, use_sliding_window: true, max_window_layers: 2, layer_types: layers }).slidingWindow).toBe(
      100,
    );
    expect(read({ sliding_window: 100 }).slidingWindow).toBe(0);
  });

  test.each([
    ["mlp_bias", true],
    ["hidden_act", "gelu"],
    ["quantization_config", { quant_method: "awq" }],
    ["partial_rotary_factor", 0.5],
  ])("%s would be silently wrong and is refused", (field, value) => {
    expect(refuse({ [field]: value })).toContain(field);
  });

  test("features that are switched off are no obstacle", () => {
    expect(
      read({ mlp_bias: false, hidden_act: "silu", quantization_config: null, partial_rotary_factor: 1 }).headDim,
    ).toBe(16);
  });
});

describe("rotary embedding", () => {
  test("transformers 4 and 5 say the same", () => {
    const four = read({ rope_theta: 500000, rope_scaling: { type: "linear", factor: 2 } });
    const five = read({ rope_parameters: { rope_type: "linear", factor: 2, rope_theta: 500000 } });
    expect(four).toEqual(five);
    expect(four).toMatchObject({ ropeTheta: 500000, ropeScaling: { type: "linear", factor: 2 } });
    expect(read({ rope_scaling: null, rope_theta: 1e6 }).ropeScaling).toEqual({ type: "none" });
  });

  test("llama3", () => {
    const scaling = { factor: 32, high_freq_factor: 4, low_freq_factor: 1, original_max_position_embeddings: 8192 };
    expect(read({ rope_scaling: { ...scaling, rope_type: "llama3" } }).ropeScaling).toEqual({
      type: "llama3",
      factor: 32,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPosition: 8192,
    });
    expect(refuse({ rope_scaling: { rope_type: "llama3", factor: 8 } })).toContain("rope_scaling.low_freq_factor");
    expect(refuse({ rope_scaling: { ...scaling, rope_type: "llama3", high_freq_factor: 1 } })).toContain(
      "high_freq_factor",
    );
  });

  // The factors are what transformers 5.17 computes in _compute_yarn_parameters.
  test.each([
    [{}, 1.138629436111989],
    [{ attention_factor: 0.9 }, 0.9],
    [{ mscale: 0.8, mscale_all_dim: 1 }, 0.9756497712573884],
    [{ mscale: 0.8 }, 1.138629436111989],
    [{ mscale: 1, mscale_all_dim: 0 }, 1.138629436111989],
  ])("yarn with %p scales by %d", (fields, attentionFactor) => {
    const config = read({
      rope_scaling: { rope_type: "yarn", factor: 4, original_max_position_embeddings: 2048, ...fields },
    });
    expect(config.ropeScaling).toEqual({
      type: "yarn",
      factor: 4,
      originalMaxPosition: 2048,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: expect.closeTo(attentionFactor, 12),
    });
    expect(config.maxPosition).toBe(8192);
  });

  test("kinds that are not implemented are errors", () => {
    for (const type of ["dynamic", "longrope", "su", "proportional", 3]) {
      expect(refuse({ rope_scaling: { type, factor: 2 } })).toContain(`rotary scaling ${JSON.stringify(type)}`);
    }
    expect(refuse({ rope_scaling: { rope_type: "yarn", factor: 4, truncate: false } })).toContain("truncate");
    expect(refuse({ rope_parameters: { full_attention: { rope_type: "default" } } })).toContain("by kind of layer");
    expect(refuse({ rope_scaling: { type: "linear", factor: 0 } })).toContain("rope_scaling.factor");
    expect(refuse({ rope_scaling: [1] })).toContain("rope_scaling must be an object");
  });
});

describe("types and special tokens", () => {
  test("dtype under both names", () => {
    expect(read({ torch_dtype: "float16" }).dtype).toBe("float16");
    expect(read({ torch_dtype: undefined, dtype: "float32" }).dtype).toBe("float32");
    expect(refuse({ torch_dtype: "float8_e4m3fn" })).toContain("float8_e4m3fn");
    expect(readConfig({ ...base, torch_dtype: undefined }, "").dtypeIsKnown).toBe(false);
  });

  test("EOS as one id, a list, or nothing", () => {
    const eos = (eos_token_id: unknown) => readConfig({ ...base, eos_token_id }, "").eosTokenIds;
    expect(eos(7)).toEqual([7]);
    expect(eos([128001, 128009])).toEqual([128001, 128009]);
    expect(eos(null)).toBeNull();
    expect(eos(undefined)).toBeNull();
    expect(eos(-1)).toEqual([]);
  });

  test("generation_config.json", () => {
    const raw = {
      temperature: 0.6,
      top_k: 20,
      top_p: 0.95,
      min_p: null,
      repetition_penalty: 1.1,
      eos_token_id: [1, 2],
    };
    expect(readGenerationConfig(raw, "")).toEqual({
      generation: { temperature: 0.6, topK: 20, topP: 0.95, repetitionPenalty: 1.1 },
      eosTokenIds: [1, 2],
      bosTokenId: null,
    });
    expect(readGenerationConfig(null, "")).toEqual({ generation: {}, eosTokenIds: null, bosTokenId: null });
    expect(readGenerationConfig({ top_k: -1 }, "").generation).toEqual({ topK: 0 });
    expect(() => readGenerationConfig({ top_p: 2 }, "g.json")).toThrow("g.json: top_p");
  });
});
