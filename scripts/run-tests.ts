/**
 * Runs what `make test` promises: type check, lint and every suite that needs no GPU. The last line is
 * "N passed, N failed", and the exit code is 1 if anything failed or a suite ended without a report.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const reports = join(root, "build/reports");
const suites = ["unit", "native", "parity", "e2e"];

let passed = 0;
let failed = 0;
let skipped = 0;

async function run(name: string, command: string[]): Promise<boolean> {
  process.stdout.write(`\n== ${name}\n`);
  const child = Bun.spawn(command, { cwd: root, stdout: "inherit", stderr: "inherit" });
  return (await child.exited) === 0;
}

async function check(name: string, command: string[]): Promise<void> {
  if (await run(name, command)) passed++;
  else failed++;
}

/** The counts of a JUnit report's root element; null if there is none. */
function readReport(path: string): { tests: number; failures: number; skipped: number } | null {
  const header = existsSync(path) ? readFileSync(path, "utf8").match(/<testsuites [^>]*>/)?.[0] : undefined;
  if (header === undefined) return null;
  const count = (name: string) => Number(header.match(new RegExp(` ${name}="(\\d+)"`))?.[1] ?? Number.NaN);
  return { tests: count("tests"), failures: count("failures"), skipped: count("skipped") };
}

async function runSuite(name: string): Promise<void> {
  const directory = join(root, "test", name);
  const has = existsSync(directory) && readdirSync(directory).some((file) => /\.test\.ts$/.test(file));
  if (!has) return;
  const report = join(reports, `${name}.xml`);
  rmSync(report, { force: true });
  const ended = await run(name, [
    process.execPath,
    "test",
    `./test/${name}`,
    "--timeout=300000",
    "--reporter=junit",
    `--reporter-outfile=${report}`,
  ]);
  const counts = readReport(report);
  const failures = counts?.failures ?? 0;
  if (counts !== null) {
    passed += counts.tests - counts.failures - counts.skipped;
    skipped += counts.skipped;
  }
  // A suite that crashes, or throws outside its tests, has failed whatever its report says.
  failed += ended || failures > 0 ? failures : 1;
}

mkdirSync(reports, { recursive: true });
await check("type check", ["node_modules/.bin/tsc", "--noEmit"]);
await check("lint and format", ["node_modules/.bin/biome", "check", "."]);
for (const suite of suites) await runSuite(suite);
process.stdout.write(`\n${skipped > 0 ? `${skipped} skipped\n` : ""}${passed} passed, ${failed} failed\n`);
process.exit(failed > 0 ? 1 : 0);
