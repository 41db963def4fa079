/**
 * The doctor room: what an operator runs first on a new host. Read host.ts (what the host has), then this file (how a
 * check is judged), checks.ts (the table of checks, more of
 * them in memory-checks.ts, attention-checks.ts and logits-checks.ts), lab.ts and batch.ts (what they stand on).
 */
import type { Device, DeviceProperties } from "../native/device.ts";
import { DType } from "../native/tensor.ts";
import { checksFor } from "./checks.ts";
import { type Check, Lab, type Prepared, type Result } from "./lab.ts";

/** A check that was made. */
export interface Finding {
  op: string;
  shape: string;
  /** Of the model, as checkpoints name it. */
  dtype: string;
  /** Median time of the op; null where it did not run. */
  microseconds: number | null;
  /** Relative to the expected row of values, or, where all must be the same, the share of those that differ. */
  error: number;
  bound: number;
  ok: boolean;
  /** What the library reported. */
  failure?: string;
}

const REPEATS = 5;

/** The types that a device is checked in: a device that computes in float32 in that, others in each that they compute in. */
function modelTypes(properties: DeviceProperties): [name: string, dtype: DType][] {
  const models = properties.floatActivations ? { float32: DType.F32 } : { bfloat16: DType.BF16, float16: DType.F16 };
  return Object.entries(models).filter(([, dtype]) => properties.computes(dtype));
}

/** Names of the ops that examine() checks on a device. */
export function checkedOps(device: Device): Set<string> {
  const properties = device.properties();
  return new Set(modelTypes(properties).flatMap(([, model]) => checksFor(properties, model).map(({ op }) => op)));
}

/**
 * Checks every op of `device` against `reference`, which gets the same input; one after the other, as they are asked
 * for. only: of these ops.
 */
export function* examine(device: Device, reference: Device, only?: readonly string[]): Generator<Finding> {
  const properties = device.properties();
  for (const [dtype, model] of modelTypes(properties)) {
    for (const check of checksFor(properties, model)) {
      if (only === undefined || only.includes(check.op))
        yield { ...examineOne(check, device, reference, model), dtype };
    }
  }
}

function examineOne(check: Check, device: Device, reference: Device, model: DType): Omit<Finding, "dtype"> {
  const labs = [device, reference].map((on) => new Lab(on, model)) as [Lab, Lab];
  const { op, shape } = check;
  const failed = (cause: unknown) => {
    const failure = cause instanceof Error ? cause.message : String(cause);
    return { op, shape, microseconds: null, error: Number.POSITIVE_INFINITY, bound: 0, ok: false, failure };
  };
  let finding: Omit<Finding, "dtype">;
  try {
    finding = { op, shape, ...judge(check, ...labs) };
  } catch (error) {
    finding = failed(error);
  }
  try {
    for (const lab of labs) lab.close();
  } catch (error) {
    if (finding.ok) finding = failed(error);
  }
  return finding;
}

function judge(check: Check, lab: Lab, referenceLab: Lab) {
  const asked = check.prepare(lab);
  asked.run();
  const values = asked.results.map((result) => result.values());
  let wanted: Prepared | undefined;
  const expectedOf = (result: Result, index: number) => {
    if (result.expected !== undefined) return result.expected;
    if (wanted === undefined) {
      wanted = check.prepare(referenceLab);
      wanted.run();
    }
    return (wanted.results[index] as Result).values();
  };
  const { error, bound } = asked.results
    .map((result, i) => ({ ...result, error: errorOf(values[i] as ArrayLike<number>, expectedOf(result, i), result) }))
    .reduce((worst, one) => (excess(one) > excess(worst) ? one : worst));
  return { microseconds: measure(lab, asked), error, bound, ok: error <= bound };
}

const excess = ({ error, bound }: { error: number; bound: number }) => (bound > 0 ? error / bound : error * 1e9);

/** The largest |a - b| / |b| of a row (Euclidean norms); where the bound is 0, the share of values that differ. */
export function errorOf(actual: ArrayLike<number>, expected: ArrayLike<number>, { width, bound }: Result): number {
  if (actual.length !== expected.length) return Number.POSITIVE_INFINITY;
  let [largest, differing] = [0, 0];
  for (let row = 0; row < expected.length; row += width) {
    let [error, norm] = [0, 0];
    for (let i = row; i < Math.min(row + width, expected.length); i++) {
      const [a, b] = [actual[i] as number, expected[i] as number];
      if (a !== b) differing++;
      error += (a - b) ** 2;
      norm += b ** 2;
    }
    const relative = error === 0 ? 0 : Math.sqrt(error / norm);
    largest = Math.max(largest, Number.isNaN(relative) ? Number.POSITIVE_INFINITY : relative);
  }
  return bound > 0 ? largest : differing / expected.length;
}

/** Median microseconds of a run that was made once before. */
function measure({ device }: Lab, { run, hostTime }: Prepared): number {
  const [begin, end] = [device.event(), device.event()];
  const times = Array.from({ length: REPEATS }, () => {
    const before = Bun.nanoseconds();
    device.record(begin);
    run();
    device.record(end);
    device.wait(end);
    return hostTime ? (Bun.nanoseconds() - before) / 1000 : device.elapsed(begin, end) * 1000;
  });
  for (const event of [begin, end]) device.check(device.library.msgl_event_destroy(device.handle, event));
  return times.sort((a, b) => a - b)[REPEATS >> 1] as number;
}

/** The finding as a line for people. */
export function formatFinding({ op, shape, dtype, microseconds, error, bound, ok, failure }: Finding): string {
  const head = `${ok ? "ok  " : "FAIL"} ${op.padEnd(12)}  ${dtype.padEnd(8)}  ${shape.padEnd(60)}`;
  if (failure !== undefined) return `${head}  ${failure}`;
  const time = `${(microseconds as number).toFixed(1)} us`;
  return `${head}  ${time.padStart(12)}  error ${error.toExponential(1)} of ${bound === 0 ? "0" : bound.toExponential(1)}`;
}
