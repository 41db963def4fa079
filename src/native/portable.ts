import { dlopen, ptr } from "bun:ffi";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Device } from "./device.ts";
import { libraries } from "./libraries.generated.ts";
import { NativeError, openLibrary } from "./library.ts";

const text = (value: string) => ptr(Buffer.from(`${value}\0`));

/**
 * The CPU with the portable instruction set, whatever this machine has, to compare its own with. The library chooses
 * once, from the environment that C sees (process.env is Bun's copy), so this is a second copy of it.
 * @throws NativeError where this build has no CPU library.
 */
export function openPortable(threads: number): Device {
  if (!libraries.cpu) throw new NativeError("this build has no cpu library");
  const folder = mkdtempSync(join(tmpdir(), "minisgl-portable-"));
  const { setenv, unsetenv } = dlopen("libc.so.6", {
    setenv: { args: ["ptr", "ptr", "i32"], returns: "i32" },
    unsetenv: { args: ["ptr"], returns: "i32" },
  }).symbols;
  const name = text("MINISGL_ISA");
  try {
    const copy = join(folder, "libminisgl-cpu.so");
    writeFileSync(copy, readFileSync(libraries.cpu));
    const library = openLibrary(copy);
    setenv(name, text("portable"), 1);
    const device = new Device(library, 0, threads);
    device.properties(); // names the instruction set, and so chooses it
    return device;
  } finally {
    const before = process.env.MINISGL_ISA;
    if (before === undefined) unsetenv(name);
    else setenv(name, text(before), 1);
    rmSync(folder, { recursive: true });
  }
}
