/**
 * What the tests of the native libraries share. They run on the library that MINISGL_TEST_LIBRARY names, by default
 * the CPU's, with activations of the type that it computes in: MINISGL_TEST_DTYPE=float16 chooses between the two of a GPU.
 */
import { type Pointer, ptr } from "bun:ffi";
import { dirname } from "node:path";
import { Device } from "../../src/native/device.ts";
import { openLibrary } from "../../src/native/library.ts";
import { AttentionPlan, type ExpandedBatch, expand, type HeadShape } from "../../src/native/ops.ts";
import { bytesOf, DType, Tensor } from "../../src/native/tensor.ts";
import { random } from "../random.ts";

export const libraryPath = process.env.MINISGL_TEST_LIBRARY ?? `${import.meta.dir}/../../build/libminisgl-cpu.so`;
/** Where the other libraries lie. */
export const libraryFolder = dirname(libraryPath);
export const library = openLibrary(libraryPath);
export const openDevice = (threads = 0, debugDelay = false) => new Device(library, 0, threads, debugDelay);

/** Type of the activations. */
export const activation: DType = (() => {
  const device = openDevice(1);
  const { floatActivations } = device.properties();
  device.close();
  if (floatActivations) return DType.F32;
  return process.env.MINISGL_TEST_DTYPE === "float16" ? DType.F16 : DType.BF16;
})();
/** True on a device that promises bit for bit the same result in every batch. */
export const exact = activation === DType.F32;

/** Largest error of a result of this type, relative to the largest expected value. */
export function tolerance(dtype: DType): number {
  return dtype === DType.F32 ? 2e-6 : dtype === DType.F16 ? 1.5e-3 : 1e-2;
}

/** Pseudo-random numbers in [-1, 1) from a seed. */
export function numbers(seed: number): () => number {
  const draw = random(seed);
  return () => 2 * draw() - 1;
}

export function randomValues(seed: number, count: number, scale = 1): Float32Array {
  const next = numbers(seed);
  return Float32Array.from({ length: count }, () => next() * scale);
}

/** Values in the bytes of a dtype, rounded to nearest even. */
export function encode(values: ArrayLike<number>, dtype: DType): Uint8Array {
  if (dtype === DType.I32) return new Uint8Array(Int32Array.from(values).buffer);
  const floats = Float32Array.from(values);
  if (dtype === DType.F32) return new Uint8Array(floats.buffer);
  if (dtype === DType.F16) return new Uint8Array(Float16Array.from(values).buffer);
  const bits = new Uint32Array(floats.buffer);
  return new Uint8Array(Uint16Array.from(bits, (b) => (b + 0x7fff + ((b >>> 16) & 1)) >>> 16).buffer);
}

export function decode(bytes: ArrayBuffer, dtype: DType): Float64Array {
  if (dtype === DType.I32) return Float64Array.from(new Int32Array(bytes));
  if (dtype === DType.F32) return Float64Array.from(new Float32Array(bytes));
  if (dtype === DType.F16) return Float64Array.from(new Float16Array(bytes));
  return Float64Array.from(new Float32Array(Uint32Array.from(new Uint16Array(bytes), (b) => b << 16).buffer));
}

/** What is left of values once they are kept in a dtype. */
export const rounded = (values: ArrayLike<number>, dtype: DType) =>
  decode(encode(values, dtype).buffer as ArrayBuffer, dtype);

export function put(device: Device, values: ArrayLike<number>, shape: readonly number[], dtype = activation): Tensor {
  const tensor = device.tensor(dtype, shape);
  device.upload(tensor.pointer, encode(values, dtype));
  return tensor;
}

export const putInts = (device: Device, values: ArrayLike<number>) => put(device, values, [values.length], DType.I32);

export const bytes = (device: Device, tensor: Tensor) => device.download(tensor.pointer, tensor.bytes);
export const get = (device: Device, tensor: Tensor) => decode(bytes(device, tensor), tensor.dtype);
/** The bits of a result, to be compared exactly. */
export const bits = (device: Device, tensor: Tensor) => Buffer.from(bytes(device, tensor)).toString("hex");

