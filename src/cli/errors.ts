/** How the program ends when something is wrong: one line on standard error, exit code 1. */

import { readFileSync } from "node:fs";

/** What the user can change; its message is the whole story. */
export class UserError extends Error {}

/** The error as one line; with MINISGL_DEBUG=1 its stack as well. */
export function describe(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const line = error.message.trim().replace(/\s*\n\s*/g, " ") || error.name;
  return process.env.MINISGL_DEBUG === "1" && error.stack !== undefined ? `${line}\n${error.stack}` : line;
}

/** The text of the file that is `what`. @throws UserError where it cannot be read */
export function readText(what: string, file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw new UserError(`cannot read ${what} ${file}: ${(error as Error).message}`);
  }
}

let report = (message: string): void => {
  process.stderr.write(`minisgl: ${message}\n`);
};

/** What fail() tells goes there instead: for a log with a form of its own. */
export function reportFailuresTo(write: (message: string) => void): void {
  report = write;
}

/** Prints the error as `minisgl: ...` and ends the process with code 1. */
export function fail(error: unknown): never {
  report(describe(error));
  process.exit(1);
}
