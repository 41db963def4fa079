/** Every op against a few lines of TypeScript in float64: test/native on the device's library. */
import { expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { device, executable, run, scratch } from "./support.ts";

test("ops compute what plain TypeScript does", async () => {
  const folder = join(scratch, "libraries");
  mkdirSync(folder);
  await run("doctor", "--unpack", folder);
  const library = join(folder, device === "cuda" ? "libminisgl.so" : `libminisgl-${device}.so`);
  const child = Bun.spawn([executable, "test", "./test/native", "--timeout", "60000"], {
    cwd: join(import.meta.dir, "../.."),
    env: { ...process.env, BUN_BE_BUN: "1", MINISGL_TEST_LIBRARY: library },
    stdout: "ignore",
    stderr: "pipe",
  });
  const report = await new Response(child.stderr).text();
  expect({ code: await child.exited, failed: report.match(/^\(fail\).*/gm) }).toEqual({ code: 0, failed: null });
  expect(Number(report.match(/^ *(\d+) pass$/m)?.[1])).toBeGreaterThan(200);
}, 600_000);
