/**
 * The GGUF container, versions 2 and 3, little endian
 * (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): metadata and where the tensors lie.
 */
import { PositionedFile } from "./read.ts";
import { CheckpointError, type StoredType } from "./types.ts";

/** A metadata value. Arrays of numbers are typed arrays, except those of 64-bit integers. */
export type GgufValue = string | number | boolean | string[] | number[] | boolean[] | GgufNumbers;
type GgufNumbers =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array;

export interface GgufTensor {
  name: string;
  type: StoredType;
  /** As the file has it: the fastest dimension first. */
  dimensions: number[];
  /** Absolute, in bytes. */
  offset: number;
  bytes: number;
}

export interface GgufFile {
  metadata: ReadonlyMap<string, GgufValue>;
  tensors: GgufTensor[];
}

/** ggml's type numbers: name, elements a block, bytes a block. */
const TENSOR_TYPES = new Map<number, { type: StoredType; block: number; bytes: number }>([
  [0, { type: "F32", block: 1, bytes: 4 }],
  [1, { type: "F16", block: 1, bytes: 2 }],
  [2, { type: "Q4_0", block: 32, bytes: 18 }],
  [3, { type: "Q4_1", block: 32, bytes: 20 }],
  [8, { type: "Q8_0", block: 32, bytes: 34 }],
  [12, { type: "Q4_K", block: 256, bytes: 144 }],
  [14, { type: "Q6_K", block: 256, bytes: 210 }],
  [30, { type: "BF16", block: 1, bytes: 2 }],
]);

/** Names of the types that are not supported, for the message. */
// biome-ignore format: a table
const OTHER_TYPES: Record<number, string> = {
  6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
  18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
  27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
};

// What a hostile file may make us hold. Real headers have 10 MB, 50 keys, 1,000 tensors and 500,000 strings.
const MAX_HEADER_BYTES = 256 << 20;
const MAX_KEYS = 1 << 16;
const MAX_TENSORS = 1 << 18;
const MAX_ARRAY = 1 << 24;
const MAX_STRING_BYTES = 16 << 20;
const MAX_NAME_BYTES = 1 << 10;

/**
 * Reads everything in front of the tensor data.
 * @throws CheckpointError where the file is no GGUF, damaged, truncated, or has a tensor of an unsupported type
 */
export function readGguf(path: string): GgufFile {
  const file = new PositionedFile(path);
  try {
    const reader = new HeaderReader(file);
    if (reader.u32() !== 0x46554747)
      throw new CheckpointError(`${path} is not a GGUF file (of a model in safetensors, give the folder)`);
    const version = reader.u32();
    if (version !== 2 && version !== 3) {
      const swapped = version > 0xffffff ? " (a big endian file?)" : "";
      throw new CheckpointError(`${path}: GGUF version ${version}${swapped} is not supported; versions 2 and 3 are`);
    }
    const tensorCount = reader.size(MAX_TENSORS, "number of tensors");
    const keyCount = reader.size(MAX_KEYS, "number of metadata keys");
    const metadata = new Map<string, GgufValue>();
    for (let i = 0; i < keyCount; i++) {
      const key = reader.string(MAX_NAME_BYTES);
      if (metadata.has(key)) throw reader.damaged(`the key ${JSON.stringify(key)} stands twice`);
      metadata.set(key, reader.value(reader.u32()));
    }
    return { metadata, tensors: readTensors(reader, tensorCount, metadata, file) };
  } finally {
    file.close();
  }
}

function readTensors(reader: HeaderReader, count: number, metadata: Map<string, GgufValue>, file: PositionedFile) {
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || alignment < 8 || alignment > 1 << 20 || (alignment & (alignment - 1)) !== 0) {
    throw reader.damaged(`general.alignment ${alignment} is not a power of two from 8 on`);
  }
  const tensors: GgufTensor[] = [];
  const names = new Set<string>();
  for (let i = 0; i < count; i++) {
    const tensor = readTensor(reader, alignment, file.path);
    if (names.has(tensor.name)) throw reader.damaged(`the tensor ${tensor.name} stands twice`);
    names.add(tensor.name);
    tensors.push(tensor);
  }
  const dataStart = Math.ceil(reader.position / alignment) * alignment;
  for (const tensor of tensors) {
    tensor.offset += dataStart;
    if (tensor.offset + tensor.bytes > file.size) {
      throw new CheckpointError(
        `${file.path} is truncated: ${tensor.name} ends at byte ${tensor.offset + tensor.bytes}, ` +
          `the file has ${file.size} bytes`,
      );
    }
  }
  return tensors;
}

