import type { EngineInfo } from "../message/types.ts";
import type { Plot } from "./plot.ts";
import type { Limits } from "./roofline.ts";

/** A figure of a report. */
export interface Figure {
  /** Key in the JSON, in snake case with the unit last. */
  key: string;
  label: string;
  value: number;
  unit: string;
  digits?: number;
  /** What it has to be, where there is a target: "<=" or ">=" of it. */
  target?: { comparison: "<=" | ">="; value: number };
}

export interface Group {
  name: string;
  figures: Figure[];
  /** Figures of one unit that stand in a line. */
  inline?: boolean;
}

export interface Report {
  benchmark: string;
  /** What was run, in words. */
  description: string;
  model: EngineInfo | null;
  /** What the device was measured to reach; null where that was not asked. */
  limits: Limits | null;
  /** A group of figures each, with what distinguishes it ("batch 8"); one group with no name where there is one. */
  groups: Group[];
  /** What failed, by reason, and how often. */
  errors?: Record<string, number>;
  plots: Plot[];
}

/** True where every figure that has a target meets it. */
export function passes(report: Report): boolean {
  return report.groups.every(({ figures }) => figures.every((figure) => meets(figure) !== false));
}

function meets({ value, target }: Figure): boolean | null {
  if (target === undefined) return null;
  return target.comparison === "<=" ? value <= target.value : value >= target.value;
}

/** The report as a table for people. */
export function formatReport(report: Report): string {
  const lines = [`${report.benchmark}: ${report.description}`];
  if (report.model !== null) {
    const { model, dtype, device, library } = report.model;
    lines.push(`${model}, ${dtype}, ${device} (${library})`);
  }
  if (report.limits !== null) {
    const { bandwidth, matrixRate } = report.limits;
    lines.push(`limits: ${(bandwidth / 1e9).toFixed(1)} GB/s read, ${(matrixRate / 1e12).toPrecision(3)} TFLOP/s`);
  }
  const rows = report.groups
    .filter(({ inline }) => inline !== true)
    .flatMap(({ name, figures }) =>
      figures.map((figure, index) => ({ name: index === 0 ? name : "", figure, text: formatValue(figure) })),
    );
  const width = (pick: (row: (typeof rows)[number]) => string) => Math.max(0, ...rows.map((row) => pick(row).length));
  const names = width(({ name }) => name);
  const labels = width(({ figure }) => figure.label);
  const values = width(({ text }) => text);
  for (const { name, figure, text } of rows) {
    const head = names > 0 ? `${name.padEnd(names)}  ` : "";
    lines.push(`  ${head}${figure.label.padEnd(labels)}  ${text.padStart(values)} ${figure.unit}${verdict(figure)}`);
  }
  lines.push(...inlineRows(report.groups.filter(({ inline }) => inline === true)));
  for (const [reason, count] of Object.entries(report.errors ?? {})) lines.push(`  ${count} times: ${reason}`);
  return `${lines.join("\n")}\n`;
}

/** A line a group, with their figures below each other. */
function inlineRows(groups: readonly Group[]): string[] {
  const names = Math.max(0, ...groups.map(({ name }) => name.length));
  const values = Math.max(0, ...groups.flatMap(({ figures }) => figures.map((figure) => formatValue(figure).length)));
  return groups.map(({ name, figures }) => {
    const columns = figures.map((figure) => `${figure.label} ${formatValue(figure).padStart(values)}`);
    return `  ${name.padEnd(names)}  ${columns.join("  ")} ${figures[0].unit}`;
  });
}

function formatValue({ value, digits = 1 }: Figure): string {
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function verdict(figure: Figure): string {
  const met = meets(figure);
  if (met === null) return "";
  const { comparison, value } = figure.target as NonNullable<Figure["target"]>;
  return `   ${met ? "pass" : "FAIL"} (${comparison} ${value.toLocaleString("en-US")})`;
}

/** The report as data: figures by key, groups under their names. */
export function reportJson(report: Report): Record<string, unknown> {
  const { benchmark, description, model, limits, errors } = report;
  const results = report.groups.map(({ name, figures }) => ({
    ...(name === "" ? {} : { name }),
    ...Object.fromEntries(figures.map(({ key, value }) => [key, Number.isFinite(value) ? value : null])),
  }));
  const date = new Date().toISOString();
  return { benchmark, description, date, model, limits, passed: passes(report), results, errors };
}
