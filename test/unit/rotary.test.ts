import { expect, test } from "bun:test";
import type { ModelConfig, RopeScaling } from "../../src/checkpoint/types.ts";
import { inverseFrequencies } from "../../src/layer/rotary.ts";

const frequencies = (ropeScaling: RopeScaling, headDim = 64) =>
  inverseFrequencies({ headDim, ropeTheta: 500000, ropeScaling } as ModelConfig);

test("the factors that llama.cpp's converter writes give what llama3's parameters give", () => {
  const [factor, low, high, original] = [8, 0.8, 3, 300];
  const factors = Float32Array.from({ length: 32 }, (_, i) => {
    const wavelength = 2 * Math.PI * 500000 ** (i / 32);
    if (wavelength < original / high) return 1;
    if (wavelength > original / low) return factor;
    const smooth = (original / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  });
  const bounds = { lowFreqFactor: low, highFreqFactor: high, originalMaxPosition: original };
  const expected = frequencies({ type: "llama3", factor, ...bounds });
  const found = frequencies({ type: "factors", factors });
  found.forEach((frequency, i) => {
    expect(Math.abs(frequency / (expected[i] as number) - 1)).toBeLessThan(3e-7);
  });
  expect(found).not.toEqual(frequencies({ type: "none" }));
});
