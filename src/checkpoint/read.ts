import { closeSync, fstatSync, openSync, readFileSync, readSync, statSync } from "node:fs";
import { basename } from "node:path";
import { CheckpointError } from "./types.ts";

/** A file open for positioned reads: weights are never read here, only the headers that describe them. */
export class PositionedFile {
  readonly size: number;
  readonly #descriptor: number;

  /** @throws CheckpointError where the file cannot be opened */
  constructor(readonly path: string) {
    try {
      this.#descriptor = openSync(path, "r");
    } catch (error) {
      throw new CheckpointError(`cannot open ${path}: ${reason(error)}`);
    }
    const stat = fstatSync(this.#descriptor);
    this.size = stat.size;
    if (!stat.isFile()) {
      this.close();
      throw new CheckpointError(`${path} is not a file`);
    }
  }

  /** The `length` bytes from `offset` on; fewer where the file ends before. */
  read(offset: number, length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(Math.max(0, Math.min(length, this.size - offset)));
    let done = 0;
    while (done < bytes.length) {
      const got = readSync(this.#descriptor, bytes, done, bytes.length - done, offset + done);
      if (got === 0) return bytes.subarray(0, done);
      done += got;
    }
    return bytes;
  }

  close(): void {
    closeSync(this.#descriptor);
  }
}

/**
 * Parses a JSON file that must hold an object.
 * @returns null where there is no such file
 * @throws CheckpointError where it is unreadable, larger than `maxBytes`, or not a JSON object
 */
export function readJsonObject(path: string, maxBytes = 16 << 20): Record<string, unknown> | null {
  const text = readText(path, maxBytes);
  if (text === null) return null;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new CheckpointError(`${path} is not valid JSON: ${reason(error)}`);
  }
  if (!isObject(value)) throw new CheckpointError(`${path} does not hold a JSON object`);
  return value;
}

/** A text file of at most `maxBytes`, or null where there is none. */
export function readText(path: string, maxBytes = 16 << 20): string | null {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return null;
  if (!stat.isFile()) throw new CheckpointError(`${path} is not a file`);
  if (stat.size > maxBytes) {
    throw new CheckpointError(`${path} has ${stat.size} bytes; a ${basename(path)} has at most ${maxBytes}`);
  }
  try {
    return readFileSync(path, "utf8").replace(/^\uFEFF/, "");
  } catch (error) {
    throw new CheckpointError(`cannot read ${path}: ${reason(error)}`);
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
