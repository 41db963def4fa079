/**
 * What a check works in: one device with the memory, weights and files that the check makes there. Values come from
 * seeds and are rounded to the model's type first, so that two devices get the same whatever their activations' type.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Device, Event, Graph } from "../native/device.ts";
import { AttentionPlan, type ExpandedBatch, type HeadShape } from "../native/ops.ts";
import { MSGL_ATTENTION_AUTO } from "../native/symbols.ts";
import { DType, type DTypeName, type Tensor } from "../native/tensor.ts";
import { Weight, WeightFile } from "../native/weight.ts";
import type { HostBatch } from "./batch.ts";

/** What a check looks at after it ran. */
export interface Result {
  values(): ArrayLike<number>;
  /** Values of a row; errors are measured a row. */
  width: number;
  /** Largest error allowed; 0: every value is the same. */
  bound: number;
  /** What the values must be; without it, what the other device makes of the same input. */
  expected?: ArrayLike<number>;
}

export interface Prepared {
  run(): void;
  results: Result[];
  /** It waits for what is not in the stream, so that the host's clock measures it. */
  hostTime?: boolean;
}

/** An op at a shape: makes its input in a lab, and says what runs and what it gives. */
export interface Check {
  op: string;
  shape: string;
  prepare(lab: Lab): Prepared;
}

export const check = (op: string, shape: string, prepare: (lab: Lab) => Prepared): Check => ({ op, shape, prepare });
export const nameOf = (dtype: DType) => Object.keys(DType).find((name) => DType[name as DTypeName] === dtype) as string;
/** Of the norms. */
export const EPSILON = 1e-6;
/** A result that must agree in every bit. */
export const EXACT = 0;

/** Half the distance of neighbouring values, relative to them: the error of a rounding. */
const ROUNDING: Readonly<Record<number, number>> = {
  [DType.F32]: 2 ** -24,
  [DType.F16]: 2 ** -11,
  [DType.BF16]: 2 ** -8,
};
/**
 * Errors of sums in float32, in any order, of up to a few thousand terms, and of exp, sine and root: a few ten roundings
 * on a CPU. Tensor cores cut off where they add, and fast exponentials have an error of 2^-21.
 */
const CPU_SUMS = 4e-6;
const GPU_SUMS = 2e-5;

