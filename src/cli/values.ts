/** Readers of option values: each turns the text of the command line into a checked value or says what it must be. */
import { InvalidArgumentError } from "commander";
import type { AttentionBackend } from "../message/types.ts";

/** A reader of integers from `minimum` to `maximum`. */
export function integer(minimum: number, maximum = 2 ** 31 - 1): (text: string) => number {
  const range = maximum === 2 ** 31 - 1 ? `of at least ${minimum}` : `from ${minimum} to ${maximum}`;
  return (text) => {
    const value = Number(text);
    if (!/^[+-]?\d+$/.test(text) || value < minimum || value > maximum) {
      throw new InvalidArgumentError(`It must be an integer ${range}.`);
    }
    return value;
  };
}

/** A reader of numbers; `check` decides, `expected` says what is allowed. */
export function number(expected: string, check: (value: number) => boolean): (text: string) => number {
  return (text) => {
    const value = text.trim() === "" ? Number.NaN : Number(text);
    if (!Number.isFinite(value) || !check(value)) throw new InvalidArgumentError(`It must be ${expected}.`);
    return value;
  };
}

/** A reader of one of a few words. */
export function choice<T extends string>(words: readonly T[]): (text: string) => T {
  return (text) => {
    const word = words.find((candidate) => candidate === text);
    if (word === undefined) throw new InvalidArgumentError(`It must be one of ${words.join(", ")}.`);
    return word;
  };
}

/** A reader of addresses to listen on. An empty one would mean every interface, which is to be asked for by name. */
export function address(text: string): string {
  const trimmed = text.trim();
  if (trimmed === "") throw new InvalidArgumentError("It must be an address or a name; 0.0.0.0 is every interface.");
  return trimmed;
}

/** A reader of words of which some are known to users of other engines but not available here. */
export function available<T extends string>(words: readonly T[], missing: Record<string, string>): (text: string) => T {
  const read = choice(words);
  return (text) => {
    const reason = missing[text];
    if (reason !== undefined) throw new InvalidArgumentError(reason);
    return read(text);
  };
}

/** Reads "auto", "fa", "fi" for both phases, or "prefill,decode". */
export function attention(text: string): { prefill: AttentionBackend; decode: AttentionBackend } {
  const read = available<AttentionBackend>(["auto", "fa", "fi"], {
    trtllm: "The TensorRT-LLM kernels are not available; use fa, fi or auto.",
  });
  const names = text.split(",");
  if (names.length > 2) throw new InvalidArgumentError("It must be one backend, or two as prefill,decode.");
  const prefill = read((names[0] as string).trim());
  return { prefill, decode: names.length === 2 ? read((names[1] as string).trim()) : prefill };
}

/** Reads origins as a list with commas, or as vLLM's JSON list. */
export function origins(text: string): string[] {
  const parts = text.trim().startsWith("[") ? parseList(text) : text.split(",").map((part) => part.trim());
  for (const part of parts) {
    if (part !== "*" && !/^[a-z][a-z0-9+.-]*:\/\/[^\s/]+$/i.test(part)) {
      throw new InvalidArgumentError("It must be *, or origins such as https://example.com with commas between them.");
    }
  }
  return parts;
}

function parseList(text: string): string[] {
  try {
    return (JSON.parse(text) as unknown[]).map(String);
  } catch {
    throw new InvalidArgumentError('It must be a list such as ["https://example.com"].');
  }
}

/** Reads tokens into a list; the option may be given several times. */
export function collect(text: string, previous: string[] | undefined): string[] {
  return [...(previous ?? []), text];
}

/** A reader of integers with commas between them. */
export function integers(minimum: number, maximum?: number): (text: string) => number[] {
  const read = integer(minimum, maximum);
  return (text) => text.split(",").map((part) => read(part.trim()));
}
