import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DType, Tensor } from "../../src/native/tensor.ts";
import { WeightFile } from "../../src/native/weight.ts";
import { bytes, encode, get, library, openDevice, randomValues, rounded } from "./harness.ts";

const device = openDevice();
const folder = mkdtempSync(join(tmpdir(), "minisgl-loading-"));
afterAll(() => {
  device.close();
  rmSync(folder, { recursive: true });
});

function fileOf(content: Uint8Array, name = "file"): WeightFile {
  writeFileSync(join(folder, name), content);
  return new WeightFile(library, join(folder, name));
}

function finish(): number {
  for (;;) {
    const { bytes: loaded, done } = device.loadProgress(1000);
    if (done) return loaded;
  }
}

const floats = [DType.F32, DType.F16, DType.BF16];

describe.each(floats)("from dtype %d", (from) => {
  test.each(floats)("to dtype %d, rounding to nearest even", (to) => {
    const count = 70_001;
    const special = [1, 1.00390625, 1.01171875, -0, 65504, 1e-7, Number.POSITIVE_INFINITY, Number.NaN];
    const values = rounded([...special, ...randomValues(from, count - special.length, 4)], from);
    const content = encode(values, from);
    const file = fileOf(Buffer.concat([Buffer.alloc(6), content]));
    const tensor = device.tensor(to, [count]);
    const before = finish();
    file.load(device, tensor, 6, from);
    expect(finish() - before).toBe(content.length);
    file.close();
    expect([...get(device, tensor)]).toEqual([...rounded(values, to)]);
  });
});

test("integers are loaded as they are", () => {
  const file = fileOf(encode([1, -2, 2 ** 31 - 1], DType.I32));
  const tensor = device.tensor(DType.I32, [3]);
  file.load(device, tensor, 0, DType.I32);
  finish();
  file.close();
  expect([...get(device, tensor)]).toEqual([1, -2, 2 ** 31 - 1]);
  expect(() => file.load(device, tensor, 0, DType.F32)).toThrow(/dtype/);
});

test("many loads at once arrive where they belong", () => {
  const count = 200;
  const values = randomValues(9, count * 100);
  const file = fileOf(encode(values, DType.F32));
  const whole = device.tensor(DType.F32, [count * 100]);
  for (let i = count - 1; i >= 0; i--) {
    const part = new Tensor((whole.pointer + i * 400) as typeof whole.pointer, DType.F32, [100]);
    file.load(device, part, i * 400, DType.F32);
  }
  finish();
  file.close();
  expect(Buffer.from(bytes(device, whole)).equals(Buffer.from(values.buffer))).toBe(true);
});

test("a load does not wait for the stream, and nothing of the stream undoes it", () => {
  const count = 1 << 20;
  const values = randomValues(10, count).map((value) => value + 3);
  const file = fileOf(encode(values, DType.F32));
  const block = device.alloc(64 << 20);
  for (let i = 0; i < 10; i++) device.fill(block, i, 64 << 20);
  const tensor = device.tensor(DType.F32, [count]);
  file.load(device, tensor, 0, DType.F32);
  finish();
  file.close();
  expect(Buffer.from(bytes(device, tensor)).equals(Buffer.from(values.buffer))).toBe(true);
  device.free(block);
});

test("a file that is too short is an error that names it, and later loads work", () => {
  const file = fileOf(new Uint8Array(100), "short");
  const tensor = device.tensor(DType.F32, [30]);
  file.load(device, tensor, 0, DType.F32);
  expect(finish).toThrow(/short/);
  file.load(device, tensor.head(25), 0, DType.F32);
  finish();
  file.close();
});

test("a file that is not there is an error that names it", () => {
  expect(() => new WeightFile(library, join(folder, "missing"))).toThrow(/missing/);
  expect(() => new WeightFile(library, folder)).toThrow(/not a file/);
});
