/** The free pages of the KV pool, ids 0 .. size - 1, handed out last freed first. */
export class PagePool {
  /** Pages that are free. */
  free: number;
  private readonly stack: Int32Array;

  constructor(readonly size: number) {
    this.free = size;
    this.stack = new Int32Array(size);
    for (let i = 0; i < size; i++) this.stack[i] = size - 1 - i;
  }

  /** Takes `count` pages into pages[at ...]. The caller has made sure that they are there. */
  take(pages: Int32Array, at: number, count: number): void {
    if (count > this.free) throw new RangeError(`${count} pages asked for, ${this.free} are free`);
    for (let i = 0; i < count; i++) pages[at + i] = this.stack[--this.free];
  }

  /** Takes pages[from .. to) back. */
  give(pages: ArrayLike<number>, from: number, to: number): void {
    if (this.free + to - from > this.size) throw new RangeError("more pages given back than the pool has");
    for (let i = from; i < to; i++) this.stack[this.free++] = pages[i];
  }

  /** Calls `report` with each free page. */
  check(report: (page: number) => void): void {
    for (let i = 0; i < this.free; i++) report(this.stack[i]);
  }
}
