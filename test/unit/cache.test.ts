import { describe, expect, test } from "bun:test";
import { LeafHeap } from "../../src/cache/leaf-heap.ts";
import { PagePool } from "../../src/cache/page-pool.ts";
import { type CachedPrefix, NaiveCache, type PrefixCache } from "../../src/cache/prefix-cache.ts";
import { RadixCache } from "../../src/cache/radix-cache.ts";
import { Random } from "./support/traffic.ts";

/** Drives a cache as a sequence does: matches, takes pages for the rest, hands them over, lets go. */
class Client {
  readonly pool: PagePool;
  readonly cache: RadixCache;

  constructor(
    size: number,
    readonly pageSize = 1,
  ) {
    this.pool = new PagePool(size);
    this.cache = new RadixCache(pageSize);
  }

  /** Matches `tokens` and computes the rest; the prefix stays locked. */
  open(tokens: number[], namespace = "") {
    const count = Math.floor(tokens.length / this.pageSize);
    const pages = new Int32Array(count);
    const words = Int32Array.from(tokens);
    const matched = this.cache.match(namespace, words, count, pages);
    this.pool.take(pages, matched.depth, count - matched.depth);
    const duplicates: number[] = [];
    const prefix = this.cache.insert(matched, words, pages, count, duplicates);
    return { found: matched.depth, pages: [...pages], prefix, duplicates };
  }

  /** The same, unlocked again. */
  use(tokens: number[], namespace = "") {
    const opened = this.open(tokens, namespace);
    this.cache.unlock(opened.prefix);
    this.check([]);
    return opened;
  }

  /** Pages of `tokens` that are known now. */
  known(tokens: number[], namespace = ""): number[] {
    const limit = Math.floor(tokens.length / this.pageSize);
    const pages = new Int32Array(limit);
    const prefix = this.cache.match(namespace, Int32Array.from(tokens), limit, pages);
    this.cache.unlock(prefix);
    return [...pages.subarray(0, prefix.depth)];
  }

  /** Every page is free or in the tree, once, but for those in `elsewhere`. */
  check(locked: CachedPrefix[], elsewhere: number[] = []): void {
    const seen: number[] = [...elsewhere];
    this.pool.check((page) => seen.push(page));
    this.cache.check(locked, (page) => seen.push(page));
    expect(seen.sort((a, b) => a - b)).toEqual(Array.from({ length: this.pool.size }, (_, i) => i));
  }
}

describe("page pool", () => {
  test("gives each page once and takes it back", () => {
    const pool = new PagePool(5);
    const pages = new Int32Array(6);
    pool.take(pages, 1, 5);
    expect([...pages.subarray(1)].sort()).toEqual([0, 1, 2, 3, 4]);
    expect(pool.free).toBe(0);
    expect(() => pool.take(pages, 0, 1)).toThrow(RangeError);
    pool.give(pages, 2, 4);
    expect(pool.free).toBe(2);
    const again = new Int32Array(2);
    pool.take(again, 0, 2);
    expect([...again].sort()).toEqual([...pages.subarray(2, 4)].sort());
  });

  test("refuses more than it has given", () => {
    const pool = new PagePool(2);
    expect(() => pool.give([0], 0, 1)).toThrow(RangeError);
  });
});

test("the heap gives the least recently used of what was added and not removed", () => {
  const random = new Random(7);
  const heap = new LeafHeap<{ lastUsed: number; heapIndex: number }>();
  const model = new Set<{ lastUsed: number; heapIndex: number }>();
  for (let i = 0; i < 3000; i++) {
    if (model.size === 0 || random.chance(0.55)) {
      const entry = { lastUsed: random.integer(0, 500), heapIndex: -1 };
      heap.add(entry);
      model.add(entry);
    } else {
      const entry = random.chance(0.5) ? heap.first : random.pick([...model]);
      heap.remove(entry);
      model.delete(entry);
      expect(entry.heapIndex).toBe(-1);
    }
    expect(heap.size).toBe(model.size);
    if (model.size > 0) expect(heap.first.lastUsed).toBe(Math.min(...[...model].map((entry) => entry.lastUsed)));
  }
});

