/** Checks of what moves data: copies, random values, loads, tables, the expansion of batches, events. */
import * as ops from "../native/ops.ts";
import { bytesOf, DType } from "../native/tensor.ts";
import { hostBatch, STEPS } from "./batch.ts";
import { type Check, check, EXACT, encode, nameOf, randomValues, rounded } from "./lab.ts";

/** The checks for models of a type. */
export const memoryChecks = (model: DType): Check[] => [
  copies(4100),
  copies(2 ** 20 + 4),
  randomNumbers(1_000_003, model),
  ...[DType.F32, DType.F16, DType.BF16, DType.Q8_0, DType.Q4_1].map((dtype) => loading(dtype, 512, 1024)),
  tableWrite,
  expansion(1),
  expansion(16),
  events,
];

const copies = (bytes: number) =>
  check("copy_fill", `${bytes} bytes`, (lab) => {
    const values = Int32Array.from({ length: bytes / 4 }, (_, i) => Math.imul(i, 0x9e3779b1));
    const [source, filled] = [lab.ints(values), lab.ints(values)];
    const copy = lab.output(source.shape, DType.I32);
    const sevens = values.slice().fill(0x07070707, 0, -1);
    return {
      run() {
        lab.device.copy(copy.pointer, source.pointer, bytes);
        lab.device.fill(filled.pointer, 7, bytes - 4);
      },
      results: [lab.result(copy, EXACT, values), lab.result(filled, EXACT, sevens)],
    };
  });

const randomNumbers = (count: number, model: DType) =>
  check("random", `${count} ${nameOf(model)}`, (lab) => {
    const out = lab.output([count], model);
    return { run: () => lab.device.random(out, 42, 0.5), results: [lab.result(out, EXACT)] };
  });

/** Bytes of a file and the values they mean; the blocks' scales are such that float32 holds every value exactly. */
function fileOf(dtype: DType, count: number): { content: Uint8Array; values: ArrayLike<number> } {
  if (bytesOf(dtype, 1) >= 2) {
    const values = randomValues(dtype + 1, count, 2);
    return { content: encode(values, dtype), values: rounded(values, dtype) };
  }
  const packed = dtype === DType.Q4_1;
  const blockBytes = bytesOf(dtype, 32);
  const content = new Uint8Array(bytesOf(dtype, count));
  const view = new DataView(content.buffer);
  const values = randomValues(dtype, count, packed ? 8 : 127).map((value, i) => {
    const [block, at] = [Math.floor(i / 32), i % 32];
    const level = Math.floor(packed ? value + 8 : value);
    const [scale, minimum] = [((block % 7) + 1) / 64, packed ? ((block % 13) - 6) / 8 : 0];
    view.setFloat16(block * blockBytes, scale, true);
    if (packed) {
      view.setFloat16(block * blockBytes + 2, minimum, true);
      content[block * blockBytes + 4 + (at % 16)] |= level << (at < 16 ? 0 : 4);
    } else view.setInt8(block * blockBytes + 2 + at, level);
    return scale * level + minimum;
  });
  return { content, values };
}

const loading = (dtype: DType, rows: number, columns: number) =>
  check("load", `[${rows}, ${columns}] ${nameOf(dtype)}`, (lab) => {
    const { content, values } = fileOf(dtype, rows * columns);
    const [file, rowBytes, half] = [lab.file(content), bytesOf(dtype, columns), 200];
    const weight = lab.weight(rows, columns);
    const [out, ids] = [lab.output([rows, columns]), lab.ints([...Array(rows).keys()])];
    const matrix = lab.result(out, EXACT, rounded(values, lab.model));
    const vector = lab.output([columns]);
    const third = rounded(values, lab.activation).subarray(3 * columns, 4 * columns);
    const plain = bytesOf(dtype, 1) >= 2; // only weights take blocks
    lab.device.synchronize(); // loads do not wait for the stream, which has written to weight and vector
    return {
      run() {
        weight.load(file, half, rows - half, half * rowBytes, rowBytes, dtype);
        weight.load(file, 0, half, 0, rowBytes, dtype);
        if (plain) file.load(lab.device, vector, 3 * rowBytes, dtype);
        while (!lab.device.loadProgress(1000).done);
        ops.embedding(lab.device, out, ids, weight);
      },
      results: [matrix, ...(plain ? [lab.result(vector, EXACT, third)] : [])],
      hostTime: true,
    };
  });

const tableWrite = check("table_write", "3 runs in [8, 100]", (lab) => {
  const values = Int32Array.from({ length: 103 }, (_, i) => 1000 + i);
  const runs = [
    [7, 97, 3, 0],
    [0, 0, 100, 3],
    [3, 50, 0, 9],
  ] as const;
  const expected = new Int32Array(800).fill(-1);
  for (const [row, column, length, at] of runs) expected.set(values.subarray(at, at + length), row * 100 + column);
  const table = lab.output([8, 100], DType.I32);
  const [patches, words] = [lab.ints(runs.flat()), lab.ints(values)];
  return {
    run: () => ops.tableWrite(lab.device, table, patches.pointer, words.pointer, runs.length),
    results: [lab.result(table, EXACT, expected)],
  };
});

function expansion(pageSize: number): Check {
  const host = hostBatch(STEPS.mixed, pageSize);
  const { sequences, tokens, expanded } = host;
  return check("expand", `${sequences} sequences, ${tokens} tokens, pages of ${pageSize}`, (lab) => {
    const rows = lab.ints(host.sequenceRows).pointer;
    const tokenTable = lab.put(host.tokenTable, [sequences, host.tokenStride], DType.I32);
    const pageTable = lab.put(host.pageTable, [sequences, host.pageStride], DType.I32);
    const batch = lab.batch(host);
    const parts = Object.keys(batch) as (keyof typeof batch)[];
    for (const part of parts) lab.device.fill(batch[part].pointer, 0xff, batch[part].bytes);
    return {
      run: () => ops.expand(lab.device, batch, rows, tokenTable, pageTable, sequences, tokens, pageSize),
      results: parts.map((part) => lab.result(batch[part], EXACT, expanded[part])),
    };
  });
}

const events = check("event", "record, query, wait, elapsed", (lab) => {
  const { device } = lab;
  const [out, gateUp] = [lab.output([64, 1024]), lab.input(1, [64, 2048])];
  const [begin, end, never] = [lab.event(), lab.event(), lab.event()];
  const reached = () => [begin, end, never].map((event) => Number(device.reached(event)));
  return {
    run() {
      device.record(begin);
      ops.siluMul(device, out, gateUp);
      device.record(end);
      device.wait(end);
    },
    results: [
      {
        values: () => [...reached(), Math.sign(device.elapsed(begin, end))],
        width: 4,
        bound: EXACT,
        expected: [1, 1, 1, 1],
      },
    ],
  };
});
