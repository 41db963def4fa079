/** The doctor: a sound library passes, and every defect that is planted is found at the op that has it. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checksFor } from "../../src/doctor/checks.ts";
import { errorOf, examine } from "../../src/doctor/doctor.ts";
import { inspectHost } from "../../src/doctor/host.ts";
import { type Check, Lab } from "../../src/doctor/lab.ts";
import { Device } from "../../src/native/device.ts";
import type { Library } from "../../src/native/library.ts";
import { openDevice } from "../../src/native/open-device.ts";
import { openPortable } from "../../src/native/portable.ts";
import { DType } from "../../src/native/tensor.ts";

const { device } = openDevice("cpu", 0);
const reference = openPortable(0);
afterAll(() => {
  device.close();
  reference.close();
});

test("the reference computes with the portable instruction set, whatever the machine has", () => {
  expect(reference.properties().library).toContain("portable");
});

test("a sound library passes every check", () => {
  const findings = [...examine(device, reference)];
  expect(findings.filter(({ ok }) => !ok)).toEqual([]);
  expect(findings.every(({ microseconds }) => (microseconds as number) > 0)).toBe(true);
  const ops = new Set(findings.map(({ op }) => op));
  expect(defects.map(([op]) => op).filter((op) => !ops.has(op))).toEqual([]);
}, 240_000);

test("the CPU can be the reference of what a GPU is asked", () => {
  const gpu = { ...device.properties(), floatActivations: false, capability: 90 };
  const quick = ({ op, shape }: Check) => op !== "sample" && !/^(300|64|chunk|prefill)/.test(shape);
  const checks = checksFor(gpu, DType.BF16).filter(quick);
  expect(checks.some(({ shape }) => shape.endsWith(", fi"))).toBe(true);
  for (const check of checks) {
    const lab = new Lab(device, DType.BF16);
    check.prepare(lab).run();
    device.synchronize();
    lab.close();
  }
}, 60_000);

type Arguments = (number | null)[];
type Call = (...args: Arguments) => number;
const changed = (index: number, change: (value: number) => number | null) => (call: Call, args: Arguments) =>
  call(...args.map((value, i) => (i === index ? change(Number(value)) : value)));
const fewer = (index: number) => changed(index, (value) => value - 1);
const nothing = () => 0;

/** The CPU with a function of its library replaced. */
function withFunction(symbol: keyof Library, replacement: Call): Device {
  return new Device({ ...device.library, [symbol]: replacement } as unknown as Library, 0, 0);
}

/** What is wrong with a function of the library: an argument that it takes for another, or that it does nothing. */
const defects: [op: string, symbol: keyof Library, body: (call: Call, args: Arguments) => number][] = [
  ["copy_fill", "msgl_copy", changed(3, (bytes) => bytes - 4)],
  ["copy_fill", "msgl_fill", changed(2, (value) => value + 1)],
  ["random", "msgl_random", changed(4, (seed) => seed + 1)],
  ["load", "msgl_weight_load", changed(5, (offset) => offset + 2)],
  ["load", "msgl_load", changed(4, (offset) => offset + 4)],
  ["table_write", "msgl_table_write", changed(4, (count) => count - 2)],
  ["expand", "msgl_expand", fewer(12)],
  ["embedding", "msgl_embedding", fewer(4)],
  ["linear", "msgl_linear", changed(4, () => null)],
  ["linear", "msgl_linear", changed(5, (tokens) => Math.max(1, tokens - 1))],
  ["rms_norm", "msgl_rms_norm", changed(6, () => 1e-3)],
  ["add_rms_norm", "msgl_add_rms_norm", changed(7, () => 1e-3)],
  ["silu_mul", "msgl_silu_mul", fewer(3)],
  ["gather", "msgl_gather", fewer(4)],
  ["rotary_store", "msgl_rotary_store", changed(14, (dim) => dim - 32)],
  ["rotary_store", "msgl_rotary_store", changed(15, () => 0.01)],
  ["attention", "msgl_attention", changed(11, (scale) => scale * 1.001)],
  ["logit_bias", "msgl_logit_bias", fewer(3)],
  ["penalize", "msgl_penalize", fewer(5)],
  ["penalize", "msgl_penalize", fewer(7)],
  ["logprobs", "msgl_logprobs", fewer(8)],
  ["sample", "msgl_sample", fewer(5)],
  ["sample", "msgl_sample", changed(7, (stride) => stride + 1)],
  ["graph", "msgl_graph_launch", nothing],
  ["event", "msgl_event_record", nothing],
];

