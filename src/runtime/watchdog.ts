/** What a watchdog looks at. */
export interface Watched {
  /** Requests are under way, or were at the last step. */
  readonly busy: boolean;
  readonly steps: number;
}

/**
 * Tells how long a scheduler has had work without making a step. It reads shared memory alone, so that it does not depend
 * on the thread that it watches; look() is to be called every `interval` seconds.
 */
export class Watchdog {
  private steps = -1;
  private looked = performance.now();
  private stalled = 0;

  constructor(
    private readonly watched: Watched,
    private readonly interval: number,
  ) {}

  /** Seconds without a step; 0 while there is nothing to do. */
  look(): number {
    const now = performance.now();
    // A process that was stopped or a machine that slept made no steps either: that is not the scheduler's doing.
    const passed = Math.min((now - this.looked) / 1000, 2 * this.interval);
    this.looked = now;
    const { busy, steps } = this.watched;
    this.stalled = busy && steps === this.steps ? this.stalled + passed : 0;
    this.steps = steps;
    return this.stalled;
  }
}
