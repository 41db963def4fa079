/** Hosts whose CUDA driver or cuBLASLt is not what it should be, played by libraries made here. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { Installation, model } from "./support.ts";

setDefaultTimeout(60_000);
const installation = new Installation();
const folder = (name: string) => join(installation.folder, name);
const built = existsSync(resolve(import.meta.dir, "../../build/libminisgl.so"));
afterAll(() => installation.remove());

/** A driver that gives this status and this version of CUDA. */
function writeDriver(name: string, status: number, version: number): void {
  mkdirSync(folder(name));
  const source = `extern "C" int cuInit(unsigned) { return ${status}; }
    extern "C" int cuDriverGetVersion(int *version) { *version = ${version}; return 0; }`;
  const command = ["g++", "-shared", "-fPIC", "-xc++", "-", "-o", join(folder(name), "libcuda.so.1")];
  const { exitCode, stderr } = Bun.spawnSync(command, { stdin: Buffer.from(source) });
  if (exitCode !== 0) throw new Error(stderr.toString());
}

const run = (libraries: string, ...args: string[]) => {
  const command = [join(installation.folder, "minisgl"), ...args];
  return installation.ended(installation.spawnCommand(command, { LD_LIBRARY_PATH: folder(libraries) }));
};
const answer = ["generate", "--model", model, "--max-tokens", "1", "--temperature", "0", "The"];

describe.skipIf(!built)("with the CUDA library", () => {
  beforeAll(() => {
    writeDriver("old", 0, 12040);
    writeDriver("old-broken", 803, 12040);
    writeDriver("broken", 999, 13000);
    writeDriver("gpuless", 100, 12040);
  });

  test.each([
    ["old", "the driver is for CUDA 12.4, this library needs 13.0"],
    ["old-broken", "the driver is for CUDA 12.4, this library needs 13.0"],
    ["broken", "the driver does not answer: cuInit gives status 999"],
  ])(
    "a driver that is %s is warned of when the CPU takes its place, and the reason why CUDA cannot",
    async (name, why) => {
      const onCpu = await run(name, ...answer);
      expect(onCpu.code).toBe(0);
      expect(onCpu.stderr).toContain(`minisgl: computing on the CPU, since no GPU answers: ${why}\n`);
      const onCuda = await run(name, ...answer, "--device", "cuda");
      expect(onCuda).toMatchObject({ code: 1, stdout: "" });
      expect(onCuda.stderr).toContain(`no cuda device answers: ${why}`);
    },
  );

  test.each(["gpuless", "missing"])("a host whose driver is %s has no GPU to warn of", async (name) => {
    const { code, stderr } = await run(name, ...answer);
    expect(code).toBe(0);
    expect(stderr).not.toContain("GPU");
  });

  test("a host without a GPU says so to who wants one", async () => {
    const { code, stderr } = await run("gpuless", ...answer, "--device", "cuda");
    expect(code).toBe(1);
    expect(stderr).toContain("no cuda device answers: the driver has no GPU;");
  });

  test("a cuBLASLt that cannot be opened is named, not the places that have none", async () => {
    mkdirSync(folder("junk"));
    writeFileSync(join(folder("junk"), "libcublasLt.so.13"), "not a library");
    const { stdout } = await run("junk", "doctor", "--device", "cpu", "--ops", "copy_fill");
    expect(stdout).toMatch(/cuBLASLt +cannot be opened \(\S+\/junk\/libcublasLt\.so\.13: /);
  });
});