/** max|a - b| / max|b|; Infinity where a is no number. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let error = 0;
  let largest = Number.MIN_VALUE;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs((actual[i] as number) - (expected[i] as number));
    error = Math.max(error, Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference);
    largest = Math.max(largest, Math.abs(expected[i] as number));
  }
  return error / largest;
}

/** Rows first .. last - 1 of a tensor [rows, ...]. */
export function rows(tensor: Tensor, first: number, last: number): Tensor {
  const rest = tensor.shape.slice(1);
  const rowBytes = bytesOf(
    tensor.dtype,
    rest.reduce((product, length) => product * length, 1),
  );
  return new Tensor((tensor.pointer + first * rowBytes) as Pointer, tensor.dtype, [last - first, ...rest]);
}

/** A sequence of a step: its new tokens are at start .. start + count - 1, its pages in the order of positions. */
export interface StepRow {
  slot: number;
  start: number;
  count: number;
  pages: readonly number[];
  samples: number;
}

export interface ExpandedStep extends ExpandedBatch {
  tokens: number;
  sequences: number;
  decodeSequences: number;
  queryLengths: Int32Array;
  contextLengths: Int32Array;
}

/** Builds sequence_rows and a page table and expands them. tokenAt: the content of the token table. */
export function expandStep(
  device: Device,
  step: readonly StepRow[],
  pageSize: number,
  tokenAt: (slot: number, position: number) => number = () => 0,
): ExpandedStep {
  const slots = Math.max(...step.map((row) => row.slot)) + 1;
  const length = Math.max(...step.map((row) => row.start + row.count));
  const stride = Math.max(...step.map((row) => row.pages.length)) + 3;
  const pageTable = new Int32Array(slots * stride).fill(-1);
  const tokenTable = new Int32Array(slots * length);
  const sequenceRows: number[] = [];
  let [tokens, pages, samples] = [0, 0, 0];
  for (const { slot, start, count, pages: list, samples: wanted } of step) {
    pageTable.set(list, slot * stride);
    for (let i = 0; i < start + count; i++) tokenTable[slot * length + i] = tokenAt(slot, i);
    sequenceRows.push(slot, start, count, tokens, pages, wanted > 0 ? samples : -1, wanted);
    samples += wanted;
    tokens += count;
    pages += Math.ceil((start + count) / pageSize);
  }
  const ints = (count: number) => device.tensor(DType.I32, [count]);
  const batch: ExpandedStep = {
    ids: ints(tokens),
    positions: ints(tokens),
    cacheRows: ints(tokens),
    sampleRows: ints(samples),
    queryBegin: ints(step.length + 1),
    pageBegin: ints(step.length + 1),
    pages: ints(pages),
    lastPageLength: ints(step.length),
    tokens,
    sequences: step.length,
    decodeSequences: step.findIndex((row) => row.count !== 1),
    queryLengths: Int32Array.from(step, (row) => row.count),
    contextLengths: Int32Array.from(step, (row) => row.start + row.count),
  };
  if (batch.decodeSequences < 0) batch.decodeSequences = step.length;
  const tables = [
    put(device, tokenTable, [slots, length], DType.I32),
    put(device, pageTable, [slots, stride], DType.I32),
  ];
  const [tokenTensor, pageTensor] = tables as [Tensor, Tensor];
  const rowsPointer = putInts(device, sequenceRows).pointer;
  expand(device, batch, rowsPointer, tokenTensor, pageTensor, step.length, tokens, pageSize);
  return batch;
}

/** A plan that is ready for the step. */
export function planFor(device: Device, shape: HeadShape, step: ExpandedStep, pageSize: number, cache: DType) {
  const plan = new AttentionPlan(device, shape, pageSize, step.sequences, step.tokens, activation, cache, {
    prefill: 0,
    decode: 0,
  });
  plan.update(step.queryLengths, step.contextLengths, step.sequences, step.decodeSequences, false);
  return plan;
}

export const pointerTo = (array: NodeJS.TypedArray) => ptr(array);
