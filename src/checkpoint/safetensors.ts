import { existsSync, readdirSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { isObject, PositionedFile, readJsonObject } from "./read.ts";
import { CheckpointError, type StoredType, type TensorInfo } from "./types.ts";

/** The format's own limit of a header (https://github.com/huggingface/safetensors#format). */
const MAX_HEADER_BYTES = 100_000_000;

const ELEMENT_BYTES = { F32: 4, F16: 2, BF16: 2 } as const;

/**
 * Describes the tensors of a folder: `model.safetensors`, or the shards of `model.safetensors.index.json`.
 * @returns null where the folder has no safetensors files
 * @throws CheckpointError naming the file, and the tensor or shard that is missing or does not fit
 */
export function readSafetensorsFolder(folder: string): Map<string, TensorInfo> | null {
  const single = join(folder, "model.safetensors");
  if (existsSync(single)) return readSafetensorsFile(single);
  const index = join(folder, "model.safetensors.index.json");
  if (existsSync(index)) return readShards(index);
  const files = readdirSync(folder).filter((name) => name.endsWith(".safetensors") && !name.startsWith("consolidated"));
  if (files.length === 0) return null;
  if (files.length === 1) return readSafetensorsFile(join(folder, files[0]));
  throw new CheckpointError(`${folder} has ${files.length} .safetensors files but no model.safetensors.index.json`);
}

function readShards(index: string): Map<string, TensorInfo> {
  const map = readJsonObject(index, MAX_HEADER_BYTES)?.weight_map;
  if (!isObject(map) || Object.keys(map).length === 0) throw new CheckpointError(`${index}: weight_map is missing`);
  const shards = new Map<string, Map<string, TensorInfo>>();
  const tensors = new Map<string, TensorInfo>();
  for (const [name, file] of Object.entries(map)) {
    if (typeof file !== "string" || file !== basename(file) || file.startsWith(".")) {
      throw new CheckpointError(`${index}: ${name} names the file ${JSON.stringify(file)}, which is no file beside it`);
    }
    let shard = shards.get(file);
    if (shard === undefined) {
      const path = join(dirname(index), file);
      if (!existsSync(path)) throw new CheckpointError(`${path} is missing; ${index} names it for ${name}`);
      shard = readSafetensorsFile(path);
      shards.set(file, shard);
    }
    const tensor = shard.get(name);
    if (tensor !== undefined) tensors.set(name, tensor);
    else if (isParameter(name)) throw new CheckpointError(`${name} is not in ${file}, where ${index} has it`);
  }
  return tensors;
}

/** Describes the tensors of one file. Buffers of a type that no parameter has (I64 masks and such) are left out. */
export function readSafetensorsFile(path: string): Map<string, TensorInfo> {
  const file = new PositionedFile(path);
  try {
    const { header, dataStart } = readHeader(file);
    const tensors = new Map<string, TensorInfo>();
    for (const [name, entry] of Object.entries(header)) {
      if (name === "__metadata__") continue;
      const tensor = readEntry(name, entry, path, dataStart, file.size);
      if (tensor !== null) tensors.set(name, tensor);
    }
    refuseOverlaps([...tensors.values()], path);
    return tensors;
  } finally {
    file.close();
  }
}

function readHeader(file: PositionedFile) {
  const start = file.read(0, 8);
  if (start.length < 8) throw new CheckpointError(`${file.path} is truncated: it has ${file.size} bytes`);
  const length = Number(new DataView(start.buffer).getBigUint64(0, true));
  if (length > MAX_HEADER_BYTES || length < 2) {
    throw new CheckpointError(`${file.path} is not a safetensors file: its header would have ${length} bytes`);
  }
  if (8 + length > file.size) {
    throw new CheckpointError(`${file.path} is truncated: its header has ${length} bytes, the file ${file.size}`);
  }
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(file.read(8, length)));
  } catch {
    throw new CheckpointError(`${file.path} is not a safetensors file: its header is not JSON`);
  }
  if (!isObject(header)) throw new CheckpointError(`${file.path}: the header is not a JSON object`);
  return { header, dataStart: 8 + length };
}

function readEntry(name: string, entry: unknown, path: string, dataStart: number, fileSize: number): TensorInfo | null {
  const isSize = (value: unknown) => typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
  const { dtype, shape, data_offsets: offsets } = isObject(entry) ? entry : {};
  const fits = typeof dtype === "string" && Array.isArray(shape) && shape.length <= 8 && shape.every(isSize);
  if (!fits || !Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize) || offsets[0] > offsets[1]) {
    throw new CheckpointError(`${path}: the entry of ${name} is malformed`);
  }
  const [begin, end] = offsets as [number, number];
  if (dataStart + end > fileSize) {
    throw new CheckpointError(
      `${path} is truncated: ${name} ends at byte ${dataStart + end}, the file has ${fileSize} bytes`,
    );
  }
  if (!(dtype in ELEMENT_BYTES)) {
    if (!isParameter(name)) return null;
    throw new CheckpointError(`${path}: ${name} is of type ${dtype}; supported are F32, F16 and BF16`);
  }
  const type = dtype as StoredType & keyof typeof ELEMENT_BYTES;
  const expected = shape.reduce((product: number, size: number) => product * size, ELEMENT_BYTES[type]);
  if (end - begin !== expected) {
    throw new CheckpointError(`${path}: ${name} has ${end - begin} bytes, but ${dtype} [${shape}] takes ${expected}`);
  }
  return { name, type, shape, file: path, offset: dataStart + begin, bytes: expected, interleavedRows: false };
}

function isParameter(name: string): boolean {
  return name.endsWith(".weight") || name.endsWith(".bias");
}

/**
 * No byte belongs to two tensors.
 * @throws CheckpointError naming both
 */
export function refuseOverlaps(tensors: TensorInfo[], path: string): void {
  const sorted = tensors.filter((tensor) => tensor.bytes > 0).sort((a, b) => a.offset - b.offset);
  for (let i = 1; i < sorted.length; i++) {
    if (sorted[i - 1].offset + sorted[i - 1].bytes > sorted[i].offset) {
      throw new CheckpointError(`${path}: ${sorted[i - 1].name} and ${sorted[i].name} overlap`);
    }
  }
}
