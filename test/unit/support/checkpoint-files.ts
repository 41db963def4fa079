import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A folder of its own, holding the given files: text, bytes, or values that become JSON. */
export function makeFolder(files: Record<string, unknown> = {}): string {
  const folder = mkdtempSync(join(tmpdir(), "minisgl-checkpoint-"));
  for (const [name, content] of Object.entries(files)) {
    const path = join(folder, name);
    mkdirSync(join(path, ".."), { recursive: true });
    const plain = typeof content === "string" || content instanceof Uint8Array;
    writeFileSync(path, plain ? content : JSON.stringify(content));
  }
  return folder;
}

/** The bytes of a .safetensors file with the given header; `dataBytes` zeros follow. */
export function safetensorsBytes(header: unknown, dataBytes: number): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + dataBytes);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

/** A header whose tensors, all F32, lie one after the other. */
export function safetensorsHeader(shapes: Record<string, number[]>): {
  header: Record<string, unknown>;
  bytes: number;
} {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let end = 0;
  for (const [name, shape] of Object.entries(shapes)) {
    const start = end;
    end += 4 * shape.reduce((product, size) => product * size, 1);
    header[name] = { dtype: "F32", shape, data_offsets: [start, end] };
  }
  return { header, bytes: end };
}

/** GGUF's numbers for the types that the tests write. */
export const GgufType = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9, u64: 10 } as const;
export type GgufEntry = { type: number; value: unknown; element?: number };

/** A metadata value by what it holds: whole numbers are u32, others f32. */
export function ggufEntry(value: unknown): GgufEntry {
  if (typeof value === "string") return { type: GgufType.string, value };
  if (typeof value === "boolean") return { type: GgufType.bool, value };
  if (typeof value === "number")
    return { type: Number.isInteger(value) && value >= 0 ? GgufType.u32 : GgufType.f32, value };
  if (Array.isArray(value)) {
    const number = value.every((entry) => Number.isInteger(entry)) ? GgufType.i32 : GgufType.f32;
    return { type: GgufType.array, value, element: typeof value[0] === "string" ? GgufType.string : number };
  }
  return value as GgufEntry;
}

export interface GgufTensorSpec {
  name: string;
  /** Fastest first, as in the file. */
  dimensions: number[];
  type?: number;
  data?: Uint8Array;
  offset?: number;
}

const BLOCKS: Record<number, [elements: number, bytes: number]> = {
  0: [1, 4],
  1: [1, 2],
  2: [32, 18],
  3: [32, 20],
  8: [32, 34],
  12: [256, 144],
  14: [256, 210],
  30: [1, 2],
};

/** Writes a GGUF file, version 3 unless asked otherwise; tensors without data hold zeros. */
export function ggufBytes(
  metadata: Record<string, unknown>,
  tensors: readonly GgufTensorSpec[] = [],
  { version = 3, alignment = 32 } = {},
): Uint8Array<ArrayBuffer> {
  const out = new ByteWriter();
  out.u32(0x46554747);
  out.u32(version);
  out.u64(tensors.length);
  out.u64(Object.keys(metadata).length);
  for (const [key, value] of Object.entries(metadata)) {
    const entry = ggufEntry(value);
    out.string(key);
    out.u32(entry.type);
    out.value(entry);
  }
  let end = 0;
  const placed = tensors.map((tensor) => {
    const [elements, bytes] = BLOCKS[tensor.type ?? 0] ?? [1, 1];
    const size = Math.ceil(tensor.dimensions.reduce((product, size) => product * size, 1) / elements) * bytes;
    const offset = tensor.offset ?? end;
    end = Math.max(end, Math.ceil((offset + size) / alignment) * alignment);
    out.string(tensor.name);
    out.u32(tensor.dimensions.length);
    for (const size of tensor.dimensions) out.u64(size);
    out.u32(tensor.type ?? 0);
    out.u64(offset);
    return { data: tensor.data, offset };
  });
  const dataStart = Math.ceil(out.length / alignment) * alignment;
  const result = new Uint8Array(dataStart + end);
  result.set(out.bytes());
  for (const { data, offset } of placed) if (data !== undefined) result.set(data, dataStart + offset);
  return result;
}

class ByteWriter {
  #buffer = new Uint8Array(1024);
  length = 0;

  #reserve(count: number): DataView {
    if (this.length + count > this.#buffer.length) {
      const larger = new Uint8Array(Math.max(this.length + count, 2 * this.#buffer.length));
      larger.set(this.#buffer);
      this.#buffer = larger;
    }
    const view = new DataView(this.#buffer.buffer, this.length, count);
    this.length += count;
    return view;
  }

  u32(value: number): void {
    this.#reserve(4).setUint32(0, value, true);
  }

  u64(value: number): void {
    this.#reserve(8).setBigUint64(0, BigInt(value), true);
  }

  string(text: string): void {
    const bytes = new TextEncoder().encode(text);
    this.u64(bytes.length);
    this.#reserve(bytes.length);
    this.#buffer.set(bytes, this.length - bytes.length);
  }

  value({ type, value, element }: GgufEntry): void {
    if (type === GgufType.string) this.string(value as string);
    else if (type === GgufType.bool) this.#reserve(1).setUint8(0, value ? 1 : 0);
    else if (type === GgufType.f32) this.#reserve(4).setFloat32(0, value as number, true);
    else if (type === GgufType.i32) this.#reserve(4).setInt32(0, value as number, true);
    else if (type === GgufType.u64) this.u64(value as number);
    else if (type === GgufType.array) {
      this.u32(element!);
      this.u64((value as unknown[]).length);
      for (const entry of value as unknown[]) this.value({ type: element!, value: entry });
    } else this.u32(value as number);
  }

  bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.length);
  }
}

/** The layers' tensors of a model with the sizes of `llamaMetadata`, all F32. */
export function llamaTensors(extra: GgufTensorSpec[] = []): GgufTensorSpec[] {
  const tensors: GgufTensorSpec[] = [
    { name: "token_embd.weight", dimensions: [8, 10] },
    { name: "output_norm.weight", dimensions: [8] },
  ];
  for (let layer = 0; layer < 2; layer++) {
    const shapes: Record<string, number[]> = {
      attn_norm: [8],
      attn_q: [8, 8],
      attn_k: [8, 4],
      attn_v: [8, 4],
      attn_output: [8, 8],
      ffn_norm: [8],
      ffn_gate: [8, 12],
      ffn_up: [8, 12],
      ffn_down: [12, 8],
    };
    for (const [name, dimensions] of Object.entries(shapes)) {
      tensors.push({ name: `blk.${layer}.${name}.weight`, dimensions });
    }
  }
  return [...tensors, ...extra];
}

/** Metadata of a tiny model: hidden 8, two heads of 4, one KV head, two layers. */
export function llamaMetadata(architecture = "llama", extra: Record<string, unknown> = {}): Record<string, unknown> {
  return {
    "general.architecture": architecture,
    [`${architecture}.context_length`]: 512,
    [`${architecture}.embedding_length`]: 8,
    [`${architecture}.block_count`]: 2,
    [`${architecture}.feed_forward_length`]: 12,
    [`${architecture}.attention.head_count`]: 2,
    [`${architecture}.attention.head_count_kv`]: 1,
    [`${architecture}.attention.layer_norm_rms_epsilon`]: 0.00001,
    [`${architecture}.rope.freq_base`]: 500000,
    ...extra,
  };
}
