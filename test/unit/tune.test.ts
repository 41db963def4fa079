/** Tables of algorithms as `minisgl tune` keeps them; that devices compute right with them is test/native's. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { modelProducts } from "../../src/cli/tune.ts";
import { algorithmFile, mergeTable, readTable, shippedTable, writeTable } from "../../src/native/algorithms.ts";

const folder = mkdtempSync(join(tmpdir(), "minisgl-tune-"));
afterAll(() => rmSync(folder, { recursive: true }));

describe("a table", () => {
  const old = "# NVIDIA H200\n1024 2048 64 add tiled 64 32 2 106496 # 5.9 us\n4096 1024 64 plain tiled 64 64 1 73728\n";

  test("keeps one line a product, in the order of sizes", () => {
    const lines = ["4096 1024 16 plain tiled 64 16 1 73728", "1024 2048 64 add tiled 64 64 2 106496 # 5.1 us"];
    expect(mergeTable(old, lines).split("\n")).toEqual([
      "# NVIDIA H200",
      "1024 2048 64 add tiled 64 64 2 106496 # 5.1 us",
      "4096 1024 16 plain tiled 64 16 1 73728",
      "4096 1024 64 plain tiled 64 64 1 73728",
      "",
    ]);
  });

  test("is the same however often it is merged", () => {
    const merged = mergeTable(old, []);
    expect(mergeTable(merged, merged.trim().split("\n").slice(1))).toBe(merged);
  });

  test("is written whole, in a folder that need not be there, and read back", () => {
    const path = join(folder, "a", "b.txt");
    expect(readTable(path)).toBe("");
    writeTable(path, old);
    expect(readTable(path)).toBe(old);
    expect(readdirSync(join(folder, "a"))).toEqual(["b.txt"]);
  });

  test("of a card lies in the user's cache folder", () => {
    const before = process.env.XDG_CACHE_HOME;
    process.env.XDG_CACHE_HOME = "/cache";
    expect(algorithmFile("NVIDIA H100 80GB HBM3")).toBe("/cache/minisgl/algorithms/nvidia-h100-80gb-hbm3.txt");
    if (before === undefined) delete process.env.XDG_CACHE_HOME;
    else process.env.XDG_CACHE_HOME = before;
  });
});

describe("the tables that come with the program", () => {
  test("are for all cards of a family, but not for a part of a card", () => {
    const cards = ["H200", "H200 NVL", "H100 80GB HBM3", "H100 PCIe", "H100 NVL", "GH200 480GB"];
    for (const card of cards) expect(shippedTable(`NVIDIA ${card}`)).toStartWith("# NVIDIA H200");
    for (const card of ["A100-SXM4-80GB", "H20", "H100 80GB HBM3 MIG 1g.10gb"]) {
      expect(shippedTable(`NVIDIA ${card}`)).toBe("");
    }
  });

  const tables = join(import.meta.dir, "../../src/native/algorithms");
  const line =
    /^\d+ \d+ \d+ (plain|add|f32|gated) (tiled (64|128) (16|32|64|128|256) [1-8] \d+|cublaslt( -?\d+){9}) # [\d.]+ us$/;

  test.each(readdirSync(tables))("%s has lines of the one form, sorted, one a product", (name) => {
    const text = readFileSync(join(tables, name), "utf8");
    const entries = text.split("\n").filter((entry) => entry !== "" && !entry.startsWith("#"));
    expect(entries.filter((entry) => !line.test(entry))).toEqual([]);
    expect(entries.length).toBeGreaterThan(50);
    expect(mergeTable(text, [])).toBe(text);
  });
});

test("a model's products are those of its layer and its head", () => {
  const config = {
    ...{ architecture: "qwen3", vocabularySize: 151936, hiddenSize: 1024, intermediateSize: 3072, numLayers: 28 },
    ...{ numHeads: 16, numKvHeads: 8, headDim: 128, rmsNormEpsilon: 1e-6, ropeTheta: 1e6, attentionBias: false },
    ...{ attentionOutputBias: false, tieWordEmbeddings: true, maxPosition: 40960, slidingWindow: 0 },
    ...{ ropeScaling: { kind: "none" as const }, dtype: "bfloat16" as const },
  };
  expect(modelProducts(config as never).map(({ n, k, form }) => `${n} x ${k} ${form}`)).toEqual([
    "4096 x 1024 plain",
    "1024 x 2048 add",
    "6144 x 1024 plain",
    "6144 x 1024 gated",
    "1024 x 3072 add",
    "151936 x 1024 f32",
  ]);
});
