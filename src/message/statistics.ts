/** The scheduler's figures in shared memory: it writes them once a step, anyone reads them at any time. */
import { Statistic } from "./types.ts";

export type StatisticName = Exclude<keyof typeof Statistic, "words">;

const NAMES = Object.keys(Statistic).filter((name) => name !== "words") as StatisticName[];

/** A zeroed block; `new Int32Array(buffer)` is indexed by Statistic. */
export function createStatistics(): SharedArrayBuffer {
  return new SharedArrayBuffer(Statistic.words * 4);
}

/** All figures under their names. */
export function readStatistics(block: Int32Array): Record<StatisticName, number> {
  const values = {} as Record<StatisticName, number>;
  for (const name of NAMES) values[name] = Atomics.load(block, Statistic[name]);
  return values;
}
