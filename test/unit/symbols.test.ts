import { expect, test } from "bun:test";
import { generate } from "../../scripts/generate-symbols.ts";

test("src/native/symbols.ts is what cuda/include/minisgl.h generates", async () => {
  const committed = await Bun.file(new URL("../../src/native/symbols.ts", import.meta.url)).text();
  expect(committed).toBe(await generate());
});
