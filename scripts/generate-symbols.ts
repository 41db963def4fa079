/**
 * Writes src/native/symbols.ts from cuda/include/minisgl.h, so that a signature is written once.
 * `bun scripts/generate-symbols.ts` writes it; a test calls generate() and compares.
 */

const header = new URL("../cuda/include/minisgl.h", import.meta.url);
const target = new URL("../src/native/symbols.ts", import.meta.url);

const scalarTypes: Record<string, { ffi: string; bytes: number }> = {
  int32_t: { ffi: "i32", bytes: 4 },
  uint32_t: { ffi: "u32", bytes: 4 },
  int64_t: { ffi: "i64", bytes: 8 },
  uint64_t: { ffi: "u64", bytes: 8 },
  float: { ffi: "f32", bytes: 4 },
  char: { ffi: "char", bytes: 1 },
};

const words = (text: string) =>
  text
    .trim()
    .split(/\s+/)
    .filter((word) => word !== "const" && word !== "struct");

/** The bun:ffi type of a parameter such as "const float *x". */
function ffiType(parameter: string): string {
  if (parameter.includes("*")) return "ptr";
  const type = words(parameter)[0]!;
  if (!scalarTypes[type]) throw new Error(`minisgl.h: type of "${parameter}" is not one the generator knows`);
  return scalarTypes[type].ffi;
}

function enums(source: string): string {
  let text = "";
  for (const [, body] of source.matchAll(/enum\s+\w+\s*\{([^}]*)\}/g)) {
    for (const entry of body!
      .split(",")
      .map((item) => item.trim())
      .filter(Boolean)) {
      const [name, value] = entry.split("=").map((part) => part.trim());
      text += `export const ${name} = ${value};\n`;
    }
  }
  return text;
}

/** Byte offsets of a struct's fields, and its size, by C's rules of alignment. */
function structs(source: string): string {
  let text = "";
  for (const [, body, name] of source.matchAll(/typedef struct \w+\s*\{([^}]*)\}\s*(\w+);/g)) {
    let offset = 0;
    let largest = 1;
    const fields: string[] = [];
    for (const field of body!
      .split(";")
      .map((item) => item.trim())
      .filter(Boolean)) {
      const [type, declarator] = words(field) as [string, string];
      const [, fieldName, count] = declarator.match(/(\w+)(?:\[(\d+)\])?/)!;
      const { bytes } = scalarTypes[type]!;
      offset = Math.ceil(offset / bytes) * bytes;
      largest = Math.max(largest, bytes);
      fields.push(`${fieldName}: ${offset}`);
      offset += bytes * Number(count ?? 1);
    }
    text += `export const ${name} = { ${fields.join(", ")}, bytes: ${Math.ceil(offset / largest) * largest} } as const;\n`;
  }
  return text;
}

function functions(source: string): string {
  let text = "export const symbols = {\n";
  for (const [, result, name, parameters] of source.matchAll(/(int32_t|const char \*)\s*(msgl_\w+)\(([^)]*)\);/g)) {
    const args = parameters!.trim() === "void" ? [] : parameters!.split(",").map(ffiType);
    const returns = result === "int32_t" ? "i32" : "cstring";
    text += `  ${name}: { args: [${args.map((type) => `"${type}"`).join(", ")}], returns: "${returns}" },\n`;
  }
  return `${text}} as const;\n`;
}

/** The text of src/native/symbols.ts. */
export async function generate(): Promise<string> {
  const source = (await Bun.file(header).text()).replace(/\/\*[\s\S]*?\*\//g, "").replace(/^#.*$/gm, "");
  return [
    "// Generated from cuda/include/minisgl.h by scripts/generate-symbols.ts. Do not edit.\n",
    enums(source),
    structs(source),
    functions(source),
  ].join("\n");
}

if (import.meta.main) await Bun.write(target, await generate());
