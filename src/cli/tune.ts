/** `minisgl tune`: times the algorithms of a model's matrix products on this card, once, and keeps the best on disk. */
import type { Command } from "commander";
import { openCheckpoint } from "../checkpoint/open.ts";
import type { ModelConfig } from "../checkpoint/types.ts";
import { algorithmFile, mergeTable, type Product, readTable, tuneProduct, writeTable } from "../native/algorithms.ts";
import { openDevice } from "../native/open-device.ts";
import { DType } from "../native/tensor.ts";
import { worded } from "./options.ts";
import { integers } from "./values.ts";

/** Steps of decode and of prefill; a line stands for the numbers between it and the half of it as well. */
const TOKENS = [16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];

interface TuneFlags {
  model: string;
  tokens: number[];
  output?: string;
}

/** Adds `tune`. */
export function addTune(program: Command): void {
  program
    .command("tune")
    .description("find the fastest algorithms for a model's matrix products on this GPU, and keep them on disk")
    .requiredOption("--model <name>", "folder, .gguf file or cached repository; config.json suffices")
    .addOption(
      worded("--tokens <n,...>", "numbers of tokens in a step", integers(1, 1 << 17), TOKENS, TOKENS.join(",")),
    )
    .option("--output <file>", "keep them in this file instead of the cache folder, where every start finds them")
    .action(tune);
}

async function tune({ model, tokens, output }: TuneFlags): Promise<void> {
  const { config } = await openCheckpoint(model, { requireWeights: false });
  const { device } = openDevice("cuda", 0);
  const { name } = device.properties();
  const path = output ?? algorithmFile(name);
  const products = modelProducts(config);
  const dtype = config.dtype === "float16" ? DType.F16 : DType.BF16;
  process.stdout.write(`${products.length} products on ${name}, kept in ${path}\n`);
  for (const count of tokens) {
    // Logits are computed for one token a sequence, and never for a whole prompt.
    const lines = products
      .filter(({ form }) => form !== "f32" || count <= 1024)
      .map((product) => tuneProduct(device, product, count, dtype))
      .filter((line) => line !== "");
    for (const line of lines) process.stdout.write(`${line}\n`);
    writeTable(path, mergeTable(readTable(path) || `# ${name}\n`, lines));
  }
  device.close();
}

/** The matrix products of a model's layer and of its head, each once. Plain before gated, which is measured against it. */
export function modelProducts(config: ModelConfig): Product[] {
  const { hiddenSize, intermediateSize, numHeads, numKvHeads, headDim, vocabularySize } = config;
  return [
    { n: (numHeads + 2 * numKvHeads) * headDim, k: hiddenSize, form: "plain" },
    { n: hiddenSize, k: numHeads * headDim, form: "add" },
    { n: 2 * intermediateSize, k: hiddenSize, form: "plain" },
    { n: 2 * intermediateSize, k: hiddenSize, form: "gated" },
    { n: hiddenSize, k: intermediateSize, form: "add" },
    { n: vocabularySize, k: hiddenSize, form: "f32" },
  ];
}
