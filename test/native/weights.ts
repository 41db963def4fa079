/** What the tests of weights share: weights from values or from the bytes of a file, and blocks to make them of. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Device } from "../../src/native/device.ts";
import { embedding } from "../../src/native/ops.ts";
import { bytesOf, DType } from "../../src/native/tensor.ts";
import { Weight, WeightFile, type WeightPart } from "../../src/native/weight.ts";
import { activation, exact, get, library, numbers, putInts } from "./harness.ts";

export const floatTypes = [DType.F32, DType.F16, DType.BF16];
export const blockTypes = [DType.Q8_0, DType.Q4_0, DType.Q4_1, DType.Q4_K, DType.Q6_K];

/** The types of weights that go with the activations: all that the device keeps, or, where it is not exact, their own. */
export const weightTypes = (device: Device): DType[] =>
  [...floatTypes, ...blockTypes].filter((dtype) => (exact ? device.properties().keeps(dtype) : dtype === activation));

/** Waits for all loads. @throws NativeError of the first that failed. */
export function loaded(device: Device): void {
  while (!device.loadProgress(1000).done);
}

/** Runs body with a file of this content. */
export function withFile<T>(content: Uint8Array, body: (file: WeightFile) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "minisgl-weights-"));
  const path = join(folder, "file");
  try {
    writeFileSync(path, content);
    const file = new WeightFile(library, path);
    try {
      return body(file);
    } finally {
      file.close();
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** A weight of one part, kept as `kept`, from rows of `stored` that lie one after the other. */
export function weightFrom(device: Device, content: Uint8Array, columns: number, stored: DType, kept = stored): Weight {
  const rowBytes = bytesOf(stored, columns);
  const rows = content.length / rowBytes;
  const weight = new Weight(device, [{ rows, dtype: kept }], columns);
  withFile(content, (file) => {
    weight.load(file, 0, rows, 0, rowBytes, stored);
    loaded(device);
  });
  return weight;
}

/** A weight of random values in parts. */
export function randomWeight(device: Device, parts: readonly WeightPart[], columns: number, seed = 1): Weight {
  const weight = new Weight(device, parts, columns);
  weight.random(seed, 0.5);
  return weight;
}

/** The values of a weight's rows, [rows, columns], by way of the embedding op. */
export function valuesOf(device: Device, weight: Weight): Float64Array {
  const result = device.tensor(activation, [weight.rows, weight.columns]);
  const ids = putInts(
    device,
    Array.from({ length: weight.rows }, (_, row) => row),
  );
  embedding(device, result, ids, weight);
  return get(device, result);
}

/** Random blocks whose scales are ordinary numbers. */
export function randomBlocks(dtype: DType, count: number, seed: number): Uint8Array {
  const next = numbers(seed);
  const size = bytesOf(dtype, dtype === DType.Q4_K || dtype === DType.Q6_K ? 256 : 32);
  const content = Uint8Array.from({ length: count * size }, () => (next() + 1) * 128);
  const view = new DataView(content.buffer);
  const scales = dtype === DType.Q6_K ? [size - 2] : dtype === DType.Q4_1 || dtype === DType.Q4_K ? [0, 2] : [0];
  for (let block = 0; block < count; block++) {
    for (const at of scales) view.setFloat16(block * size + at, next() * 0.1, true);
  }
  return content;
}
