import { expect, test } from "bun:test";
import { join } from "node:path";
import { loadEngine } from "../../src/engine/load.ts";
import { logprob, runLone } from "../../src/engine/lone.ts";
import { engineOptions } from "./support.ts";

const model = join(import.meta.dir, "../../models/SmolLM2-135M-Instruct.Q4_1.gguf");

interface Reference {
  prompts: number[][];
  tokens: number[][];
  top: [token: number, logit: number][][];
  logprobs: number[][];
  gaps: number[][];
}
const reference: Reference = await Bun.file(join(import.meta.dir, "demo-model.json")).json();

test("the demo model in float32 gives transformers' tokens and logits", async () => {
  const { engine } = await loadEngine(engineOptions(model, { numPages: 600 }));
  for (const [index, prompt] of reference.prompts.entries()) {
    const tokens = reference.tokens[index] as number[];
    const result = runLone(engine, prompt, tokens.length, { chunk: 256 });
    expect(result.tokens).toEqual(tokens);
    const top = reference.top[index] as Reference["top"][number];
    const largest = Math.abs((top[0] as [number, number])[1]);
    for (const [token, logit] of top) {
      expect(Math.abs(((result.logits[0] as Float32Array)[token] as number) - logit) / largest).toBeLessThan(1e-4);
    }
  }
  engine.close();
});

/**
 * Weights stay the GGUF blocks they are; bfloat16 rounds what is kept in the KV pool to 8 bits: 2^-9 relative a value,
 * averaged over heads and positions. Logits of this model are of magnitude 20, so 0.15 is 1%.
 */
test("the demo model in bfloat16 follows within 0.15 under teacher forcing", async () => {
  const { engine } = await loadEngine(engineOptions(model, { dtype: "bfloat16", numPages: 600 }));
  for (const [index, prompt] of reference.prompts.entries()) {
    const forced = reference.tokens[index] as number[];
    const { logits } = runLone(engine, prompt, forced.length, { forced, chunk: 256 });
    for (const [step, wanted] of (reference.logprobs[index] as number[]).entries()) {
      expect(Math.abs(logprob(logits[step] as Float32Array, forced[step] as number) - wanted)).toBeLessThan(0.15);
    }
  }
  engine.close();
});