describe("radix cache", () => {
  test("finds the pages of a common prefix, split where sequences part", () => {
    const client = new Client(20);
    const first = client.use([1, 2, 3, 4]);
    const second = client.use([1, 2, 5, 6, 7]);
    expect(second.found).toBe(2);
    expect(second.pages.slice(0, 2)).toEqual(first.pages.slice(0, 2));
    expect(client.known([1, 2, 3, 4, 9])).toEqual(first.pages);
    expect(client.known([1, 2, 5, 6, 7])).toEqual(second.pages);
    expect(client.known([2, 3])).toEqual([]);
    expect(client.cache.heldPages).toBe(7);
  });

  test("never gives more than the limit", () => {
    const client = new Client(20);
    const { pages } = client.use([1, 2, 3, 4]);
    const found = new Int32Array(4);
    const prefix = client.cache.match("", Int32Array.of(1, 2, 3, 4), 3, found);
    expect(prefix.depth).toBe(3);
    expect([...found]).toEqual([...pages.slice(0, 3), 0]);
    client.cache.unlock(prefix);
    client.check([]);
  });

  test("shares whole pages only", () => {
    const client = new Client(20, 4);
    client.use([1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(client.cache.heldPages).toBe(2);
    expect(client.known([1, 2, 3, 4, 5, 6, 7, 9])).toHaveLength(1);
    expect(client.known([1, 2, 3, 4, 5, 6, 7])).toHaveLength(1);
    expect(client.known([1, 2, 3, 9])).toHaveLength(0);
    // Both begin with 1, but part within the first page: they are siblings.
    client.use([1, 2, 3, 9]);
    expect(client.known([1, 2, 3, 4, 5, 6, 7, 8])).toHaveLength(2);
    expect(client.known([1, 2, 3, 9])).toHaveLength(1);
  });

  test("keeps namespaces apart and forgets empty ones", () => {
    const client = new Client(8);
    const mine = client.use([1, 2, 3], "mine");
    const yours = client.use([1, 2, 3], "yours");
    expect(yours.found).toBe(0);
    expect(client.known([1, 2, 3], "mine")).toEqual(mine.pages);
    expect(client.cache.evict(6, client.pool)).toBe(6);
    client.check([]);
    expect(client.pool.free).toBe(8);
    expect((client.cache as unknown as { roots: Map<string, unknown> }).roots.size).toBe(0);
  });

  test("says which pages are duplicates and puts its own in their place", () => {
    const client = new Client(12);
    const { cache, pool } = client;
    const words = Int32Array.of(1, 2, 3, 4);
    const ours = new Int32Array(4);
    const none = cache.match("", words, 4, ours);
    pool.take(ours, 0, 4);
    const own = [...ours];
    const theirs = client.open([1, 2, 3, 9]);
    cache.unlock(theirs.prefix);
    client.check([none], own);
    const duplicates: number[] = [];
    const prefix = cache.insert(none, words, ours, 4, duplicates);
    expect(duplicates).toEqual(own.slice(0, 3));
    expect([...ours]).toEqual([...theirs.pages.slice(0, 3), own[3]]);
    expect(prefix.depth).toBe(4);
    client.check([prefix], duplicates);
    pool.give(duplicates, 0, 3);
    cache.unlock(prefix);
    client.check([]);
  });

  test("handles stay good when their node is split", () => {
    const client = new Client(20);
    const long = client.open([1, 2, 3, 4, 5]);
    const short = client.open([1, 2, 9]);
    expect(long.prefix.depth).toBe(5);
    client.check([long.prefix, short.prefix]);
    client.cache.unlock(long.prefix);
    client.check([short.prefix]);
    expect(client.cache.evictablePages).toBe(3);
    client.cache.unlock(short.prefix);
    client.check([]);
    expect(client.cache.evictablePages).toBe(6);
  });

  test("evicts the least recently used leaf first, from its end, and never what is locked", () => {
    const client = new Client(30);
    client.use([1, 2, 3]);
    client.use([1, 2, 4]);
    client.use([5, 6]);
    client.known([1, 2, 3]);
    const locked = client.open([5, 6, 7]);
    const { cache, pool } = client;
    expect(cache.evictablePages).toBe(4);
    expect(cache.evict(1, pool)).toBe(1);
    expect(client.known([1, 2, 4])).toHaveLength(2);
    expect(client.known([1, 2, 3])).toHaveLength(3);
    expect(cache.evict(100, pool)).toBe(3);
    expect(client.known([1, 2, 3])).toHaveLength(0);
    expect(client.known([5, 6, 7])).toEqual(locked.pages);
    client.check([locked.prefix]);
    cache.unlock(locked.prefix);
    expect(cache.evict(2, pool)).toBe(2);
    expect(client.known([5, 6, 7])).toEqual(locked.pages.slice(0, 1));
    client.check([]);
  });

  test("agrees with a plain list of what was stored, whatever is done", () => {
    for (let seed = 1; seed <= 150; seed++) againstModel(seed);
  });

  test("evicts many leaves fast", () => {
    const count = 50000;
    const client = new Client(2 * count);
    const { cache, pool } = client;
    for (let i = 0; i < count; i++) cache.unlock(client.open([i % 50, 1000 + i]).prefix);
    const began = performance.now();
    while (cache.evict(1, pool) > 0);
    expect(performance.now() - began).toBeLessThan(3000);
    expect(pool.free).toBe(2 * count);
  });
});

/** Random prefixes, locks and evictions: a match may be shorter than all that was stored, but never of other tokens. */
function againstModel(seed: number): void {
  const random = new Random(seed);
  const pageSize = random.pick([1, 1, 2, 4]);
  const client = new Client(random.integer(10, 60), pageSize);
  const { cache, pool } = client;
  const contents = new Map<number, string>();
  const open: ReturnType<Client["open"]>[] = [];
  const prefixes = () => open.map(({ prefix }) => prefix);
  for (let round = 0; round < 120; round++) {
    const tokens = Array.from({ length: random.integer(1, 6 * pageSize) }, () => random.integer(0, 2));
    const pages = Math.floor(tokens.length / pageSize);
    if (random.chance(0.6) && pages <= pool.free + cache.evictablePages) {
      const before = client.known(tokens);
      before.forEach((page, i) => {
        expect(contents.get(page)).toBe(tokens.slice(0, (i + 1) * pageSize).join());
      });
      cache.evict(Math.max(0, pages - pool.free), pool);
      const opened = client.open(tokens);
      opened.pages.forEach((page, i) => {
        if (i >= opened.found) contents.set(page, tokens.slice(0, (i + 1) * pageSize).join());
      });
      expect(client.known(tokens)).toEqual(opened.pages);
      open.push(opened);
    } else if (open.length > 0 && random.chance(0.7)) {
      const [closed] = open.splice(random.integer(0, open.length - 1), 1);
      cache.unlock(closed!.prefix);
    } else {
      const wanted = random.integer(1, 10);
      const expected = Math.min(wanted, cache.evictablePages);
      expect(cache.evict(wanted, pool)).toBe(expected);
    }
    client.check(prefixes());
    for (const { prefix, pages: held } of open) expect(prefix.depth).toBe(held.length);
  }
}

test("the naive cache keeps nothing", () => {
  const cache: PrefixCache = new NaiveCache();
  const pages = Int32Array.of(3, 4);
  const prefix = cache.match("", Int32Array.of(1, 2), 2, pages);
  expect(prefix.depth).toBe(0);
  const duplicates: number[] = [];
  expect(cache.insert(prefix, Int32Array.of(1, 2), pages, 2, duplicates).depth).toBe(0);
  expect(duplicates).toEqual([]);
  expect(cache.heldPages).toBe(0);
  expect(cache.evict(1, new PagePool(5))).toBe(0);
});
