import { type Pointer, ptr } from "bun:ffi";
import type { Device } from "./device.ts";
import { check, type Library, out } from "./library.ts";
import type { DType, Tensor } from "./tensor.ts";

/** A file that weights are loaded from. */
export class WeightFile {
  readonly handle: Pointer;

  /** @throws NativeError if it cannot be read. */
  constructor(
    private readonly library: Library,
    path: string,
  ) {
    const text = Buffer.from(`${path}\0`);
    this.handle = out(library, (cell) => library.msgl_file_open(cell, ptr(text))) as Pointer;
  }

  close(): void {
    check(this.library, this.library.msgl_file_close(this.handle));
  }

  /** Queues the load of a whole tensor from `offset`, stored as `dtype`. */
  load(device: Device, destination: Tensor, offset: number, dtype: DType): void {
    const { pointer, size } = destination;
    device.check(device.library.msgl_load(device.handle, pointer, destination.dtype, this.handle, offset, size, dtype));
  }
}

/** Runs of rows with a type each: what a merged matrix consists of. */
export type WeightPart = { rows: number; dtype: DType };

/** A matrix [rows, columns] in the form the device computes fastest with. */
export class Weight {
  readonly handle: Pointer;
  readonly rows: number;

  constructor(
    private readonly device: Device,
    parts: readonly WeightPart[],
    readonly columns: number,
  ) {
    const rows = BigInt64Array.from(parts, (part) => BigInt(part.rows));
    const dtypes = Int32Array.from([...parts.map((part) => part.dtype), 0]);
    const { library, handle } = device;
    this.rows = parts.reduce((sum, part) => sum + part.rows, 0);
    this.handle = out(library, (cell) =>
      library.msgl_weight_create(handle, cell, ptr(rows), ptr(dtypes), parts.length, columns),
    ) as Pointer;
  }

  /** Queues the load of `rows` rows from `row` on; the first lies at `offset`, each `rowBytes` after the one before. */
  load(file: WeightFile, row: number, rows: number, offset: number, rowBytes: number, dtype: DType): void {
    const { library, handle } = this.device;
    const status = library.msgl_weight_load(handle, this.handle, file.handle, row, rows, offset, rowBytes, dtype);
    this.device.check(status);
  }

  random(seed: number, scale: number): void {
    this.device.check(this.device.library.msgl_weight_random(this.device.handle, this.handle, seed, scale));
  }

  /** Device memory that it holds. */
  get bytes(): number {
    return out(this.device.library, (cell) => this.device.library.msgl_weight_bytes(this.handle, cell));
  }
}
