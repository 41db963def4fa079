/** Every op of the CUDA library against the CPU library, in bfloat16 and float16. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { device, run, scratch } from "./support.ts";

test("minisgl doctor finds no op that differs from the CPU's", async () => {
  const file = join(scratch, "doctor.json");
  expect(await run("doctor", "--device", device, "--json", file)).toContain(" 0 failed");
  const { findings, host } = await Bun.file(file).json();
  const types = new Set(findings.map(({ dtype }: { dtype: string }) => dtype));
  expect([...types]).toEqual(device === "cuda" ? ["bfloat16", "float16"] : ["float32"]);
  if (device === "cuda") expect(host.gpus.length).toBeGreaterThan(0);
}, 300_000);
