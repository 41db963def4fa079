/**
 * The cache room: who holds the pages of the KV pool. Pure bookkeeping, no device.
 * Every page is free (page-pool.ts), in the prefix cache, or owned by exactly one sequence.
 * Read this file (what the scheduler sees), then page-pool.ts, radix-cache.ts and leaf-heap.ts.
 */
import type { PagePool } from "./page-pool.ts";

/** A run of whole pages from a sequence's begin that the cache holds and that is locked for whoever has this handle. */
export interface CachedPrefix {
  /** Length in pages. */
  readonly depth: number;
}

/** Keeps the pages of computed prefixes for sequences that begin alike. Lengths are in whole pages. */
export interface PrefixCache {
  /** Pages that the cache holds and nobody has locked: what evict can give. */
  readonly evictablePages: number;
  /** All pages that the cache holds. */
  readonly heldPages: number;
  /**
   * Finds and locks the longest known prefix of `tokens`, of at most `limit` pages, and writes its page ids to `pages`.
   * Prefixes are shared within a namespace only.
   */
  match(namespace: string, tokens: Int32Array, limit: number, pages: Int32Array): CachedPrefix;
  /**
   * Hands over the first `count` pages of a sequence; `prefix` is what it has locked of them. Pages that are new go to
   * the cache. Where the cache already knows the same tokens, its page id replaces the one in `pages`, and the
   * sequence's own is appended to `duplicates`: that one stays the sequence's. Duplicates are those right after
   * `prefix`, in order. Returns the longer prefix, locked in place of `prefix`.
   */
  insert(
    prefix: CachedPrefix,
    tokens: Int32Array,
    pages: Int32Array,
    count: number,
    duplicates: number[],
  ): CachedPrefix;
  unlock(prefix: CachedPrefix): void;
  /** Gives up to `count` unlocked pages back to the pool, least recently used first. Returns how many. */
  evict(count: number, pool: PagePool): number;
  /**
   * Checks itself against all prefixes that are locked now and reports each page it holds.
   * @throws Error that says what is inconsistent.
   */
  check(locked: Iterable<CachedPrefix>, report: (page: number) => void): void;
}

/** Keeps nothing. */
export class NaiveCache implements PrefixCache {
  readonly evictablePages = 0;
  readonly heldPages = 0;
  private static readonly none: CachedPrefix = { depth: 0 };

  match(): CachedPrefix {
    return NaiveCache.none;
  }
  insert(prefix: CachedPrefix): CachedPrefix {
    return prefix;
  }
  unlock(): void {}
  evict(): number {
    return 0;
  }
  check(): void {}
}
