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

const toStandardStreams: LogWriter = (line, level) => {
  const stream = level === "warning" || level === "error" ? process.stderr : process.stdout;
  stream.write(line);
};

/**
 * A log of `least` and above.
 * text: `minisgl: message key=value ...`, values quoted as JSON strings where they have spaces or quotes.
 * json: `{"time": ISO 8601, "level", "message", ...fields}`.
 */
export function createLog(least: LogLevel, format: LogFormat, write: LogWriter = toStandardStreams): Log {
  return (level, message, fields = {}) => {
    if (LOG_LEVELS.indexOf(level) < LOG_LEVELS.indexOf(least)) return;
    write(`${format === "json" ? jsonLine(level, message, fields) : textLine(message, fields)}\n`, level);
  };
}

/** Tells nobody. */
export const silent: Log = () => {};

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
