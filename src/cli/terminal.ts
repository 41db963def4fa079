/** The terminal as the shell needs it: line editing with history, pastes of many lines, Ctrl-C as an event. */
import { appendFileSync, mkdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface, type Interface } from "node:readline";
import { Transform } from "node:stream";

const PASTE_BEGINS = "\x1b[200~";
const PASTE_ENDS = "\x1b[201~";
const ENABLE_PASTE = "\x1b[?2004h";
const DISABLE_PASTE = "\x1b[?2004l";
const CTRL_C = "\x03";
/** Stands for a newline within the line that is edited. */
const NEWLINE = "\u2424";
const HISTORY_SIZE = 1000;

/**
 * What lies between the keyboard and the line editor. Newlines within a bracketed paste become NEWLINE, so that they
 * do not send the message; while an answer is written, keys wait and only Ctrl-C gets through, as an event.
 */
export class KeyFilter extends Transform {
  readonly isTTY = true;
  /** Called on Ctrl-C while `busy`. */
  onInterrupt: () => void = () => {};
  private pasting = false;
  private pending = "";
  private held = "";
  private waiting = false;

  constructor(private readonly setRaw: (raw: boolean) => void = () => {}) {
    super({ decodeStrings: false, encoding: "utf8" });
  }

  /** The line editor calls this on its input. */
  setRawMode(raw: boolean): this {
    this.setRaw(raw);
    return this;
  }

  /** While busy, keys are kept for the next line. */
  set busy(busy: boolean) {
    this.waiting = busy;
    if (busy) return;
    const held = this.held;
    this.held = "";
    if (held !== "") this.push(held);
  }

  override _transform(chunk: string | Buffer, _encoding: string, done: () => void): void {
    const text = this.translate(this.pending + chunk.toString());
    if (this.waiting) {
      if (text.includes(CTRL_C)) {
        this.held = "";
        this.onInterrupt();
      } else this.held += text;
    } else if (text !== "") this.push(text);
    done();
  }

  private translate(text: string): string {
    let result = "";
    let rest = text;
    for (;;) {
      const marker = this.pasting ? PASTE_ENDS : PASTE_BEGINS;
      const at = rest.indexOf(marker);
      const piece = at < 0 ? rest : rest.slice(0, at);
      if (at < 0) {
        // A marker may be cut in two by the chunk's end; outside a paste a lone escape is a key.
        this.pending = partialMarker(piece, marker, this.pasting ? 1 : 2);
        const whole = piece.slice(0, piece.length - this.pending.length);
        return result + (this.pasting ? protect(whole) : whole);
      }
      result += this.pasting ? protect(piece) : piece;
      this.pasting = !this.pasting;
      rest = rest.slice(at + marker.length);
    }
  }
}

function protect(pasted: string): string {
  return pasted.replace(/\r\n|\r|\n/g, NEWLINE).replace(/\t/g, "    ");
}

function partialMarker(text: string, marker: string, shortest: number): string {
  for (let length = Math.min(marker.length - 1, text.length); length >= shortest; length--) {
    const tail = text.slice(-length);
    if (marker.startsWith(tail)) return tail;
  }
  return "";
}

/** Lines of a conversation, from a terminal. */
export class Terminal {
  private readonly filter = new KeyFilter((raw) => process.stdin.setRawMode(raw));
  private readonly editor: Interface;
  /** Messages that came before anyone read them; null: the user leaves. */
  private readonly lines: (string | null)[] = [];
  private waiter: ((line: string | null) => void) | null = null;
  private interrupted = false;
  private readonly historyFile = join(
    process.env.XDG_STATE_HOME || join(homedir(), ".local", "state"),
    "minisgl",
    "history",
  );

  constructor(prompt: string) {
    process.stdin.setEncoding("utf8");
    process.stdin.pipe(this.filter);
    process.stdout.write(ENABLE_PASTE);
    this.editor = createInterface({
      input: this.filter,
      output: process.stdout,
      terminal: true,
      prompt,
      history: this.readHistory(),
      historySize: HISTORY_SIZE,
      removeHistoryDuplicates: true,
    });
    this.editor.on("line", (line) => {
      if (line.trim() !== "") this.remember(line);
      this.deliver(line.replaceAll(NEWLINE, "\n"));
    });
    this.editor.on("close", () => {
      // Ctrl-D leaves the cursor behind the prompt.
      if (this.waiter !== null) process.stdout.write("\n");
      this.deliver(null);
    });
    this.editor.on("SIGINT", () => this.interrupt());
    // Ctrl-Z does nothing: after a stop and `fg` the line editor would not get the terminal back.
    this.editor.on("SIGTSTP", () => {});
  }

  /** The next message; null when the user leaves (Ctrl-D, or Ctrl-C twice at an empty prompt). */
  read(): Promise<string | null> {
    this.interrupted = false;
    return new Promise((resolve) => {
      this.waiter = resolve;
      const line = this.lines.shift();
      if (line !== undefined) this.deliver(line);
      else this.editor.prompt();
    });
  }

  private deliver(line: string | null): void {
    const { waiter } = this;
    this.waiter = null;
    if (waiter === null) this.lines.push(line);
    else waiter(line);
  }

  private interrupt(): void {
    const { editor } = this;
    if (this.interrupted && editor.line === "") {
      process.stdout.write("\n");
      this.deliver(null);
      return;
    }
    this.interrupted = editor.line === "";
    process.stdout.write(this.interrupted ? "\n(Ctrl-C again or Ctrl-D leaves)\n" : "\n");
    // Takes back what was typed: to the end of the line, then delete to its beginning.
    editor.write(null, { ctrl: true, name: "e" });
    editor.write(null, { ctrl: true, name: "u" });
    editor.prompt();
  }

  /** Runs `work`; Ctrl-C meanwhile aborts the signal it gets. */
  async interruptible(work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    const abort = new AbortController();
    this.filter.onInterrupt = () => abort.abort();
    this.filter.busy = true;
    try {
      await work(abort.signal);
    } finally {
      this.filter.busy = false;
    }
  }

  close(): void {
    process.stdin.unpipe(this.filter);
    this.editor.close();
    process.stdout.write(DISABLE_PASTE);
    process.stdin.setRawMode(false);
    process.stdin.pause();
  }

  private readHistory(): string[] {
    try {
      return readFileSync(this.historyFile, "utf8").split("\n").filter(Boolean).slice(-HISTORY_SIZE).reverse();
    } catch {
      return [];
    }
  }

  private remember(line: string): void {
    try {
      mkdirSync(dirname(this.historyFile), { recursive: true, mode: 0o700 });
      appendFileSync(this.historyFile, `${line}\n`, { mode: 0o600 });
    } catch {
      // Without a place to write, the history lasts as long as the program.
    }
  }
}
