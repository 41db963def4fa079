import type { ModelConfig, RopeScaling } from "../checkpoint/types.ts";

const f32 = Math.fround;

/**
 * Angle a position of each pair of dimensions, [headDim / 2] (Su et al., 2021), scaled as the configuration says:
 * linear (Chen et al., 2023), llama3 (Llama 3.1), yarn (Peng et al., 2023). Rounded to float32 where Hugging Face
 * transformers rounds, since at position 10,000 the difference would show.
 */
export function inverseFrequencies(config: ModelConfig): Float32Array {
  const { headDim, ropeTheta, ropeScaling } = config;
  const frequencies = new Float32Array(headDim / 2);
  for (let i = 0; i < frequencies.length; i++) {
    frequencies[i] = scale(1 / f32(ropeTheta ** f32((2 * i) / headDim)), i, config, ropeScaling);
  }
  return frequencies;
}

function scale(frequency: number, pair: number, config: ModelConfig, scaling: RopeScaling): number {
  switch (scaling.type) {
    case "none":
      return frequency;
    case "linear":
      return f32(frequency) / scaling.factor;
    case "factors":
      return f32(frequency) / (scaling.factors[pair] as number);
    case "llama3": {
      const { factor, lowFreqFactor, highFreqFactor, originalMaxPosition } = scaling;
      const waves = originalMaxPosition / ((2 * Math.PI) / f32(frequency));
      if (waves > highFreqFactor) return frequency;
      if (waves < lowFreqFactor) return f32(frequency) / factor;
      const smooth = (waves - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
      return ((1 - smooth) * f32(frequency)) / factor + smooth * f32(frequency);
    }
    case "yarn": {
      const { headDim, ropeTheta } = config;
      const { factor, betaFast, betaSlow, originalMaxPosition } = scaling;
      const correction = (rotations: number) =>
        (headDim * Math.log(originalMaxPosition / (rotations * 2 * Math.PI))) / (2 * Math.log(ropeTheta));
      const low = Math.max(Math.floor(correction(betaFast)), 0);
      const high = Math.min(Math.ceil(correction(betaSlow)), headDim - 1);
      const ramp = Math.min(Math.max((pair - low) / Math.max(high - low, 0.001), 0), 1);
      return (frequency / factor) * ramp + frequency * (1 - ramp);
    }
  }
}

/** (cos[headDim / 2], sin[headDim / 2]) of positions 0 .. positions - 1, as msgl_rotary_store reads it. */
export function rotaryTable(config: ModelConfig, positions: number): Float32Array {
  const frequencies = inverseFrequencies(config);
  const half = frequencies.length;
  const magnitude = config.ropeScaling.type === "yarn" ? config.ropeScaling.attentionFactor : 1;
  const table = new Float32Array(positions * 2 * half);
  for (let position = 0; position < positions; position++) {
    const at = position * 2 * half;
    for (let i = 0; i < half; i++) {
      const angle = f32(position * (frequencies[i] as number));
      table[at + i] = Math.cos(angle) * magnitude;
      table[at + half + i] = Math.sin(angle) * magnitude;
    }
  }
  return table;
}
