import { CheckpointError } from "../checkpoint/types.ts";

/** The bytes of every token, as plain data: with it a thread can detokenize without the tokenizer. */
export interface VocabularyBytes {
  /** [size + 1]: the bytes of token i are bytes[offsets[i]] to bytes[offsets[i + 1] - 1]. */
  offsets: Uint32Array;
  bytes: Uint8Array;
  /** [size]: 1 for special tokens, which a text leaves out. */
  special: Uint8Array;
  /** The first space of a text is not part of it (SentencePiece puts one in front of the first word). */
  stripsFirstSpace: boolean;
}

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
  single_word?: boolean;
  lstrip?: boolean;
  rstrip?: boolean;
  normalized?: boolean;
}

interface Step {
  type: string;
  decoders?: Step[];
  start?: number;
  content?: string;
}

/**
 * Tabulates a vocabulary.
 * @param vocabulary the model's own tokens by id; there may be gaps
 * @throws CheckpointError where tokens do not simply stand for bytes (WordPiece and such)
 */
export function tabulate(
  vocabulary: readonly string[],
  added: readonly AddedToken[],
  decoder: unknown,
): VocabularyBytes {
  const kind = readDecoder(decoder);
  const encoder = new TextEncoder();
  const pieces: Uint8Array[] = [];
  let total = 0;
  const put = (id: number, bytes: Uint8Array) => {
    total += bytes.length - (pieces[id]?.length ?? 0);
    pieces[id] = bytes;
  };
  for (let id = 0; id < vocabulary.length; id++) {
    const token = vocabulary[id] ?? "";
    const bytes = kind.byteLevel ? byteLevelBytes(token) : sentencePieceBytes(token, kind.byteFallback);
    put(id, bytes ?? encoder.encode(token));
  }
  for (const { id, content } of added) put(id, encoder.encode(content));

  const size = pieces.length;
  const table: VocabularyBytes = {
    offsets: new Uint32Array(size + 1),
    bytes: new Uint8Array(total),
    special: new Uint8Array(size),
    stripsFirstSpace: kind.stripsFirstSpace,
  };
  for (let id = 0, end = 0; id < size; id++) {
    if (pieces[id] !== undefined) {
      table.bytes.set(pieces[id], end);
      end += pieces[id].length;
    }
    table.offsets[id + 1] = end;
  }
  for (const { id, special } of added) if (special) table.special[id] = 1;
  return table;
}

function readDecoder(decoder: unknown): { byteLevel: boolean; byteFallback: boolean; stripsFirstSpace: boolean } {
  const step = decoder as Step | null;
  const steps = step?.type === "Sequence" ? (step.decoders ?? []) : step === null ? [] : [step];
  const has = (kind: string) => steps.some(({ type }) => type === kind);
  if (has("ByteLevel")) return { byteLevel: true, byteFallback: false, stripsFirstSpace: false };
  const known = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
  if (steps.length > 0 && steps.every(({ type }) => known.includes(type))) {
    const strips = ({ type, start }: Step) => type === "Metaspace" || (type === "Strip" && start === 1);
    return { byteLevel: false, byteFallback: has("ByteFallback"), stripsFirstSpace: steps.some(strips) };
  }
  const given = steps.map(({ type }) => type).join(", ") || "none";
  throw new CheckpointError(`tokenizer.json: decoder ${given} is not supported; ByteLevel and SentencePiece's are`);
}

/** GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up, in their order. */
const BYTE_OF_CHARACTER = (() => {
  const table = new Map<string, number>();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    table.set(String.fromCharCode(printable ? byte : next++), byte);
  }
  return table;
})();

function byteLevelBytes(token: string): Uint8Array | null {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = BYTE_OF_CHARACTER.get(token[i]);
    if (byte === undefined) return null;
    bytes[i] = byte;
  }
  return bytes;
}

function sentencePieceBytes(token: string, byteFallback: boolean): Uint8Array {
  const byte = token.match(/^<0x([0-9A-Fa-f]{2})>$/);
  if (byteFallback && byte !== null) return Uint8Array.of(Number.parseInt(byte[1], 16));
  return new TextEncoder().encode(token.replaceAll("▁", " "));
}
