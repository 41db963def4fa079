import { type Pointer, ptr, toArrayBuffer } from "bun:ffi";
import { check, type Library, NativeError, out } from "./library.ts";
import { isProfiled, Ranges } from "./ranges.ts";
import { MSGL_DEBUG_DELAY, msgl_properties } from "./symbols.ts";
import { advance, bytesOf, type DType, Tensor } from "./tensor.ts";

/** msgl_properties. Sizes in bytes. */
export interface DeviceProperties {
  name: string;
  library: string;
  totalMemory: number;
  freeMemory: number;
  computeUnits: number;
  capability: number;
  /** Activations are float32 whatever the model's type. */
  floatActivations: boolean;
  asynchronous: boolean;
  /** The device computes models of this type. */
  computes(dtype: DType): boolean;
  /** A weight may be kept in this type. */
  keeps(dtype: DType): boolean;
}

/** Pinned host memory that the device reads and writes when an op runs. */
export interface PinnedMemory {
  pointer: Pointer;
  buffer: ArrayBuffer;
}

/** Bytes to which an arena aligns its tensors. */
const ARENA_ALIGNMENT = 256;

/** A marked point in the stream. */
export type Event = Pointer;
/** A captured list of ops. */
export type Graph = Pointer;

/** A device and its one stream. Belongs to the thread that opened it. */
export class Device {
  readonly handle: Pointer;
  readonly ranges: Ranges;
  private readonly cell = new Int32Array(2);
  private readonly floatCell = new Float32Array(2);

  /** @throws NativeError if there is no such device. threads: that compute, 0 for all cores (CPU). */
  constructor(
    readonly library: Library,
    index = 0,
    threads = 0,
    debugDelay = false,
  ) {
    this.ranges = new Ranges(library, isProfiled(process.env));
    const flags = debugDelay ? MSGL_DEBUG_DELAY : 0;
    this.handle = out(library, (cell) => library.msgl_device_open(cell, index, threads, flags)) as Pointer;
  }

  close(): void {
    this.check(this.library.msgl_device_close(this.handle));
  }

  check(status: number): void {
    check(this.library, status);
  }

  properties(): DeviceProperties {
    const bytes = new Uint8Array(msgl_properties.bytes);
    this.check(this.library.msgl_device_properties(this.handle, ptr(bytes)));
    const view = new DataView(bytes.buffer);
    const text = (at: number) => {
      const end = bytes.indexOf(0, at);
      return new TextDecoder().decode(bytes.subarray(at, end));
    };
    const integer = (at: number) => view.getInt32(at, true);
    const masks = { computes: integer(msgl_properties.dtypes), keeps: integer(msgl_properties.weight_dtypes) };
    return {
      name: text(msgl_properties.name),
      library: text(msgl_properties.library),
      totalMemory: Number(view.getBigInt64(msgl_properties.total_memory, true)),
      freeMemory: Number(view.getBigInt64(msgl_properties.free_memory, true)),
      computeUnits: integer(msgl_properties.compute_units),
      capability: integer(msgl_properties.capability),
      floatActivations: integer(msgl_properties.float_activations) !== 0,
      asynchronous: integer(msgl_properties.asynchronous) !== 0,
      computes: (dtype) => (masks.computes & (1 << dtype)) !== 0,
      keeps: (dtype) => (masks.keeps & (1 << dtype)) !== 0,
    };
  }

  /** Waits for everything enqueued. @throws NativeError that any of it met. */
  synchronize(): void {
    this.check(this.library.msgl_device_synchronize(this.handle));
  }

  // ---- memory

  alloc(bytes: number): Pointer {
    return out(this.library, (cell) => this.library.msgl_alloc(this.handle, cell, bytes)) as Pointer;
  }

  /** Frees in stream order. */
  free(pointer: Pointer): void {
    this.check(this.library.msgl_free(this.handle, pointer));
  }

  tensor(dtype: DType, shape: readonly number[]): Tensor {
    const count = shape.reduce((product, length) => product * length, 1);
    return new Tensor(this.alloc(Math.max(bytesOf(dtype, count), 16)), dtype, shape);
  }

  /** Lives as long as the device. */
  pinned(bytes: number): PinnedMemory {
    const pointer = out(this.library, (cell) => this.library.msgl_host_alloc(this.handle, cell, bytes)) as Pointer;
    return { pointer, buffer: toArrayBuffer(pointer, 0, bytes) };
  }

  copy(destination: Pointer, source: Pointer, bytes: number): void {
    this.check(this.library.msgl_copy(this.handle, destination, source, bytes));
  }

  fill(destination: Pointer, value: number, bytes: number): void {
    this.check(this.library.msgl_fill(this.handle, destination, value, bytes));
  }

