import { afterAll, describe, expect, test } from "bun:test";
import { tableWrite } from "../../src/native/ops.ts";
import { DType } from "../../src/native/tensor.ts";
import { expandStep, get, openDevice, put, putInts, type StepRow } from "./harness.ts";

const device = openDevice();
afterAll(() => device.close());

test("table_write writes runs at rows and columns, and nothing else", () => {
  const table = put(device, new Int32Array(4 * 10), [4, 10], DType.I32);
  const patches = putInts(device, [0, 0, 3, 0, 3, 8, 2, 3, 1, 4, 1, 5, 2, 0, 10, 6, 1, 4, 1, 2]);
  const values = putInts(device, [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
  tableWrite(device, table, patches.pointer, values.pointer, 5);
  expect([...get(device, table)]).toEqual(
    [
      [1, 2, 3, 0, 0, 0, 0, 0, 0, 0],
      [0, 0, 0, 0, 3, 0, 0, 0, 0, 0],
      [10, 11, 12, 13, 14, 15, 16, 17, 18, 19],
      [0, 0, 0, 0, 0, 0, 0, 0, 4, 5],
    ].flat(),
  );
});

describe.each([1, 3, 16])("expand with pages of %d", (pageSize) => {
  const pagesOf = (slot: number, length: number) =>
    Array.from({ length: Math.ceil(length / pageSize) + 1 }, (_, i) => (i * 37 + slot * 1009) % 5003);
  const row = (slot: number, start: number, count: number, samples: number): StepRow => {
    return { slot, start, count, samples, pages: pagesOf(slot, start + count) };
  };
  const tokenAt = (slot: number, position: number) => slot * 1000 + position;

  test.each<[string, StepRow[]]>([
    ["one token", [row(0, 0, 1, 1)]],
    ["decode rows, then chunks", [row(5, 47, 1, 1), row(2, 48, 1, 1), row(0, 15, 40, 0), row(7, 0, 16, 9)]],
    ["pages that end with the context", [row(1, 0, 48, 1), row(3, 47, 1, 1), row(0, 0, 3, 1)]],
  ])("%s", (_, step) => {
    const batch = expandStep(device, step, pageSize, tokenAt);
    const positions = step.flatMap(({ start, count }) => Array.from({ length: count }, (_, i) => start + i));
    const owner = step.flatMap((one) => Array.from({ length: one.count }, () => one));
    const used = (one: StepRow) => one.pages.slice(0, Math.ceil((one.start + one.count) / pageSize));
    const sums = (counts: number[]) => {
      let sum = 0;
      const ends = counts.map((count) => {
        sum += count;
        return sum;
      });
      return [0, ...ends];
    };
    const ends = sums(step.map((one) => one.count));
    const expected: Record<string, number[]> = {
      ids: positions.map((position, i) => tokenAt((owner[i] as StepRow).slot, position)),
      positions,
      cacheRows: positions.map((position, i) => {
        const page = (owner[i] as StepRow).pages[Math.floor(position / pageSize)] as number;
        return page * pageSize + (position % pageSize);
      }),
      sampleRows: step.flatMap(({ samples }, i) =>
        Array.from({ length: samples }, (_, j) => (ends[i + 1] as number) - samples + j),
      ),
      queryBegin: ends,
      pageBegin: sums(step.map((one) => used(one).length)),
      pages: step.flatMap(used),
      lastPageLength: step.map(({ start, count }) => ((start + count - 1) % pageSize) + 1),
    };
    for (const [name, values] of Object.entries(expected)) {
      expect({ [name]: [...get(device, batch[name as "ids"])] }).toEqual({ [name]: values });
    }
  });
});
