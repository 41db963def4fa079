import type { VocabularyBytes } from "./vocabulary.ts";

/** Token ids to text, for any number of sequences at once. */
export class TokenTable {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** The text of tokens that are whole characters; null for those that are not; undefined before the first use. */
  readonly #texts: (string | null | undefined)[];

  constructor(readonly vocabulary: VocabularyBytes) {
    this.#texts = new Array(this.size);
  }

  get size(): number {
    return this.vocabulary.special.length;
  }

  isSpecial(id: number): boolean {
    return this.vocabulary.special[id] === 1;
  }

  /** The bytes of a token; none for an id outside the vocabulary (a model's may be padded). */
  bytes(id: number): Uint8Array {
    const { offsets, bytes } = this.vocabulary;
    return bytes.subarray(offsets[id] ?? 0, offsets[id + 1] ?? 0);
  }

  /** The text of a token, or null where it begins or ends within a character. */
  text(id: number): string | null {
    const known = this.#texts[id];
    if (known !== undefined) return known;
    const bytes = this.bytes(id);
    const text = this.decodeBytes(bytes);
    // Bytes that are no text come out as U+FFFD: such a token is decoded together with its neighbours.
    const whole = text.includes("\uFFFD") ? null : text;
    if (id >= 0 && id < this.size) this.#texts[id] = whole;
    return whole;
  }

  decodeBytes(bytes: Uint8Array): string {
    return this.#decoder.decode(bytes);
  }

  /** The text of a whole sequence. */
  decode(ids: Iterable<number>, options: DetokenizerOptions = {}): string {
    const detokenizer = new IncrementalDetokenizer(this, options);
    let text = "";
    for (const id of ids) text += detokenizer.push(id);
    return text + detokenizer.flush();
  }
}

export interface DetokenizerOptions {
  /** Default true. */
  skipSpecialTokens?: boolean;
  /** The tokens go on from text in front of them, so that their first space stays. Default false. */
  continues?: boolean;
}

/** The text of one sequence as its tokens come. What it gave so far and gives next never changes with what follows. */
export class IncrementalDetokenizer {
  /** The bytes of a character that is not complete yet. */
  #pending: Uint8Array | null = null;
  #atStart: boolean;
  readonly #skipSpecial: boolean;

  constructor(
    readonly table: TokenTable,
    options: DetokenizerOptions = {},
  ) {
    this.#skipSpecial = options.skipSpecialTokens ?? true;
    this.#atStart = table.vocabulary.stripsFirstSpace && !options.continues;
  }

  /** Takes one more token. @returns the text that is complete now */
  push(id: number): string {
    if (this.#skipSpecial && this.table.isSpecial(id)) return "";
    if (this.#pending === null) {
      const text = this.table.text(id);
      if (text !== null) return this.#atStart ? this.#strip(text) : text;
    }
    return this.#decode(this.table.bytes(id));
  }

  /** Ends the sequence. @returns U+FFFD for a character that stayed incomplete, else nothing */
  flush(): string {
    const pending = this.#pending;
    this.#pending = null;
    return pending === null ? "" : this.table.decodeBytes(pending);
  }

  #decode(next: Uint8Array): string {
    let bytes = next;
    if (this.#pending !== null) {
      bytes = new Uint8Array(this.#pending.length + next.length);
      bytes.set(this.#pending);
      bytes.set(next, this.#pending.length);
    }
    const end = completeLength(bytes);
    this.#pending = end < bytes.length ? bytes.slice(end) : null;
    const text = this.table.decodeBytes(bytes.subarray(0, end));
    return this.#atStart ? this.#strip(text) : text;
  }

  #strip(text: string): string {
    if (text === "") return text;
    this.#atStart = false;
    return text.startsWith(" ") ? text.slice(1) : text;
  }
}

/** How many of the bytes stand before a last character that needs more of them. */
function completeLength(bytes: Uint8Array): number {
  const length = bytes.length;
  for (let back = 1; back <= Math.min(3, length); back++) {
    const byte = bytes[length - back];
    if (byte < 0x80) return length;
    if (byte < 0xc0) continue;
    const needed = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : 2;
    return needed > back && byte < 0xf5 ? length - back : length;
  }
  return length;
}
