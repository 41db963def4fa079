import { type HeapEntry, LeafHeap } from "./leaf-heap.ts";
import type { PagePool } from "./page-pool.ts";
import type { CachedPrefix, PrefixCache } from "./prefix-cache.ts";

/**
 * A run of whole pages below its parent's. Siblings differ within their first page. A lock on a node is counted on
 * its whole path, so nodes with no locks have only such nodes below them.
 */
class RadixNode implements CachedPrefix, HeapEntry {
  /** By the tokens of the child's first page (see RadixCache.key). */
  readonly children = new Map<number | string, RadixNode>();
  locks = 0;
  lastUsed = 0;
  heapIndex = -1;

  constructor(
    /** null: a namespace's root. */
    public parent: RadixNode | null,
    public tokens: Int32Array,
    public pages: Int32Array,
    /** Pages from the root to this node's end. */
    public depth: number,
    readonly namespace: string,
  ) {}
}

/**
 * A radix tree over token runs in whole pages, one root per namespace. Unlocked leaves are evicted least recently
 * used first, page by page from their end.
 */
export class RadixCache implements PrefixCache {
  evictablePages = 0;
  heldPages = 0;
  private readonly roots = new Map<string, RadixNode>();
  /** Exactly the leaves without locks. */
  private readonly evictable = new LeafHeap<RadixNode>();
  private clock = 0;

  constructor(private readonly pageSize: number) {}

  match(namespace: string, tokens: Int32Array, limit: number, pages: Int32Array): CachedPrefix {
    let node = this.root(namespace);
    this.lock(node);
    while (node.depth < limit) {
      const next = this.descend(node, tokens, limit);
      if (next === null) break;
      pages.set(next.pages, node.depth);
      node = next;
    }
    return node;
  }

  insert(
    prefix: CachedPrefix,
    tokens: Int32Array,
    pages: Int32Array,
    count: number,
    duplicates: number[],
  ): CachedPrefix {
    let node = prefix as RadixNode;
    while (node.depth < count) {
      const begin = node.depth;
      const next = this.descend(node, tokens, count);
      if (next === null) return this.append(node, tokens, pages, count);
      for (let i = 0; i < next.pages.length; i++) {
        duplicates.push(pages[begin + i]);
        pages[begin + i] = next.pages[i];
      }
      node = next;
    }
    return node;
  }

  unlock(prefix: CachedPrefix): void {
    const now = ++this.clock;
    for (let node: RadixNode | null = prefix as RadixNode; node !== null; node = node.parent) {
      node.lastUsed = now;
      if (--node.locks > 0) continue;
      this.evictablePages += node.pages.length;
      if (node.children.size === 0) this.becomeLeaf(node);
    }
  }

  evict(count: number, pool: PagePool): number {
    let freed = 0;
    while (freed < count && this.evictable.size > 0) {
      const leaf = this.evictable.first;
      const size = leaf.pages.length;
      const keep = Math.max(0, size - (count - freed));
      pool.give(leaf.pages, keep, size);
      freed += size - keep;
      if (keep === 0) {
        this.removeLeaf(leaf);
      } else {
        leaf.depth -= size - keep;
        leaf.pages = leaf.pages.subarray(0, keep);
        leaf.tokens = leaf.tokens.subarray(0, keep * this.pageSize);
      }
    }
    this.heldPages -= freed;
    this.evictablePages -= freed;
    return freed;
  }

  private root(namespace: string): RadixNode {
    let root = this.roots.get(namespace);
    if (root === undefined) {
      root = new RadixNode(null, new Int32Array(0), new Int32Array(0), 0, namespace);
      this.roots.set(namespace, root);
    }
    return root;
  }

  /** What tells siblings apart: the tokens of page `page`. */
  private key(tokens: Int32Array, page: number): number | string {
    const { pageSize } = this;
    return pageSize === 1 ? tokens[page] : tokens.subarray(page * pageSize, (page + 1) * pageSize).join();
  }

  /** The child of `node` that goes on like `tokens`, cut to where it still does and to `limit` pages, and locked. */
  private descend(node: RadixNode, tokens: Int32Array, limit: number): RadixNode | null {
    const child = node.children.get(this.key(tokens, node.depth));
    if (child === undefined) return null;
    const offset = node.depth * this.pageSize;
    const end = Math.min(child.tokens.length, limit * this.pageSize - offset);
    let same = this.pageSize;
    while (same < end && child.tokens[same] === tokens[offset + same]) same++;
    const pages = Math.floor(same / this.pageSize);
    const next = pages < child.pages.length ? this.split(child, pages) : child;
    this.lock(next);
    return next;
  }

