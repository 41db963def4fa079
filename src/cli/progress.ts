/** How loading shows itself: a bar that redraws itself on a terminal, a line now and then elsewhere. */

const BAR_WIDTH = 24;
const REDRAW_MS = 50;
const LOG_MS = 2000;

export interface ProgressOutput {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

/** Shows stages of work one after the other. Amounts are in bytes where they are large, else in whatever is counted. */
export class Progress {
  private stage = "";
  private last = 0;
  private drawn = false;

  constructor(
    private readonly output: ProgressOutput = process.stderr,
    private readonly now: () => number = performance.now.bind(performance),
  ) {}

  /** To be called as often as there is news; what is not worth showing is dropped. */
  readonly update = (stage: string, done: number, total: number): void => {
    const begins = stage !== this.stage;
    const ends = total > 0 && done >= total;
    const now = this.now();
    const interval = this.output.isTTY ? REDRAW_MS : LOG_MS;
    if (!begins && !ends && now - this.last < interval) return;
    this.stage = stage;
    this.last = now;
    if (this.output.isTTY) this.draw(stage, done, total);
    else if (begins || total > 0) this.output.write(`loading ${stage}${total > 0 ? `: ${amount(done, total)}` : ""}\n`);
  };

  /** Takes the bar away. */
  clear(): void {
    if (this.drawn) this.output.write("\r\x1b[K");
    this.drawn = false;
    this.stage = "";
  }

  private draw(stage: string, done: number, total: number): void {
    const share = total > 0 ? Math.min(1, done / total) : 0;
    const filled = Math.round(share * BAR_WIDTH);
    const bar = total > 0 ? ` [${"#".repeat(filled)}${"-".repeat(BAR_WIDTH - filled)}] ${amount(done, total)}` : " ...";
    this.output.write(`\r${`loading ${stage}${bar}`.slice(0, (this.output.columns ?? 80) - 1)}\x1b[K`);
    this.drawn = true;
  }
}

function amount(done: number, total: number): string {
  const percent = `${Math.floor((100 * Math.min(done, total)) / total)}%`;
  return total < 10000 ? `${percent} (${done} of ${total})` : `${percent} of ${formatBytes(total)}`;
}

/** 1234567 as "1.2 MB". */
export function formatBytes(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${value >= 99.5 || unit === 0 ? value.toFixed(0) : value.toPrecision(2)} ${units[unit]}`;
}