test.each(defects)("a defect of %s in %s is found", (op, symbol, body) => {
  const sound = device.library[symbol] as unknown as Call;
  const defective = withFunction(symbol, (...args) => body(sound, args));
  const found = [];
  for (const finding of examine(defective, reference, [op])) {
    if (!finding.ok) found.push(finding.op);
    if (found.length > 0) break;
  }
  expect(found).toEqual([op]);
  defective.close();
});

test("an error that the library reports is a finding, and the next checks are made", () => {
  const defective = withFunction("msgl_gather", () => device.library.msgl_capture_end(device.handle, null));
  const findings = [...examine(defective, reference, ["gather", "table_write"])];
  expect(findings.map(({ op, ok }) => [op, ok])).toEqual([
    ["table_write", true],
    ["gather", false],
  ]);
  defective.close();
});

test("errors are measured a row, relative to it", () => {
  const result = { values: () => [], width: 2 };
  expect(errorOf([3, 4, 300, 400], [3, 4, 300, 405], { ...result, bound: 1 })).toBeCloseTo(5 / Math.hypot(300, 405));
  expect(errorOf([1, 2, 3, 4], [1, 2, 3, 5], { ...result, bound: 0 })).toBe(0.25);
  expect(errorOf([0, Number.NaN], [0, 1], { ...result, bound: 1 })).toBe(Number.POSITIVE_INFINITY);
  expect(errorOf([0, 1e-9], [0, 0], { ...result, bound: 1 })).toBe(Number.POSITIVE_INFINITY);
  expect(errorOf([1], [1, 2], { ...result, bound: 0 })).toBe(Number.POSITIVE_INFINITY);
});

test("the host's report has what the machine has", () => {
  const { cpu, gpus, embedded, libraries, notes } = inspectHost();
  expect(cpu?.totalMemory).toBeGreaterThan(2 ** 28);
  expect(embedded).toContain("cpu");
  expect(libraries.find(({ name }) => name === "instruction set")?.version).toMatch(/^(portable|avx2|avx512)$/);
  if (gpus.length === 0) expect(notes.join()).toMatch(/no GPU answers|no cuda library/);
});

describe("minisgl doctor", () => {
  const folder = mkdtempSync(join(tmpdir(), "minisgl-doctor-test-"));
  afterAll(() => rmSync(folder, { recursive: true }));
  const doctor = (...args: string[]) => {
    const main = join(import.meta.dir, "../../src/main.ts");
    const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, main, "doctor", ...args]);
    return { exitCode, out: stdout.toString(), err: stderr.toString() };
  };

  test("prints the host and a line a check, writes them as JSON, and exits with 0", () => {
    const file = join(folder, "doctor.json");
    const { exitCode, out, err } = doctor("--device", "cpu", "--ops", "gather,table_write", "--json", file);
    expect(err).toBe("");
    expect(out).toMatch(/^minisgl \d/);
    expect(out).toMatch(/CPU +.+ memory/);
    expect(out).toMatch(/ok +gather +float32 +5 of \[64, 1024\] +[\d.]+ us/);
    expect(out).toContain("2 checks, 0 failed");
    expect(exitCode).toBe(0);
    const { passed, findings, host } = JSON.parse(readFileSync(file, "utf8"));
    expect([passed, findings.length, host.embedded.includes("cpu")]).toEqual([true, 2, true]);
  });

  test("says FAIL and exits with 1 where the library does not compute", () => {
    const { exitCode, out } = doctor("--device", "null", "--ops", "gather,rms_norm");
    expect(out).toMatch(/FAIL +gather +bfloat16/);
    expect(out).toMatch(/FAIL +rms_norm +float16/);
    expect(exitCode).toBe(1);
  });

  test("refuses ops that it has no check of", () => {
    const { exitCode, err } = doctor("--device", "cpu", "--ops", "gather,softmax");
    expect(err).toContain("softmax");
    expect(exitCode).toBe(1);
  });
});
