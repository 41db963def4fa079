/**
 * The executable against its own description: schemathesis makes requests that /openapi.json allows, and ones that it does
 * not, and holds the answers against it. `make fuzz` does more of it: MINISGL_FUZZ_EXAMPLES for each operation.
 */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { PythonPackages } from "./python.ts";
import { Installation } from "./support.ts";

setDefaultTimeout(3_600_000);
const examples = process.env.MINISGL_FUZZ_EXAMPLES ?? "12";
const schemathesis = await PythonPackages.install(["schemathesis==4.32.5"]);
const installation = new Installation();
afterAll(() => installation.remove());

test.skipIf(schemathesis === null)("no 5xx, and no response outside of the description", async () => {
  const key = "a-key";
  // The device that computes nothing: the server is tested, and a short context keeps its answers short.
  const server = await installation.serve("--device", "null", "--max-seq-len-override", "256", "--api-key", key);
  const { code, output } = await schemathesis!.run(
    ...["-m", "schemathesis.cli", "--config-file", await configuration(), "run", `${server.url}/openapi.json`],
    ...["--header", `Authorization: Bearer ${key}`, "--seed", "1", "--max-examples", examples],
    ...["--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-color"],
    // A busy machine is no failure, nor is it that few names of models are worth trying.
    ...["--suppress-health-check", "all", "--request-timeout", "60"],
    // A context's length and a vocabulary's size are not in a schema, nor that one field excludes another.
    ...["--exclude-checks", "positive_data_acceptance"],
  );
  expect(`${code === 0 ? "" : output}${code}`).toBe("0");
  const [, cases, passed] = output.match(/(\d+) generated, (\d+) passed/)!.map(Number);
  expect(cases).toBeGreaterThan(500);
  expect(passed).toBe(cases);
  const { exitCode } = server.process;
  expect(exitCode).toBeNull();
  await server.terminate();
});

/** An empty configuration, so that none of this machine's is taken. */
async function configuration(): Promise<string> {
  const path = join(installation.folder, "schemathesis.toml");
  await Bun.write(path, "");
  return path;
}
