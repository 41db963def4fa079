import { join } from "node:path";
import { loadAlgorithms } from "./algorithms.ts";
import { Device } from "./device.ts";
import { libraries } from "./libraries.generated.ts";
import { deviceCount, type Foundation, foundations, NativeError, openLibrary } from "./library.ts";

export type DeviceKind = "cuda" | "cpu" | "null";

export interface OpenedDevice {
  device: Device;
  kind: DeviceKind;
  /** Why it is not the GPU that this host seems to have. */
  warning?: string;
}

/**
 * Opens a device of this kind with the library that was built for it; "auto" takes CUDA if a GPU answers, else the CPU.
 * @throws NativeError where this executable has no such library or the host no such device.
 */
export function openDevice(kind: DeviceKind | "auto", threads: number): OpenedDevice {
  if (kind === "auto") return openAny(threads);
  const path = libraries[kind];
  if (!path) throw new NativeError(`this build has no ${kind} library; see the README on building with nvcc`);
  const library = openLibrary(path);
  if (deviceCount(library) === 0) {
    const problem = driverProblem(foundations(library));
    const reason = problem === null ? "is the driver installed and loaded?" : `${problem};`;
    throw new NativeError(`no ${kind} device answers: ${reason} --device cpu runs without`);
  }
  const device = new Device(library, 0, threads);
  if (kind === "cuda") loadAlgorithms(device);
  return { device, kind };
}

function openAny(threads: number): OpenedDevice {
  if (libraries.cuda === undefined) return openDevice("cpu", threads);
  const library = openLibrary(libraries.cuda);
  if (deviceCount(library) > 0) return openDevice("cuda", threads);
  const problem = driverProblem(foundations(library));
  const opened = openDevice("cpu", threads);
  if (problem === null || problem === NO_GPU) return opened;
  return { ...opened, warning: `computing on the CPU, since no GPU answers: ${problem}` };
}

/** What a driver says on a host that has none of its devices; see libraries.cu. */
const NO_GPU = "the driver has no GPU";

/** Why the driver that is there gives no device; null where there is no driver. */
function driverProblem(found: readonly Foundation[]): string | null {
  const driver = found.find(({ name }) => name === "libcuda");
  return driver === undefined || driver.version !== "" || driver.where.startsWith("not found") ? null : driver.where;
}

/** Writes the libraries within this executable to a folder, under the names that the Makefile gives them. */
export async function unpackLibraries(folder: string): Promise<void> {
  for (const [kind, path] of Object.entries(libraries)) {
    if (path === undefined) continue;
    const name = kind === "cuda" ? "libminisgl.so" : `libminisgl-${kind}.so`;
    await Bun.write(join(folder, name), Bun.file(path));
  }
}
