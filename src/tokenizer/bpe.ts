import { CheckpointError } from "../checkpoint/types.ts";

export interface BpeModel {
  vocab: Record<string, number>;
  /** Pairs in the order of their rank, each a list of two or "left right". */
  merges: readonly (string | readonly [string, string])[];
  unk_token?: string | null;
  byte_fallback?: boolean;
  ignore_merges?: boolean;
  [key: string]: unknown;
}

/** Ids are below this, as vocabularies are. */
export const MAX_ID = 1 << 22;
const CACHED_WORDS = 20_000;
const CACHED_LENGTH = 64;

/**
 * Byte pair encoding as Hugging Face's Rust library does it: in a word, the adjacent pair of lowest rank is merged, the
 * leftmost first, until no pair has a merge. A heap of pairs makes a word of n characters cost n log n, so that a text
 * without spaces (SentencePiece's texts are one word) is no worse than another.
 */
export class BytePairEncoder {
  readonly #ranks: RankTable;
  /** The id that the merge of a rank makes; 0 before its first use, -1 where the vocabulary does not have it. */
  readonly #merged: Int32Array;
  readonly #ids: Map<string, number>;
  /** The vocabulary by id. */
  readonly tokens: string[] = [];
  readonly #cache = new Map<string, readonly string[]>();

  /** @throws CheckpointError for what BPE can have and no model here uses */
  constructor(private readonly model: BpeModel) {
    for (const option of ["continuing_subword_prefix", "end_of_word_suffix"]) {
      if (model[option]) throw new CheckpointError(`tokenizer.json: model.${option} is not supported`);
    }
    this.#ids = new Map(Object.entries(model.vocab));
    for (const [token, id] of this.#ids) {
      if (!(Number.isInteger(id) && id >= 0 && id < MAX_ID)) {
        throw new CheckpointError(
          `tokenizer.json: the token ${JSON.stringify(token)} has the id ${JSON.stringify(id)}`,
        );
      }
      this.tokens[id] = token;
    }
    this.#merged = new Int32Array(model.merges.length);
    this.#ranks = new RankTable(model.merges.length);
    for (let rank = 0; rank < model.merges.length; rank++) this.#addMerge(model.merges[rank], rank);
  }

  #addMerge(merge: string | readonly [string, string], rank: number): void {
    const space = typeof merge === "string" ? merge.indexOf(" ", 1) : 0;
    const left = typeof merge === "string" ? merge.slice(0, space) : merge[0];
    const right = typeof merge === "string" ? merge.slice(space + 1) : merge[1];
    const leftId = this.#ids.get(left);
    const rightId = this.#ids.get(right);
    if (leftId !== undefined && rightId !== undefined) this.#ranks.set(leftId, rightId, rank);
  }

  #mergedId(left: number, right: number, rank: number): number {
    this.#merged[rank] ||= this.#ids.get(this.tokens[left] + this.tokens[right]) ?? -1;
    return this.#merged[rank];
  }

  /** The tokens of each word, one after the other. */
  encode(words: readonly string[]): string[] {
    const tokens: string[] = [];
    for (const word of words) for (const token of this.#encodeWord(word)) tokens.push(token);
    return tokens;
  }

  #encodeWord(word: string): readonly string[] {
    if (this.model.ignore_merges && this.#ids.has(word)) return [word];
    const known = this.#cache.get(word);
    if (known !== undefined) return known;
    const tokens = this.#merge(this.#symbols(word));
    if (word.length <= CACHED_LENGTH) {
      if (this.#cache.size >= CACHED_WORDS) this.#cache.clear();
      this.#cache.set(word, tokens);
    }
    return tokens;
  }

  /** The ids of a word's characters: those of its bytes, or the unknown token, or nothing where there is no token. */
  #symbols(word: string): number[] {
    const symbols: number[] = [];
    const unknown = typeof this.model.unk_token === "string" ? this.#ids.get(this.model.unk_token) : undefined;
    for (const character of word) {
      const id = this.#ids.get(character);
      if (id !== undefined) symbols.push(id);
      else {
        const bytes = this.model.byte_fallback ? this.#byteIds(character) : null;
        if (bytes !== null) symbols.push(...bytes);
        else if (unknown !== undefined) symbols.push(unknown);
      }
    }
    return symbols;
  }

  #byteIds(character: string): number[] | null {
    const bytes = [...new TextEncoder().encode(character)];
    const ids = bytes.map((byte) => this.#ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`));
    return ids.every((id) => id !== undefined) ? ids : null;
  }

  #merge(symbols: number[]): string[] {
    const count = symbols.length;
    const next = Int32Array.from({ length: count }, (_, i) => i + 1);
    const previous = Int32Array.from({ length: count }, (_, i) => i - 1);
    const heap = new PairHeap();
    const consider = (left: number): void => {
      if (left < 0 || next[left] >= count) return;
      const rank = this.#ranks.get(symbols[left], symbols[next[left]]);
      if (rank >= 0) heap.push(rank, left);
    };
    for (let i = 0; i < count; i++) consider(i);
    while (heap.pop()) {
      const { rank, left } = heap;
      const right = next[left];
      // An entry is stale where one of its two symbols has been merged meanwhile (-1: merged into its left neighbour).
      if (symbols[left] < 0 || right >= count) continue;
      if (this.#ranks.get(symbols[left], symbols[right]) !== rank) continue;
      const merged = this.#mergedId(symbols[left], symbols[right], rank);
      if (merged < 0) continue;
      symbols[left] = merged;
      symbols[right] = -1;
      next[left] = next[right];
      if (next[left] < count) previous[next[left]] = left;
      consider(previous[left]);
      consider(left);
    }
    const tokens: string[] = [];
    for (const id of symbols) if (id >= 0) tokens.push(this.tokens[id]);
    return tokens;
  }
}