  /** Moves the first `count` pages of `lower` to a new node above it, which is returned. Handles to `lower` stay good. */
  private split(lower: RadixNode, count: number): RadixNode {
    const parent = lower.parent!;
    const words = count * this.pageSize;
    const depth = parent.depth + count;
    const pages = lower.pages.slice(0, count);
    const upper = new RadixNode(parent, lower.tokens.slice(0, words), pages, depth, lower.namespace);
    upper.locks = lower.locks;
    upper.lastUsed = lower.lastUsed;
    parent.children.set(this.key(upper.tokens, 0), upper);
    lower.parent = upper;
    lower.tokens = lower.tokens.slice(words);
    lower.pages = lower.pages.slice(count);
    upper.children.set(this.key(lower.tokens, 0), lower);
    return upper;
  }

  private append(parent: RadixNode, tokens: Int32Array, pages: Int32Array, count: number): RadixNode {
    const run = tokens.slice(parent.depth * this.pageSize, count * this.pageSize);
    const leaf = new RadixNode(parent, run, pages.slice(parent.depth, count), count, parent.namespace);
    leaf.locks = 1;
    parent.children.set(this.key(run, 0), leaf);
    this.heldPages += leaf.pages.length;
    return leaf;
  }

  private lock(node: RadixNode): void {
    if (node.locks++ > 0) return;
    this.evictablePages -= node.pages.length;
    if (node.heapIndex >= 0) this.evictable.remove(node);
  }

  /** An unlocked node has no children (any more). A root that holds nothing is forgotten. */
  private becomeLeaf(node: RadixNode): void {
    if (node.parent === null) this.roots.delete(node.namespace);
    else this.evictable.add(node);
  }

  private removeLeaf(leaf: RadixNode): void {
    const parent = leaf.parent!;
    this.evictable.remove(leaf);
    parent.children.delete(this.key(leaf.tokens, 0));
    if (parent.children.size === 0 && parent.locks === 0) this.becomeLeaf(parent);
  }

  check(locked: Iterable<CachedPrefix>, report: (page: number) => void): void {
    const locks = new Map<RadixNode, number>();
    for (const prefix of locked) {
      for (let node: RadixNode | null = prefix as RadixNode; node !== null; node = node.parent) {
        locks.set(node, (locks.get(node) ?? 0) + 1);
      }
    }
    let held = 0;
    let evictable = 0;
    let leaves = 0;
    const open = [...this.roots.values()];
    for (let node = open.pop(); node !== undefined; node = open.pop()) {
      const expected = locks.get(node) ?? 0;
      const where = `radix node at depth ${node.depth}`;
      if (node.locks !== expected) throw new Error(`${where} has ${node.locks} locks, ${expected} are held`);
      if (node.tokens.length !== node.pages.length * this.pageSize) throw new Error(`${where} is not in whole pages`);
      if (node.depth !== (node.parent?.depth ?? 0) + node.pages.length) throw new Error(`${where} is misplaced`);
      const leaf = node.parent !== null && node.children.size === 0 && node.locks === 0;
      if (leaf !== node.heapIndex >= 0) throw new Error(`${where}: evictable is ${leaf}, in the heap is ${!leaf}`);
      locks.delete(node);
      held += node.pages.length;
      if (node.locks === 0) evictable += node.pages.length;
      if (leaf) leaves++;
      node.pages.forEach(report);
      for (const [key, child] of node.children) {
        if (child.parent !== node || this.key(child.tokens, 0) !== key) throw new Error(`${where} has a wrong child`);
        open.push(child);
      }
    }
    if (locks.size > 0) throw new Error("a locked prefix is no longer in the radix tree");
    if (held !== this.heldPages || evictable !== this.evictablePages || leaves !== this.evictable.size) {
      throw new Error(
        `radix tree holds ${held} pages, ${evictable} of them unlocked, in ${leaves} leaves; ` +
          `it counts ${this.heldPages}, ${this.evictablePages} and ${this.evictable.size}`,
      );
    }
  }
}
