import { afterAll, describe, expect, test } from "bun:test";
import { type DType, DType as Types } from "../../src/native/tensor.ts";
import fixture from "./blocks.fixture.json";
import { activation, openDevice, rounded } from "./harness.ts";
import { blockTypes, randomBlocks, valuesOf, weightFrom, weightTypes } from "./weights.ts";

const device = openDevice();
afterAll(() => device.close());

const kept = blockTypes.filter((dtype) => weightTypes(device).includes(dtype));
const nameOf = (dtype: DType) =>
  Object.entries(Types).find(([, value]) => value === dtype)?.[0] as keyof typeof fixture;
const half = (value: number) => new Uint8Array(Float16Array.of(value).buffer);
const fromBase64 = (text: string) => Uint8Array.from(Buffer.from(text, "base64"));

/** What the library makes of blocks that stand in one row of a file, kept as they are or decoded while loading. */
function decoded(dtype: DType, blocks: Uint8Array, columns: number, as: DType): number[] {
  return [...valuesOf(device, weightFrom(device, blocks, columns, dtype, as))];
}

/** The forms in which a device can hold blocks: as they are, and decoded to its activations' type. */
const forms = (dtype: DType) => [...kept.filter((one) => one === dtype), activation];

function expectValues(dtype: DType, blocks: Uint8Array, values: readonly number[]): void {
  for (const form of forms(dtype)) {
    // Adding 0 makes the zeros positive: a sign of zero is no part of a format.
    const actual = decoded(dtype, blocks, values.length, form).map((value) => value + 0);
    expect(actual).toEqual([...rounded(values, activation)].map((value) => value + 0));
  }
}

/** Values that differ from 0 at a few places only. */
const sparse = (length: number, places: Record<number, number>, rest = 0) =>
  Array.from({ length }, (_, i) => places[i] ?? rest);

describe("a block decodes as its format says", () => {
  test("Q8_0: d * q", () => {
    const bytes = new Uint8Array(34);
    bytes.set(half(0.5));
    bytes[2 + 0] = 3;
    bytes[2 + 13] = 0x80; // -128
    bytes[2 + 31] = 0xff; // -1
    expectValues(Types.Q8_0, bytes, sparse(32, { 0: 1.5, 13: -64, 31: -0.5 }));
  });

  test("Q4_0: d * (q - 8), value i in the low nibble of byte i, value i + 16 in the high one", () => {
    const bytes = new Uint8Array(18).fill(0x88);
    bytes.set(half(-0.25));
    bytes[2 + 1] = 0xf0; // value 1: q = 0, value 17: q = 15
    bytes[2 + 15] = 0x97; // value 15: q = 7, value 31: q = 9
    expectValues(Types.Q4_0, bytes, sparse(32, { 1: 2, 17: -1.75, 15: 0.25, 31: -0.25 }));
  });

  test("Q4_1: d * q + m, nibbles as in Q4_0", () => {
    const bytes = new Uint8Array(20);
    bytes.set(half(2));
    bytes.set(half(-3), 2);
    bytes[4 + 2] = 0xf1;
    expectValues(Types.Q4_1, bytes, sparse(32, { 2: -1, 18: 27 }, -3));
  });

  test("Q4_K: d * scale * q - dmin * minimum, with 6-bit scales and minima in 12 bytes", () => {
    const bytes = new Uint8Array(144);
    bytes.set(half(0.5));
    bytes.set(half(0.25), 2);
    // Run 1: scale 63 and minimum 5; run 6: scale 0b10_1001 = 41 and minimum 0b11_0110 = 54.
    bytes[4 + 1] = 63;
    bytes[4 + 5] = 5;
    bytes[4 + 10] = 0b0110_1001;
    bytes[4 + 2] = 0b10 << 6;
    bytes[4 + 6] = 0b11 << 6;
    bytes[16 + 7] = 0x30; // run 1, value 7: q = 3
    bytes[16 + 3 * 32 + 31] = 0x0f; // run 6, value 31: q = 15
    const values = sparse(256, { 39: 0.5 * 63 * 3 - 1.25, 223: 0.5 * 41 * 15 - 13.5 });
    for (let i = 0; i < 32; i++) {
      values[32 + i] ||= -1.25;
      values[192 + i] ||= -13.5;
    }
    expectValues(Types.Q4_K, bytes, values);
  });

  test("Q6_K: d * scale * (q - 32), with the high two bits of four runs in one byte", () => {
    const bytes = new Uint8Array(210).fill(0b10101010, 128, 192); // q = 32 everywhere
    bytes.set(half(0.125), 208);
    for (let i = 0; i < 16; i++) bytes[192 + i] = i - 8;
    bytes[3] = 0xf5; // low bits of value 3 (run 0) and value 67 (run 2)
    bytes[64 + 32 + 4] = 0x2c; // of value 164 (half 1, run 1) and value 228 (run 3)
    bytes[128 + 3] = 0b10_01_10_11; // runs 3, 2, 1, 0 of half 0
    const place = (i: number, q: number) => 0.125 * (Math.floor(i / 16) - 8) * (q - 32);
    const values = sparse(256, {
      3: place(3, 0x35),
      67: place(67, 0x1f),
      164: place(164, 0x2c),
      228: place(228, 0x22),
    });
    expectValues(Types.Q6_K, bytes, values);
  });
});

test.each(blockTypes)("dtype %d gives the values of gguf-py 0.19.0", (dtype) => {
  const { blocks, values } = fixture[nameOf(dtype)];
  expectValues(dtype, fromBase64(blocks), [...new Float32Array(fromBase64(values).buffer)]);
});

test.each(kept)("dtype %d kept in panels has the values of rows that were decoded", (dtype) => {
  const columns = 512;
  const blocks = randomBlocks(dtype, 19 * (columns / (dtype === Types.Q4_K || dtype === Types.Q6_K ? 256 : 32)), 3);
  expect(decoded(dtype, blocks, columns, dtype)).toEqual(decoded(dtype, blocks, columns, activation));
});