/** Pseudo-random numbers in [-scale, scale) from a seed (mulberry32). */
export function randomValues(seed: number, count: number, scale = 1): Float32Array {
  const values = new Float32Array(count);
  for (let i = 0, state = Math.imul(seed, 0x9e3779b1); i < count; i++) {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    values[i] = (((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1) * scale;
  }
  return values;
}

/** Values in the bytes of a type, rounded to nearest even. */
export function encode(values: ArrayLike<number>, dtype: DType): Uint8Array<ArrayBuffer> {
  if (dtype === DType.I32) return new Uint8Array(new Int32Array(values).buffer);
  if (dtype === DType.F16) return new Uint8Array(new Float16Array(values).buffer);
  const floats = new Float32Array(values);
  if (dtype === DType.F32) return new Uint8Array(floats.buffer);
  const words = new Uint32Array(floats.buffer);
  const halves = new Uint16Array(words.length);
  for (let i = 0; i < words.length; i++) halves[i] = (words[i] + 0x7fff + ((words[i] >>> 16) & 1)) >>> 16;
  return new Uint8Array(halves.buffer);
}

export function decode(bytes: ArrayBuffer, dtype: DType): Float32Array | Int32Array {
  if (dtype === DType.I32) return new Int32Array(bytes);
  if (dtype === DType.F16) return new Float32Array(new Float16Array(bytes));
  if (dtype === DType.F32) return new Float32Array(bytes);
  const halves = new Uint16Array(bytes);
  const words = new Uint32Array(halves.length);
  for (let i = 0; i < words.length; i++) words[i] = halves[i] << 16;
  return new Float32Array(words.buffer);
}

/** What is left of values that are kept in a type. */
export const rounded = (values: ArrayLike<number>, dtype: DType) => decode(encode(values, dtype).buffer, dtype);

export class Lab {
  /** Type of the activations. */
  readonly activation: DType;
  private readonly made: (() => void)[] = [];

  constructor(
    readonly device: Device,
    /** The model's type: of the weights, the cache, and all values given. */
    readonly model: DType,
  ) {
    this.activation = device.properties().floatActivations ? DType.F32 : model;
  }

  /** Frees what was made, the latest first. */
  close(): void {
    for (const undo of this.made.splice(0).reverse()) undo();
  }

  put(values: ArrayLike<number>, shape: readonly number[], dtype: DType): Tensor {
    const tensor = this.allocate(shape, dtype);
    this.device.upload(tensor.pointer, encode(values, dtype));
    return tensor;
  }

  ints(values: ArrayLike<number>): Tensor {
    return this.put(values, [values.length], DType.I32);
  }

  /** Random activations. */
  input(seed: number, shape: readonly number[], scale = 1, dtype = this.activation): Tensor {
    const count = shape.reduce((product, length) => product * length, 1);
    return this.put(rounded(randomValues(seed, count, scale), this.model), shape, dtype);
  }

  /** Memory for a result; until it is written it holds no numbers. */
  output(shape: readonly number[], dtype = this.activation): Tensor {
    const tensor = this.allocate(shape, dtype);
    this.device.fill(tensor.pointer, 0xff, tensor.bytes);
    return tensor;
  }

  private allocate(shape: readonly number[], dtype: DType): Tensor {
    const tensor = this.device.tensor(dtype, shape);
    this.made.push(() => this.device.free(tensor.pointer));
    return tensor;
  }

  read(tensor: Tensor): Float32Array | Int32Array {
    return decode(this.device.download(tensor.pointer, tensor.bytes), tensor.dtype);
  }

  /** A result whose computation rounds `roundings` times to the tensor's type. */
  result(tensor: Tensor, roundings: number, expected?: ArrayLike<number>): Result {
    const sums = this.activation === DType.F32 ? CPU_SUMS : GPU_SUMS;
    const bound = roundings === EXACT ? 0 : roundings * (ROUNDING[tensor.dtype] as number) + sums;
    const width = tensor.shape[tensor.shape.length - 1] as number;
    return { values: () => this.read(tensor), width, bound, expected };
  }

  weight(rows: number, columns: number, dtype: DType = this.model): Weight {
    const { device } = this;
    const weight = new Weight(device, [{ rows, dtype }], columns);
    this.made.push(() => device.check(device.library.msgl_weight_destroy(device.handle, weight.handle)));
    weight.random(rows + columns, 1);
    return weight;
  }

  file(content: Uint8Array): WeightFile {
    const folder = mkdtempSync(join(tmpdir(), "minisgl-doctor-"));
    this.made.push(() => rmSync(folder, { recursive: true }));
    writeFileSync(join(folder, "weights"), content);
    const file = new WeightFile(this.device.library, join(folder, "weights"));
    this.made.push(() => file.close());
    return file;
  }

  /** A step as msgl_expand leaves it, uploaded. */
  batch(host: HostBatch): ExpandedBatch {
    const parts = Object.entries(host.expanded).map(([part, values]) => [part, this.ints(values)]);
    return Object.fromEntries(parts) as ExpandedBatch;
  }

  plan(shape: HeadShape, host: HostBatch, cache: DType, backend: number): AttentionPlan {
    const { device, activation } = this;
    const { sequences, tokens, pageSize } = host;
    const chosen = device.properties().capability > 0 ? backend : MSGL_ATTENTION_AUTO; // GPUs alone have a choice
    const backends = { prefill: chosen, decode: chosen };
    const plan = new AttentionPlan(device, shape, pageSize, sequences, tokens, activation, cache, backends);
    this.made.push(() => device.check(device.library.msgl_attention_plan_destroy(device.handle, plan.handle)));
    return plan;
  }

  event(): Event {
    const event = this.device.event();
    this.made.push(() => this.device.check(this.device.library.msgl_event_destroy(this.device.handle, event)));
    return event;
  }

  graph(body: () => void): Graph {
    const graph = this.device.capture(body);
    this.made.push(() => this.device.destroyGraph(graph));
    return graph;
  }
}
