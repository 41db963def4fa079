/** Wakes a thread that sleeps because it has nothing to do: one shared word that counts the rings. */
export class Doorbell {
  private readonly word: Int32Array;

  /** @param buffer Another thread's doorbell to share. */
  constructor(readonly buffer: SharedArrayBuffer = new SharedArrayBuffer(4)) {
    this.word = new Int32Array(buffer);
  }

  /** Wakes the sleeper. To be called after the work has been put where it will look. */
  ring(): void {
    Atomics.add(this.word, 0, 1);
    Atomics.notify(this.word, 0);
  }

  /** How often it was rung: to be read before looking for work. */
  get rings(): number {
    return Atomics.load(this.word, 0);
  }

  /** Sleeps until it is rung, or not at all if it was rung since `rings` was read. */
  sleep(rings: number): void {
    Atomics.wait(this.word, 0, rings);
  }
}
