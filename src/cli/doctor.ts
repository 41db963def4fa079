/** `minisgl doctor`: what the host has, and whether every op computes on it what it should. */
import { writeFileSync } from "node:fs";
import type { Command } from "commander";
import packageJson from "../../package.json" with { type: "json" };
import { checkedOps, examine, type Finding, formatFinding } from "../doctor/doctor.ts";
import { formatHost, inspectHost } from "../doctor/host.ts";
import { type DeviceKind, openDevice, unpackLibraries } from "../native/open-device.ts";
import { openPortable } from "../native/portable.ts";
import { checkWritable } from "./bench-output.ts";
import { UserError } from "./errors.ts";
import { choice, integer } from "./values.ts";

interface DoctorFlags {
  device: DeviceKind | "auto";
  threads: number;
  ops?: string[];
  json?: string;
  unpack?: string;
}

/** Adds `doctor`. */
export function addDoctor(program: Command): void {
  program
    .command("doctor")
    .description("show what this host has, and check every op of the device; exit code 1 if one fails")
    .option("--device <name>", "auto, cuda, cpu, or null", choice(["auto", "cuda", "cpu", "null"]), "auto")
    .option("--threads <n>", "CPU threads that compute; 0: all cores", integer(0, 1024), 0)
    .option("--ops <name,...>", "check these alone, by the names that the report has", (text: string) =>
      text.split(","),
    )
    .option("--json <file>", "also write all of it to a file")
    .option("--unpack <folder>", "only write the native libraries there, for tests and profilers")
    .action((flags: DoctorFlags) => (flags.unpack === undefined ? runDoctor(flags) : unpackLibraries(flags.unpack)));
}

function runDoctor({ device: asked, threads, ops, json }: DoctorFlags): void {
  if (json !== undefined) checkWritable(json, "the report");
  const { version } = packageJson;
  const host = inspectHost();
  process.stdout.write(`minisgl ${version}\n${formatHost(host)}\n`);
  const { device, kind } = openDevice(asked, threads);
  const known = checkedOps(device);
  const unknown = ops?.filter((op) => !known.has(op)) ?? [];
  if (unknown.length > 0) {
    throw new UserError(`there is no check of ${unknown.join(", ")}; there are those of ${[...known].join(", ")}`);
  }
  // A CPU is compared with itself, its vector instructions with plain ones.
  const reference = kind === "cuda" ? openDevice("cpu", threads).device : openPortable(threads);
  const [name, against] = [device, reference].map((one) => `${one.properties().name}, ${one.properties().library}`);
  process.stdout.write(`Checking ${name}\nagainst  ${against}\n`);
  if (name === against)
    process.stdout.write(
      "Both are the same code: this finds only what fails now and then, and ops with a known result\n",
    );
  const findings: Finding[] = [];
  for (const finding of examine(device, reference, ops)) {
    findings.push(finding);
    process.stdout.write(`${formatFinding(finding)}\n`);
  }
  device.close();
  reference.close();
  const failed = findings.filter(({ ok }) => !ok).length;
  process.stdout.write(`${findings.length} checks, ${failed} failed\n`);
  const report = { version, date: new Date().toISOString(), host, device: name, reference: against, findings };
  if (json !== undefined) writeFileSync(json, `${JSON.stringify({ ...report, passed: failed === 0 }, null, 2)}\n`);
  if (failed > 0) process.exitCode = 1;
}
