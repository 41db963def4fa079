import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import type { ModelConfig } from "../../src/checkpoint/types.ts";
import { loadEngine } from "../../src/engine/load.ts";
import { planPool, planWeights } from "../../src/engine/memory-plan.ts";
import type { EngineOptions } from "../../src/message/types.ts";
import type { DeviceProperties } from "../../src/native/device.ts";
import { DType } from "../../src/native/tensor.ts";
import { DEFAULT_OPTIONS } from "../../src/runtime/options.ts";

/** 2 layers of 1 head of 64 in bfloat16: 512 bytes a token. */
const config = { numLayers: 2, numKvHeads: 1, headDim: 64, maxPosition: 1000 } as ModelConfig;
const plan = (freeMemory: number, options: Partial<EngineOptions>, gpu = true) =>
  planPool(
    config,
    DType.BF16,
    { pageSize: 1, numPages: 0, memoryRatio: 0, maxSequenceLength: 0, ...options } as EngineOptions,
    { freeMemory, floatActivations: !gpu } as DeviceProperties,
    4,
  );

describe("the KV pool", () => {
  test("takes its share of what is free, and one page more for padding", () => {
    expect(plan(512 * 1000, { memoryRatio: 0.5 })).toEqual({ numPages: 499, maxContext: 499, bytes: 512 * 500 });
    expect(plan(512 * 10_000, { pageSize: 16, memoryRatio: 0.9 }).numPages).toBe(561);
  });

  test("limits the context to the least of model, override and pool", () => {
    expect(plan(1 << 30, {}).maxContext).toBe(1000);
    expect(plan(1 << 30, { maxSequenceLength: 300 }).maxContext).toBe(300);
    expect(plan(1 << 30, { numPages: 50 }).maxContext).toBe(50);
  });

  test("on a CPU is no larger than its sequences can fill", () => {
    expect(plan(1 << 30, {}, false).numPages).toBe(4000);
  });

  test("that is too small or too large says what to change", () => {
    expect(() => plan(1 << 30, { numPages: 1 })).toThrow(/--num-pages 1 does not hold 16 pages.*larger --num-pages/);
    expect(() => plan(512 * 10, {})).toThrow(/does not hold 16 pages.*--memory-ratio/);
    expect(() => plan(512 * 100, { numPages: 200 })).toThrow(/are free: use a smaller --num-pages/);
  });
});

describe("the weights", () => {
  const fixture = (name: string) => join(import.meta.dir, "../parity/fixtures", name);
  const keepsBlocks = (freeMemory: number) => ({
    freeMemory,
    name: "card",
    keeps: (type: DType) => type !== DType.Q4_K,
  });
  const options = { ...DEFAULT_OPTIONS, device: "cpu", threads: 1, numPages: 64 } as const;

  test.each(["qwen2", "qwen3", "llama-attention-bias", "llama-tied-llama3", "mistral-sharded"])(
    "of %s are known before they are loaded, but for what a device pads them with",
    async (name) => {
      const model = fixture(name);
      const checkpoint = await openCheckpoint(model, { requireWeights: true });
      for (const dummyWeight of [false, true]) {
        const { engine, info } = await loadEngine({ ...options, model, dtype: "float32", dummyWeight });
        const properties = engine.device.properties();
        const source = dummyWeight ? { ...checkpoint, tensors: new Map() } : checkpoint;
        const planned = planWeights(source, DType.F32, DType.F32, properties);
        expect(info.weightBytes / planned).toBeWithin(1, 1.12);
        engine.close();
      }
    },
  );

  test("are counted in the type that they are kept in", () => {
    const tensor = (name: string, type: string, shape: number[]) => [name, { name, type, shape }] as const;
    const tensors = new Map([
      tensor("a", "Q4_0", [2, 64]), // 72 bytes
      tensor("b", "Q4_K", [2, 256]), // not kept: 1024 bytes in bfloat16
      tensor("c", "F32", [10, 10]), // 200
      tensor("norm", "F32", [25]), // 100 in float32
      tensor("lm_head.weight", "F32", [100, 100]), // tied: not read
    ]);
    const checkpoint = { config: { tieWordEmbeddings: true }, tensors } as never;
    expect(planWeights(checkpoint, DType.BF16, DType.F32, keepsBlocks(1396))).toBe(1396);
    expect(() => planWeights(checkpoint, DType.BF16, DType.F32, keepsBlocks(1395))).toThrow("too little (card)");
  });

  test("that do not fit are refused with what is lacking, and before any is made", async () => {
    const folder = mkdtempSync(join(tmpdir(), "minisgl-large-"));
    // Llama 3 70B's shapes, 1000 layers of them.
    const shapes = { vocab_size: 128256, hidden_size: 8192, intermediate_size: 28672, num_hidden_layers: 1000 };
    const config = { model_type: "llama", ...shapes, num_attention_heads: 64, num_key_value_heads: 8 };
    writeFileSync(join(folder, "config.json"), JSON.stringify(config));
    const loading = loadEngine({ ...options, model: folder, dummyWeight: true });
    await expect(loading).rejects.toThrow(
      /^the weights need 1715\.5 GB, \d+\.\d GB are free: \d+\.\d GB too little \(.+\)$/,
    );
    rmSync(folder, { recursive: true });
  });
});
