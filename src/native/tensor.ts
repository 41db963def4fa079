import type { Pointer } from "bun:ffi";
import {
  MSGL_BF16,
  MSGL_F16,
  MSGL_F32,
  MSGL_I32,
  MSGL_Q4_0,
  MSGL_Q4_1,
  MSGL_Q4_K,
  MSGL_Q6_K,
  MSGL_Q8_0,
} from "./symbols.ts";

/** Element types by their names in checkpoints. The numbers are msgl_dtype's. */
export const DType = {
  F32: MSGL_F32,
  F16: MSGL_F16,
  BF16: MSGL_BF16,
  I32: MSGL_I32,
  Q8_0: MSGL_Q8_0,
  Q4_0: MSGL_Q4_0,
  Q4_1: MSGL_Q4_1,
  Q4_K: MSGL_Q4_K,
  Q6_K: MSGL_Q6_K,
} as const;
export type DTypeName = keyof typeof DType;
export type DType = (typeof DType)[DTypeName];

/** Values and bytes of a block; a plain type is a block of one value. */
const blocks: Record<number, readonly [values: number, bytes: number]> = {
  [DType.F32]: [1, 4],
  [DType.F16]: [1, 2],
  [DType.BF16]: [1, 2],
  [DType.I32]: [1, 4],
  [DType.Q8_0]: [32, 34],
  [DType.Q4_0]: [32, 18],
  [DType.Q4_1]: [32, 20],
  [DType.Q4_K]: [256, 144],
  [DType.Q6_K]: [256, 210],
};

/** Bytes of `count` values; count is a multiple of the block size. */
export function bytesOf(dtype: DType, count: number): number {
  const [values, bytes] = blocks[dtype] as readonly [number, number];
  return (count / values) * bytes;
}

/** An address `bytes` further on. */
export const advance = (pointer: Pointer, bytes: number): Pointer => (pointer + bytes) as Pointer;

/** A row-major array in device memory. Owns nothing: whoever allocated the memory frees it. */
export class Tensor {
  constructor(
    readonly pointer: Pointer,
    readonly dtype: DType,
    readonly shape: readonly number[],
  ) {}

  /** Number of elements. */
  get size(): number {
    return this.shape.reduce((product, length) => product * length, 1);
  }

  get bytes(): number {
    return bytesOf(this.dtype, this.size);
  }

  /** The first `rows` of the leading dimension. */
  head(rows: number): Tensor {
    return new Tensor(this.pointer, this.dtype, [rows, ...this.shape.slice(1)]);
  }
}