  /** Uniform values in [-scale, scale), a function of (seed, index). */
  random(tensor: Tensor, seed: number, scale: number): void {
    const { pointer, size, dtype } = tensor;
    this.check(this.library.msgl_random(this.handle, pointer, size, dtype, seed, scale));
  }

  /** Uploads host values and waits. Not for the hot path. */
  upload(destination: Pointer, source: NodeJS.TypedArray): void {
    const staging = this.pinned(Math.max(source.byteLength, 1));
    new Uint8Array(staging.buffer).set(new Uint8Array(source.buffer, source.byteOffset, source.byteLength));
    this.copy(destination, staging.pointer, source.byteLength);
    this.synchronize();
    this.check(this.library.msgl_host_free(this.handle, staging.pointer));
  }

  /** Downloads bytes and waits. Not for the hot path. */
  download(source: Pointer, bytes: number): ArrayBuffer {
    const staging = this.pinned(Math.max(bytes, 1));
    this.copy(staging.pointer, source, bytes);
    this.synchronize();
    const copy = staging.buffer.slice(0, bytes);
    this.check(this.library.msgl_host_free(this.handle, staging.pointer));
    return copy;
  }

  // ---- events and graphs

  event(): Event {
    return out(this.library, (cell) => this.library.msgl_event_create(this.handle, cell)) as Event;
  }

  record(event: Event): void {
    this.check(this.library.msgl_event_record(this.handle, event));
  }

  /** True if the event's last record has been reached. */
  reached(event: Event): boolean {
    this.check(this.library.msgl_event_query(event, ptr(this.cell)));
    return this.cell[0] !== 0;
  }

  wait(event: Event): void {
    this.check(this.library.msgl_event_synchronize(event));
  }

  /** Milliseconds between two reached events. */
  elapsed(begin: Event, end: Event): number {
    this.check(this.library.msgl_event_elapsed(begin, end, ptr(this.floatCell)));
    return this.floatCell[0] as number;
  }

  destroyGraph(graph: Graph): void {
    this.check(this.library.msgl_graph_destroy(this.handle, graph));
  }

  /** Records the ops that `body` enqueues instead of running them. */
  capture(body: () => void): Graph {
    const { library, handle } = this;
    this.check(library.msgl_capture_begin(handle));
    try {
      body();
    } catch (error) {
      // The capture has to end; what the library then says of it is only a consequence.
      const cell = new BigInt64Array(1);
      if (library.msgl_capture_end(handle, ptr(cell)) === 0) this.destroyGraph(Number(cell[0]) as Graph);
      throw error;
    }
    return out(library, (cell) => library.msgl_capture_end(handle, cell)) as Graph;
  }

  replay(graph: Graph): void {
    this.check(this.library.msgl_graph_launch(this.handle, graph));
  }

  // ---- loading

  /** Waits at most `milliseconds` for queued loads. @throws NativeError of the first load that failed. */
  loadProgress(milliseconds: number): { bytes: number; done: boolean } {
    const bytes = new BigInt64Array(1);
    const { library, handle, cell } = this;
    this.check(library.msgl_load_wait(handle, ptr(bytes), ptr(cell), milliseconds));
    return { bytes: Number(bytes[0]), done: cell[0] !== 0 };
  }
}

/**
 * Device memory handed out from one block by moving a mark, in the order of a stack. Addresses depend on the calls
 * alone, which graphs need.
 */
export class Arena {
  private used = 0;
  /** Most bytes that were in use at once. */
  peak = 0;

  private constructor(
    private readonly base: Pointer,
    readonly bytes: number,
  ) {}

  static allocate(device: Device, bytes: number): Arena {
    return new Arena(device.alloc(bytes), bytes);
  }

  /** Without memory, to learn the peak of ops that are recorded and never run. */
  static measuring(): Arena {
    return new Arena(ARENA_ALIGNMENT as Pointer, Number.POSITIVE_INFINITY);
  }

  /** Where the next tensor goes; release(mark) gives back all that was handed out since. */
  get mark(): number {
    return this.used;
  }

  release(mark: number): void {
    this.used = mark;
  }

  /** @throws NativeError when the arena is too small: its size was planned wrongly. */
  tensor(dtype: DType, shape: readonly number[]): Tensor {
    const tensor = new Tensor(advance(this.base, this.used), dtype, shape);
    this.used += Math.ceil(tensor.bytes / ARENA_ALIGNMENT) * ARENA_ALIGNMENT;
    this.peak = Math.max(this.peak, this.used);
    if (this.used > this.bytes) throw new NativeError(`activation arena of ${this.bytes} bytes is too small`);
    return tensor;
  }
}
