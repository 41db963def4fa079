/** The server's log: a line an event, as text or as JSON; warnings and errors go to standard error. */

export const LOG_LEVELS = ["debug", "info", "warning", "error"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export type LogFormat = "text" | "json";

/** What a line tells beside its message; undefined is left out. */
export type LogFields = Record<string, string | number | boolean | undefined>;

/** Writes one line, unless its level is below the log's. */
export type Log = (level: LogLevel, message: string, fields?: LogFields) => void;

/** Where lines go, newline included. */
export type LogWriter = (line: string, level: LogLevel) => void;

/** Characters that wait for a stream's reader at most. */
const PATIENCE = 1 << 20;

/** Writes to a stream whose reader may fall behind: what it does not take is lost and counted, not kept. */
export class LossyWriter {
  private waiting = 0;
  private lost = 0;

  /** @param lossOf The line that tells how many were lost. */
  constructor(
    private readonly stream: NodeJS.WritableStream,
    lossOf: (lines: number) => string,
  ) {
    stream.on("drain", () => {
      this.waiting = 0;
      if (this.lost === 0) return;
      const { lost } = this;
      this.lost = 0;
      this.write(lossOf(lost));
    });
  }

  write(line: string): void {
    if (this.waiting > PATIENCE) this.lost++;
    else if (!this.stream.write(line)) this.waiting += line.length;
  }
}

/** Warnings and errors to standard error, the rest to standard output. */
function standardStreams(format: LogFormat): LogWriter {
  const lossOf = (lines: number) =>
    formatLine(format, "warning", `${lines} lines of the log were lost: its reader was too slow`, {});
  const [output, error] = [new LossyWriter(process.stdout, lossOf), new LossyWriter(process.stderr, lossOf)];
  return (line, level) => (level === "warning" || level === "error" ? error : output).write(line);
}

/**
 * A log of `least` and above.
 * text: `minisgl: message key=value ...`, values quoted as JSON strings where they have spaces or quotes.
 * json: `{"time": ISO 8601, "level", "message", ...fields}`.
 */
export function createLog(least: LogLevel, format: LogFormat, write: LogWriter = standardStreams(format)): Log {
  return (level, message, fields = {}) => {
    if (LOG_LEVELS.indexOf(level) < LOG_LEVELS.indexOf(least)) return;
    write(formatLine(format, level, message, fields), level);
  };
}

function formatLine(format: LogFormat, level: LogLevel, message: string, fields: LogFields): string {
  return `${format === "json" ? jsonLine(level, message, fields) : textLine(message, fields)}\n`;
}

function jsonLine(level: LogLevel, message: string, fields: LogFields): string {
  return JSON.stringify({ time: new Date().toISOString(), level, message, ...fields });
}

function textLine(message: string, fields: LogFields): string {
  let line = `minisgl: ${message}`;
  for (const [key, value] of Object.entries(fields)) {
    if (value === undefined) continue;
    const text = String(value);
    line += ` ${key}=${/^[!#-<>-[\]-~\xa1-\uffff]+$/.test(text) ? text : JSON.stringify(text)}`;
  }
  return line;
}
