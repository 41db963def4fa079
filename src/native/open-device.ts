import { join } from "node:path";
import { loadAlgorithms } from "./algorithms.ts";
import { Device } from "./device.ts";
import { libraries } from "./libraries.generated.ts";
import { deviceCount, NativeError, openLibrary } from "./library.ts";

export type DeviceKind = "cuda" | "cpu" | "null";

/**
 * Opens a device of this kind with the library that was built for it; "auto" takes CUDA if a GPU answers, else the CPU.
 * @throws NativeError where this executable has no such library or the host no such device.
 */
export function openDevice(kind: DeviceKind | "auto", threads: number): { device: Device; kind: DeviceKind } {
  if (kind === "auto") return openDevice(gpuAnswers() ? "cuda" : "cpu", threads);
  const path = libraries[kind];
  if (!path) throw new NativeError(`this build has no ${kind} library; see the README on building with nvcc`);
  const library = openLibrary(path);
  if (deviceCount(library) === 0) {
    throw new NativeError(`no ${kind} device answers: is the driver installed and loaded? --device cpu runs without`);
  }
  const device = new Device(library, 0, threads);
  if (kind === "cuda") loadAlgorithms(device);
  return { device, kind };
}

function gpuAnswers(): boolean {
  return libraries.cuda !== undefined && deviceCount(openLibrary(libraries.cuda)) > 0;
}

/** Writes the libraries within this executable to a folder, under the names that the Makefile gives them. */
export async function unpackLibraries(folder: string): Promise<void> {
  for (const [kind, path] of Object.entries(libraries)) {
    if (path === undefined) continue;
    const name = kind === "cuda" ? "libminisgl.so" : `libminisgl-${kind}.so`;
    await Bun.write(join(folder, name), Bun.file(path));
  }
}
