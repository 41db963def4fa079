/** What the benchmarks print and write. */
import { closeSync, existsSync, openSync, unlinkSync, writeFileSync } from "node:fs";
import { Option } from "commander";
import { plotsSvg } from "../bench/plot.ts";
import { formatReport, passes, type Report, reportJson } from "../bench/report.ts";
import { UserError } from "./errors.ts";

export interface OutputFlags {
  json?: string;
  plot?: string;
}

export const jsonFlag = () => new Option("--json <file>", "also write the figures to a file");
export const plotFlag = () => new Option("--plot <file>", "also draw them as SVG");

/** Finds out before a long run whether its figures can be written. */
export function checkOutputs({ json, plot }: OutputFlags): void {
  for (const path of [json, plot]) if (path !== undefined) checkWritable(path, "the figures");
}

/** Leaves no file behind that was not there. @throws UserError unless a file can be written there */
export function checkWritable(path: string, what: string): void {
  try {
    const isNew = !existsSync(path);
    closeSync(openSync(path, "a"));
    if (isNew) unlinkSync(path);
  } catch (error) {
    throw new UserError(`cannot write ${what}: ${(error as Error).message}`);
  }
}

/** Prints the report; a target that is missed makes the exit code 1. */
export function print(report: Report, { json, plot }: OutputFlags): void {
  process.stdout.write(formatReport(report));
  if (json !== undefined) writeFileSync(json, `${JSON.stringify(reportJson(report), null, 2)}\n`);
  if (plot !== undefined && report.plots.length > 0) writeFileSync(plot, plotsSvg(report.plots));
  if (!passes(report)) process.exitCode = 1;
}

/** The command line that starts this program again: the executable, or Bun with the script it runs. */
export function thisProgram(): string[] {
  return Bun.main.startsWith("/$bunfs/") ? [process.execPath] : [process.execPath, Bun.main];
}
