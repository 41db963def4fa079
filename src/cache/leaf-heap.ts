/** What the heap orders: by `lastUsed`. `heapIndex` belongs to the heap; -1: not in it. */
export interface HeapEntry {
  lastUsed: number;
  heapIndex: number;
}

/** A binary heap whose entries know their place, so that any of them can be removed in O(log n). */
export class LeafHeap<T extends HeapEntry> {
  private readonly entries: T[] = [];

  get size(): number {
    return this.entries.length;
  }

  /** The least recently used entry; the heap must not be empty. */
  get first(): T {
    return this.entries[0];
  }

  add(entry: T): void {
    this.entries.push(entry);
    this.rise(entry, this.entries.length - 1);
  }

  remove(entry: T): void {
    const index = entry.heapIndex;
    const last = this.entries.pop()!;
    entry.heapIndex = -1;
    if (last === entry) return;
    this.rise(last, index);
    this.sink(last, last.heapIndex);
  }

  private place(entry: T, index: number): void {
    this.entries[index] = entry;
    entry.heapIndex = index;
  }

  private rise(entry: T, index: number): void {
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (this.entries[parent].lastUsed <= entry.lastUsed) break;
      this.place(this.entries[parent], index);
      index = parent;
    }
    this.place(entry, index);
  }

  private sink(entry: T, index: number): void {
    const { entries } = this;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= entries.length) break;
      if (child + 1 < entries.length && entries[child + 1].lastUsed < entries[child].lastUsed) child++;
      if (entries[child].lastUsed >= entry.lastUsed) break;
      this.place(entries[child], index);
      index = child;
    }
    this.place(entry, index);
  }
}
