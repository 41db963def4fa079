/** `minisgl tune`: times the algorithms of a model's matrix products on this card, once, and keeps the best on disk. */
import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import type { Command } from "commander";
import { openCheckpoint } from "../checkpoint/open.ts";
import type { ModelConfig } from "../checkpoint/types.ts";
import { algorithmFile, mergeTable, type Product, readTable, tuneProduct, writeTable } from "../native/algorithms.ts";
import { openDevice } from "../native/open-device.ts";
import { DType } from "../native/tensor.ts";
import { checkWritable } from "./bench-output.ts";
import { UserError } from "./errors.ts";
import { option, worded } from "./options.ts";
import { integers } from "./values.ts";

/** Steps of decode and of prefill; a line stands for the numbers between it and the half of it as well. */
const TOKENS = [16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];

interface TuneFlags {
  model?: string;
  tokens: number[];
  output?: string;
}

/** Adds `tune`. */
export function addTune(program: Command): void {
  const command = program
    .command("tune")
    .description("find the fastest algorithms for a model's matrix products on this GPU, and keep them on disk");
  const model = "folder, .gguf file or cached repository; config.json suffices";
  for (const one of option("Options:", "--model, --model-path <name>", model)) command.addOption(one);
  command
    .addOption(
      worded("--tokens <n,...>", "numbers of tokens in a step", integers(1, 1 << 17), TOKENS, TOKENS.join(",")),
    )
    .option(
      "--output <file>",
      "keep them in this file and not in ~/.cache/minisgl/algorithms; to use it, copy it there under the card's name",
    )
    .action(tune);
}

async function tune({ model, tokens, output }: TuneFlags): Promise<void> {
  if (model === undefined)
    throw new UserError("no model given: add --model with a folder, a .gguf file or a repository");
  if (output !== undefined) checkWritable(output, "the table");
  const { config } = await openCheckpoint(model, { requireWeights: false });
  const { device } = openDevice("cuda", 0);
  const { name } = device.properties();
  const path = output ?? algorithmFile(name);
  if (output === undefined) {
    mkdirSync(dirname(path), { recursive: true });
    checkWritable(path, "the table");
  }
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
  if (output !== undefined) {
    process.stdout.write(
      `Every start on a host with this card uses them once they are copied to ${algorithmFile(name)}\n`,
    );
  }
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