/** Ranks of pairs of ids: a hash table with open addressing, since it is looked into for every pair of characters. */
class RankTable {
  readonly #mask: number;
  readonly #left: Int32Array;
  readonly #right: Int32Array;
  readonly #rank: Int32Array;

  constructor(most: number) {
    const size = 2 ** Math.ceil(Math.log2(2 * most + 2));
    this.#mask = size - 1;
    this.#left = new Int32Array(size).fill(-1);
    this.#right = new Int32Array(size);
    this.#rank = new Int32Array(size);
  }

  /** Where the pair stands, or the empty place where it would. */
  #find(left: number, right: number): number {
    let at = (Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b)) >>> 0;
    at = (at ^ (at >>> 15)) & this.#mask;
    while (this.#left[at] >= 0 && (this.#left[at] !== left || this.#right[at] !== right)) at = (at + 1) & this.#mask;
    return at;
  }

  set(left: number, right: number, rank: number): void {
    const at = this.#find(left, right);
    this.#left[at] = left;
    this.#right[at] = right;
    this.#rank[at] = rank;
  }

  /** The pair's rank, or -1. */
  get(left: number, right: number): number {
    const at = this.#find(left, right);
    return this.#left[at] < 0 ? -1 : this.#rank[at];
  }
}

/** Positions of pairs by rank, then from left to right. */
class PairHeap {
  /** The entry that pop took. */
  rank = 0;
  left = 0;
  /** rank * 2^26 + left: exact, with ranks below 2^26. */
  readonly #keys: number[] = [];

  push(rank: number, left: number): void {
    const keys = this.#keys;
    const key = rank * 2 ** 26 + left;
    let at = keys.length;
    keys.push(key);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (keys[parent] <= key) break;
      keys[at] = keys[parent];
      at = parent;
    }
    keys[at] = key;
  }

  pop(): boolean {
    const keys = this.#keys;
    if (keys.length === 0) return false;
    const top = keys[0];
    this.left = top % 2 ** 26;
    this.rank = (top - this.left) / 2 ** 26;
    const last = keys.pop()!;
    if (keys.length > 0) this.#sink(last);
    return true;
  }

  #sink(key: number): void {
    const keys = this.#keys;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= keys.length) break;
      if (child + 1 < keys.length && keys[child + 1] < keys[child]) child++;
      if (keys[child] >= key) break;
      keys[at] = keys[child];
      at = child;
    }
    keys[at] = key;
  }
}
