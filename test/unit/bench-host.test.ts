/** `minisgl bench host` as it is run: the scheduler's step, and a server in a process of its own. */
import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

test("`bench host` measures the whole program", async () => {
  const folder = mkdtempSync(join(tmpdir(), "minisgl-bench-test-"));
  const json = join(folder, "host.json");
  const main = join(import.meta.dir, "../../src/main.ts");
  const child = Bun.spawn([process.execPath, main, "bench", "host", "--tokens", "40", "--json", json], {
    stdout: "pipe",
    stderr: "pipe",
  });
  const [output, errors] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  await child.exited;
  expect(errors).toBe("");
  const { results } = (await Bun.file(json).json()) as { results: Record<string, number>[] };
  rmSync(folder, { recursive: true });
  expect(output).toContain("result to next launch at 256 sequences");
  expect(results).toHaveLength(3);
  // Not the targets, which a busy machine may miss, but figures that can only come of real work.
  expect(results[0]!.step_median_us!).toBeWithin(1, 5000);
  for (const streams of results.slice(1)) {
    expect(streams.tokens_per_second!).toBeGreaterThan(100);
    expect(streams.first_token_median_ms!).toBeGreaterThan(0);
  }
}, 120_000);
