/** Python programs that the server is tested with, pinned and from PyPI, in folders under .tools/ that git ignores. */
import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

const folder = resolve(import.meta.dir, "../../.tools/python");
const python = Bun.which("python3");

/** Installed packages, to be imported and run. */
export class PythonPackages {
  private constructor(private readonly path: string) {}

  /**
   * Installs requirements ("name==version") once, into a folder of their own; null, and a word why, where this machine
   * cannot: there is no python3 with pip, no index, or no wheel for it.
   * @param options further options of pip
   */
  static async install(
    requirements: readonly string[],
    options: readonly string[] = [],
  ): Promise<PythonPackages | null> {
    const path = join(folder, requirements[0]);
    const mark = join(path, `.installed-${Bun.hash([...requirements, ...options].join()).toString(16)}`);
    if (existsSync(mark)) return new PythonPackages(path);
    rmSync(path, { recursive: true, force: true });
    mkdirSync(path, { recursive: true });
    const refused = await pip("install", "--no-compile", "--target", path, ...options, ...requirements);
    if (refused === null) {
      writeFileSync(mark, "");
      return new PythonPackages(path);
    }
    rmSync(path, { recursive: true, force: true });
    console.warn(`skipped: ${requirements[0]} cannot be installed here (${refused})`);
    return null;
  }

  /** Starts `python3 ...args` where the packages can be imported. */
  spawn(...args: string[]): Bun.Subprocess<"ignore", "pipe", "pipe"> {
    return Bun.spawn([python as string, ...args], {
      // What it leaves behind stays beside it.
      cwd: this.path,
      env: { ...process.env, PYTHONPATH: this.path, PYTHONUNBUFFERED: "1", NO_COLOR: "1" },
      stdout: "pipe",
      stderr: "pipe",
    });
  }

  /** Runs it to its end. */
  async run(...args: string[]): Promise<{ code: number; output: string }> {
    const child = this.spawn(...args);
    const texts = [new Response(child.stdout).text(), new Response(child.stderr).text()];
    const [code, ...output] = await Promise.all([child.exited, ...texts]);
    return { code, output: output.join("") };
  }
}

/** @returns null where all went well, else the last thing that pip said */
async function pip(...args: string[]): Promise<string | null> {
  if (python === null) return "there is no python3";
  const quiet = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--only-binary", ":all:"];
  const child = Bun.spawn([python, "-m", "pip", ...args, ...quiet], { stdout: "ignore", stderr: "pipe" });
  const [said, code] = await Promise.all([new Response(child.stderr).text(), child.exited]);
  return code === 0 ? null : (said.trim().split("\n").at(-1) ?? `pip ended with ${code}`);
}
