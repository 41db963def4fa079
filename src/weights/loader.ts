/**
 * The weights room: hands each layer its tensors. Read loader.ts (from a checkpoint onto the device), then scope.ts
 * (how a layer names them).
 */
import { type Checkpoint, CheckpointError, type TensorInfo } from "../checkpoint/types.ts";
import type { Device, DeviceProperties } from "../native/device.ts";
import { advance, bytesOf, DType, Tensor } from "../native/tensor.ts";
import { Weight, WeightFile } from "../native/weight.ts";

/** A matrix that is one run of rows of a (possibly merged) weight. */
export interface MatrixSource {
  name: string;
  rows: number;
}

/** Tensors that some checkpoints carry and no model reads. */
const ignored = [/rotary_emb\.inv_freq$/, /\.masked_bias$/];

/** 32-bit FNV-1a: the seed of a dummy weight depends on its name alone. */
function seedOf(name: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < name.length; i++) hash = Math.imul(hash ^ name.charCodeAt(i), 0x01000193);
  return hash >>> 0;
}

/**
 * Takes tensors by their Hugging Face names and makes room for them; finish() loads them, so that whatever is wrong with
 * the checkpoint is said before any of it is read. With `dummy`, weights are random functions of their names and norms
 * are ones.
 */
export class WeightLoader {
  private readonly files = new Map<string, WeightFile>();
  private readonly taken = new Set<string>();
  /** What finish() queues on the device. */
  private readonly loads: (() => void)[] = [];
  /** Bytes of the checkpoint that these loads read. */
  private toRead = 0;
  /** Device memory of all weights. */
  bytes = 0;

  constructor(
    readonly device: Device,
    private readonly properties: DeviceProperties,
    private readonly checkpoint: Checkpoint,
    /** Type of the matrices that are not kept as blocks. */
    private readonly dtype: DType,
    /** Type of the activations, and so of norms and biases. */
    readonly activationType: DType,
    private readonly dummy: boolean,
  ) {}

  has(name: string): boolean {
    return this.checkpoint.tensors.has(name);
  }

  /** A matrix [sum of rows, columns]: the sources below each other. */
  matrix(sources: readonly MatrixSource[], columns: number): Weight {
    if (this.dummy) return this.dummyMatrix(sources, columns);
    const infos = sources.map(({ name, rows }) => this.take(name, [rows, columns]));
    const parts = infos.map((info, i) => ({ rows: (sources[i] as MatrixSource).rows, dtype: this.storage(info) }));
    const weight = new Weight(this.device, parts, columns);
    let row = 0;
    for (const info of infos) {
      const first = row;
      this.loads.push(() => this.loadRows(weight, first, info));
      row += info.shape[0] as number;
    }
    this.bytes += weight.bytes;
    return weight;
  }

  /** A norm's weight [size], in the activations' type. */
  norm(name: string, size: number): Tensor {
    const tensor = this.vector(size);
    if (this.dummy) {
      this.loads.push(() => this.device.upload(tensor.pointer, ones(this.activationType, size)));
    } else {
      const info = this.take(name, [size]);
      this.loads.push(() => this.loadVector(tensor, info));
    }
    return tensor;
  }

  /** Biases one after the other, in the activations' type. */
  bias(sources: readonly MatrixSource[]): Tensor {
    const tensor = this.vector(sources.reduce((sum, { rows }) => sum + rows, 0));
    let at = 0;
    for (const { name, rows } of sources) {
      const part = new Tensor(advance(tensor.pointer, bytesOf(tensor.dtype, at)), tensor.dtype, [rows]);
      if (this.dummy) {
        this.loads.push(() => this.device.random(part, seedOf(name), 0.1));
      } else {
        const info = this.take(name, [rows]);
        this.loads.push(() => this.loadVector(part, info));
      }
      at += rows;
    }
    return tensor;
  }

  /** Loads all that was taken, and waits for it. @throws CheckpointError naming a tensor that no layer asked for. */
  async finish(onProgress: (done: number, total: number) => void): Promise<void> {
    for (const name of this.checkpoint.tensors.keys()) {
      if (!this.dummy && !this.taken.has(name) && !ignored.some((pattern) => pattern.test(name))) {
        throw new CheckpointError(
          `${this.checkpoint.path}: tensor "${name}" belongs to no layer of architecture ` +
            `"${this.checkpoint.config.architecture}"`,
        );
      }
    }
    for (const load of this.loads.splice(0)) load();
    for (;;) {
      const { bytes, done } = this.device.loadProgress(50);
      onProgress(bytes, this.toRead);
      if (done) break;
      await Bun.sleep(0);
    }
    for (const file of this.files.values()) file.close();
    this.files.clear();
    this.device.synchronize();
  }

