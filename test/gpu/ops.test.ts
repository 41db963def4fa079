/** Every op against a few lines of TypeScript in float64: test/native on the device's library. */
import { expect, test } from "bun:test";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { device, executable, run, scratch } from "./support.ts";

const root = join(import.meta.dir, "../..");
const folder = join(scratch, "libraries");
const library = join(folder, device === "cuda" ? "libminisgl.so" : `libminisgl-${device}.so`);

/** Runs files of test/native with activations of a type; how many tests passed. */
async function testOps(dtype: string, files: readonly string[]): Promise<number> {
  if (!existsSync(folder)) {
    mkdirSync(folder);
    await run("doctor", "--unpack", folder);
  }
  const child = Bun.spawn([executable, "test", ...files, "--timeout", "60000"], {
    cwd: root,
    env: { ...process.env, BUN_BE_BUN: "1", MINISGL_TEST_LIBRARY: library, MINISGL_TEST_DTYPE: dtype },
    stdout: "ignore",
    stderr: "pipe",
  });
  const report = await new Response(child.stderr).text();
  expect({ code: await child.exited, failed: report.match(/^\(fail\).*/gm) }).toEqual({ code: 0, failed: null });
  return Number(report.match(/^ *(\d+) pass$/m)?.[1]);
}

test("ops compute what plain TypeScript does", async () => {
  expect(await testOps("bfloat16", ["./test/native"])).toBeGreaterThan(200);
}, 600_000);

/** Those whose tests depend on the activations' type. */
const ofActivations = ["algorithms", "attention", "blocks", "elementwise", "fused", "linear"];
const files = ofActivations.map((name) => `./test/native/${name}.test.ts`);

test.skipIf(device !== "cuda")(
  "ops compute what plain TypeScript does, in float16",
  async () => {
    expect(await testOps("float16", files)).toBeGreaterThan(250);
  },
  600_000,
);
