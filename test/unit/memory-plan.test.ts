import { describe, expect, test } from "bun:test";
import type { ModelConfig } from "../../src/checkpoint/types.ts";
import { planPool } from "../../src/engine/memory-plan.ts";
import type { EngineOptions } from "../../src/message/types.ts";
import type { DeviceProperties } from "../../src/native/device.ts";
import { DType } from "../../src/native/tensor.ts";

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