  /** Marks a tensor as read without loading it: a head that the checkpoint repeats though it is tied. */
  skip(name: string): void {
    this.taken.add(name);
  }

  private take(name: string, shape: readonly number[]): TensorInfo {
    const info = this.checkpoint.tensors.get(name);
    const { path } = this.checkpoint;
    if (!info) throw new CheckpointError(`${path}: tensor "${name}" is missing`);
    if (info.shape.length !== shape.length || info.shape.some((length, i) => length !== shape[i])) {
      throw new CheckpointError(
        `${path}: tensor "${name}" has shape [${info.shape.join(", ")}], the configuration wants [${shape.join(", ")}]`,
      );
    }
    this.taken.add(name);
    this.toRead += info.bytes;
    return info;
  }

  /** GGUF blocks are kept where the device computes with them; everything else takes the model's type. */
  private storage(info: TensorInfo): DType {
    const stored = DType[info.type];
    return stored >= DType.Q8_0 && this.properties.keeps(stored) ? stored : this.dtype;
  }

  private open(path: string): WeightFile {
    const known = this.files.get(path);
    if (known) return known;
    const file = new WeightFile(this.device.library, path);
    this.files.set(path, file);
    return file;
  }

  private vector(size: number): Tensor {
    const tensor = this.device.tensor(this.activationType, [size]);
    this.bytes += tensor.bytes;
    return tensor;
  }

  private loadVector(tensor: Tensor, info: TensorInfo): void {
    const file = this.open(info.file);
    const dtype = DType[info.type];
    if (!info.interleavedRows) {
      file.load(this.device, tensor, info.offset, dtype);
      return;
    }
    this.forEachHalf(tensor.size, (row, first, count) => {
      for (let i = 0; i < count; i++) {
        const at = advance(tensor.pointer, bytesOf(tensor.dtype, row + i));
        file.load(this.device, new Tensor(at, tensor.dtype, [1]), info.offset + bytesOf(dtype, first + 2 * i), dtype);
      }
    });
  }

  private loadRows(weight: Weight, row: number, info: TensorInfo): void {
    const dtype = DType[info.type];
    const [rows, columns] = info.shape as [number, number];
    const rowBytes = bytesOf(dtype, columns);
    const file = this.open(info.file);
    if (!info.interleavedRows) {
      weight.load(file, row, rows, info.offset, rowBytes, dtype);
      return;
    }
    this.forEachHalf(rows, (to, first, count) =>
      weight.load(file, row + to, count, info.offset + first * rowBytes, 2 * rowBytes, dtype),
    );
  }

  /** Halves of each head in the model's order: `count` rows from `row` on are the file's first, first + 2, ... */
  private forEachHalf(rows: number, visit: (row: number, first: number, count: number) => void): void {
    const { headDim } = this.checkpoint.config;
    for (let head = 0; head < rows; head += headDim) {
      for (const half of [0, 1]) visit(head + (half * headDim) / 2, head + half, headDim / 2);
    }
  }

  private dummyMatrix(sources: readonly MatrixSource[], columns: number): Weight {
    const rows = sources.reduce((sum, source) => sum + source.rows, 0);
    const weight = new Weight(this.device, [{ rows, dtype: this.dtype }], columns);
    // Uniform in +-sqrt(3 / columns) has a gain of 1, so that activations neither vanish nor explode.
    const seed = seedOf(sources.map(({ name }) => name).join());
    this.loads.push(() => weight.random(seed, Math.sqrt(3 / columns)));
    this.bytes += weight.bytes;
    return weight;
  }
}

/** `size` ones in a type of activations. */
function ones(dtype: DType, size: number): NodeJS.TypedArray {
  if (dtype === DType.F32) return new Float32Array(size).fill(1);
  return new Uint16Array(size).fill(dtype === DType.F16 ? 0x3c00 : 0x3f80);
}