function readTensor(reader: HeaderReader, alignment: number, path: string): GgufTensor {
  const name = reader.string(MAX_NAME_BYTES);
  const rank = reader.u32();
  if (rank < 1 || rank > 4) throw reader.damaged(`${name} has ${rank} dimensions`);
  const dimensions = Array.from({ length: rank }, () => reader.size(2 ** 40, `size of ${name}`));
  const number = reader.u32();
  const offset = reader.size(Number.MAX_SAFE_INTEGER, `offset of ${name}`);
  const known = TENSOR_TYPES.get(number);
  if (known === undefined) {
    const supported = [...TENSOR_TYPES.values()].map(({ type }) => type).join(", ");
    const called = OTHER_TYPES[number] ?? `number ${number}`;
    throw new CheckpointError(`${path}: ${name} is of type ${called}, which is not supported; supported: ${supported}`);
  }
  const elements = dimensions.reduce((product, size) => product * size, 1);
  if (elements > 2 ** 48 || dimensions[0] % known.block !== 0) {
    throw reader.damaged(`${name} has the shape [${dimensions}], which is no whole number of ${known.type} blocks`);
  }
  if (offset % alignment !== 0) throw reader.damaged(`${name} is not aligned to ${alignment} bytes`);
  return { name, type: known.type, dimensions, offset, bytes: (elements / known.block) * known.bytes };
}

/** Reads the header front to back through a window, every length checked before anything is allocated for it. */
class HeaderReader {
  position = 0;
  #window: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #view = new DataView(this.#window.buffer);
  #start = 0;
  readonly #end: number;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  constructor(readonly file: PositionedFile) {
    this.#end = Math.min(file.size, MAX_HEADER_BYTES);
  }

  damaged(what: string): CheckpointError {
    return new CheckpointError(`${this.file.path} is damaged: ${what} (at byte ${this.position})`);
  }

  /** Moves past the next `length` bytes. @returns their place in the window */
  #take(length: number): number {
    if (length > this.#end - this.position) {
      const large = this.file.size > MAX_HEADER_BYTES;
      throw this.damaged(large ? "its header is larger than 256 MB" : "it ends within its header");
    }
    let at = this.position - this.#start;
    if (at + length > this.#window.length) {
      this.#window = this.file.read(this.position, Math.min(Math.max(length, 1 << 20), this.#end - this.position));
      this.#view = new DataView(this.#window.buffer);
      this.#start = this.position;
      at = 0;
      if (this.#window.length < length) throw this.damaged("it ends within its header");
    }
    this.position += length;
    return at;
  }

  u32(): number {
    const at = this.#take(4);
    return this.#view.getUint32(at, true);
  }

  size(most: number, what: string): number {
    const at = this.#take(8);
    const value = this.#view.getBigUint64(at, true);
    if (value > BigInt(most)) throw this.damaged(`the ${what} is ${value}`);
    return Number(value);
  }

  string(mostBytes = MAX_STRING_BYTES): string {
    const length = this.size(mostBytes, "length of a string");
    const at = this.#take(length);
    return this.#decoder.decode(this.#window.subarray(at, at + length));
  }

  value(type: number): GgufValue {
    switch (type) {
      case 8:
        return this.string();
      case 9:
        return this.#array();
      case 7:
        return this.#numbers(0, 1)[0] !== 0;
      default:
        return this.#numbers(type, 1)[0];
    }
  }

  #array(): GgufValue {
    const type = this.u32();
    const length = this.size(MAX_ARRAY, "length of an array");
    if (type === 8) {
      // Each string takes 8 bytes at least, so a length that the file cannot hold is refused before the loop.
      if (length * 8 > this.#end - this.position) throw this.damaged(`an array of ${length} strings does not fit`);
      return Array.from({ length }, () => this.string());
    }
    if (type === 7) return Array.from(this.#numbers(0, length), (byte) => byte !== 0);
    return this.#numbers(type, length);
  }

  #numbers(type: number, length: number): GgufNumbers | number[] {
    const Kind = NUMBER_TYPES[type];
    const long = type === 10 || type === 11;
    if (Kind === undefined && !long) throw this.damaged(`a metadata value has the type ${type}`);
    const at = this.#take(length * (Kind?.BYTES_PER_ELEMENT ?? 8));
    if (Kind !== undefined) return new Kind(this.#window.slice(at, at + length * Kind.BYTES_PER_ELEMENT).buffer);
    return Array.from({ length }, (_, i) =>
      Number(type === 10 ? this.#view.getBigUint64(at + 8 * i, true) : this.#view.getBigInt64(at + 8 * i, true)),
    );
  }
}

const NUMBER_TYPES: Record<number, { new (buffer: ArrayBuffer): GgufNumbers; BYTES_PER_ELEMENT: number } | undefined> =
  {
    0: Uint8Array,
    1: Int8Array,
    2: Uint16Array,
    3: Int16Array,
    4: Uint32Array,
    5: Int32Array,
    6: Float32Array,
    12: Float64Array,
  };
