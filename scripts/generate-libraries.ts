/**
 * Writes src/native/libraries.generated.ts: the native libraries that were built, imported as files, so that
 * `bun build --compile` puts them into the executable.
 * Usage: bun scripts/generate-libraries.ts name=path ... (paths from the repository's root; those missing are left out)
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const target = join(root, "src/native/libraries.generated.ts");
const names = ["cuda", "cpu", "null"];
const built = process.argv.slice(2).flatMap((argument) => {
  const [name = "", path = ""] = argument.split("=");
  if (!names.includes(name)) throw new Error(`unknown library ${name}: expected one of ${names.join(", ")}`);
  return existsSync(join(root, path)) ? [{ name, path }] : [];
});

const text = [
  "// @ts-nocheck: TypeScript has no type for a library.",
  "// Made by scripts/generate-libraries.ts: the native libraries of this build.",
  ...built.map(({ name, path }) => `import ${name}File from "../../${path}" with { type: "file" };`),
  "",
  "/** Path of each library; undefined where it was not built. */",
  'export const libraries: Readonly<Record<"cuda" | "cpu" | "null", string | undefined>> = {',
  ...names.map((name) => `  ${name}: ${built.some((library) => library.name === name) ? `${name}File` : "undefined"},`),
  "};",
  "",
].join("\n");

// Left alone when nothing changed, so that make does not build again.
if (!existsSync(target) || readFileSync(target, "utf8") !== text) writeFileSync(target, text);
