/** What a host has: processor, memory, GPUs, and the libraries that this build has and that it finds. */
import { Device, type DeviceProperties } from "../native/device.ts";
import { libraries } from "../native/libraries.generated.ts";
import { deviceCount, type Foundation, foundations, openLibrary } from "../native/library.ts";

export interface HostReport {
  /** Null where this build has no CPU library. */
  cpu: DeviceProperties | null;
  gpus: DeviceProperties[];
  /** Libraries embedded in this build: cuda, cpu, null. */
  embedded: string[];
  /** What they stand on. */
  libraries: Foundation[];
  /** What is wrong, in words: why there is no GPU, or why one cannot be used. */
  notes: string[];
}

export function inspectHost(): HostReport {
  const embedded = (["cuda", "cpu", "null"] as const).filter((kind) => libraries[kind] !== undefined);
  const report: HostReport = { cpu: null, gpus: [], embedded, libraries: [], notes: [] };
  for (const kind of ["cuda", "cpu"] as const) {
    const path = libraries[kind];
    if (path === undefined) {
      report.notes.push(`this build has no ${kind} library`);
      continue;
    }
    const library = openLibrary(path);
    report.libraries.push(...foundations(library));
    const count = deviceCount(library);
    if (count === 0) report.notes.push("no GPU answers; what is missing stands with the libraries above");
    for (let index = 0; index < count; index++) {
      try {
        const device = new Device(library, index);
        const properties = device.properties();
        device.close();
        if (kind === "cpu") report.cpu = properties;
        else report.gpus.push(properties);
      } catch (error) {
        report.notes.push(`${kind} device ${index}: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
  }
  return report;
}

const gibibytes = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;
const memory = ({ totalMemory, freeMemory }: DeviceProperties) =>
  `${gibibytes(totalMemory)} memory, ${gibibytes(freeMemory)} free`;

/** The report as lines for people. */
export function formatHost({ cpu, gpus, embedded, libraries, notes }: HostReport): string {
  const rows: [string, string][] = [];
  if (cpu !== null) rows.push(["CPU", `${cpu.name}, ${cpu.computeUnits} threads, ${memory(cpu)}`]);
  gpus.forEach((gpu, index) => {
    const capability = `compute capability ${Math.floor(gpu.capability / 10)}.${gpu.capability % 10}`;
    rows.push([`GPU ${index}`, `${gpu.name}, ${gpu.computeUnits} multiprocessors, ${capability}, ${memory(gpu)}`]);
  });
  rows.push(["embedded", `the libraries ${embedded.join(", ")}`]);
  for (const { name, version, where } of libraries) rows.push([name, version === "" ? where : `${version}, ${where}`]);
  for (const note of notes) rows.push(["note", note]);
  const width = Math.max(...rows.map(([name]) => name.length));
  return rows.map(([name, text]) => `${name.padEnd(width)}  ${text}\n`).join("");
}
