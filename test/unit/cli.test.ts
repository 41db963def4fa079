import { afterEach, beforeEach, describe, expect, spyOn, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command, CommanderError } from "commander";
import { describe as describeError } from "../../src/cli/errors.ts";
import { createProgram, usageError } from "../../src/cli/main.ts";
import {
  type EngineFlags,
  engineFlags,
  type SamplingFlags,
  samplingFlags,
  toParameters,
  toRuntimeOptions,
} from "../../src/cli/options.ts";
import { formatBytes, Progress } from "../../src/cli/progress.ts";
import { describeModel } from "../../src/cli/runtime.ts";
import { readKeys, type ServerFlags, serverFlags } from "../../src/cli/server-options.ts";
import { DEFAULT_OPTIONS } from "../../src/runtime/options.ts";
import { FakeRuntime } from "./support/fake-runtime.ts";

/** The flags of a command with every option there is. */
function parse<T = EngineFlags>(...args: string[]): T {
  const command = new Command().exitOverride().configureOutput({ outputError: () => {} });
  for (const option of [...engineFlags(), ...serverFlags(), ...samplingFlags()]) command.addOption(option);
  return command.parse(args, { from: "user" }).opts<EngineFlags>() as T;
}

const options = (...args: string[]) => toRuntimeOptions(parse("--model", "m", ...args));

/** What the program says about a command line that it does not accept. */
async function refusal(...args: string[]): Promise<string> {
  const program = createProgram(() => {
    throw new Error("nothing is to be started");
  });
  try {
    await program.parseAsync(args, { from: "user" });
  } catch (error) {
    return error instanceof CommanderError ? usageError(error.message) : describeError(error);
  }
  throw new Error("accepted");
}

describe("options of the server", () => {
  const flags = (...args: string[]) => parse<ServerFlags>(...args);

  test("names and keys may be several, at once or one after the other", () => {
    expect(flags("--served-model-name", "a", "b", "--port", "1").servedModelName).toEqual(["a", "b"]);
    expect(flags("--api-key", "a", "--port", "1", "--api-key", "b").apiKey).toEqual(["a", "b"]);
  });

  test("keys of all sources are taken together", () => {
    expect(readKeys("api-key")).toEqual([]);
    expect(readKeys("api-key", ["a"], undefined, "b, c\nd")).toEqual(["a", "b", "c", "d"]);
    for (const key of ["", "a b", "schlüssel"]) expect(() => readKeys("api-key", [key])).toThrow("a key of --api-key");
  });

  test("origins are a list with commas, or vLLM's of JSON", () => {
    for (const list of ["https://a.example, http://b:8080", '["https://a.example", "http://b:8080"]']) {
      expect(flags("--allowed-origins", list).allowedOrigins).toEqual(["https://a.example", "http://b:8080"]);
    }
    expect(flags("--cors-allow-origins", "*").allowedOrigins).toEqual(["*"]);
  });

  test.each([
    ["--allowed-origins", "example.com", "It must be *, or origins such as https://example.com"],
    ["--allowed-origins", "https://a/path", "It must be *, or origins"],
    ["--allowed-origins", '["a', "It must be a list such as"],
    ["--request-timeout", "-1", "It must be a number of seconds"],
    ["--watchdog-timeout", "soon", "It must be a number of seconds"],
    ["--max-queued-requests", "-1", "It must be an integer of at least 0"],
    ["--max-body-bytes", "10", "It must be an integer of at least 1024"],
    ["--log-level", "loud", "It must be one of debug, info, warning, error"],
    ["--tokenizer-count", "0", "It must be an integer from 1 to 64"],
  ])("%s %s is refused", async (name, value, reason) => {
    expect(await refusal("serve", "--model", "m", name, value)).toContain(reason);
  });
});

describe("options", () => {
  test("left out, they are the runtime's defaults", () => {
    expect(options()).toEqual({ ...DEFAULT_OPTIONS, model: "m" });
  });

  test.each([
    ["--model", "--model-path", "other", { model: "other" }],
    ["--max-prefill-length", "--max-extend-length", "77", { maxPrefillLength: 77 }],
    ["--cache", "--cache-type", "naive", { cache: "naive" }],
    ["--graph", "--cuda-graph-max-bs", "0", { graphMaxBatchSize: 0 }],
    ["--tokenizer-count", "--num-tokenizer", "3", { numTokenizers: 3 }],
    ["--attn", "--attention-backend", "fa,fi", { attention: { prefill: "fa", decode: "fi" } }],
  ] as const)("%s is %s", (name, alias, value, expected) => {
    expect(options(name, value)).toMatchObject(expected);
    expect(options(alias, value)).toMatchObject(expected);
    expect(options(`${alias}=${value}`)).toMatchObject(expected);
  });

  test("three names for tensor parallelism", () => {
    for (const name of ["--tp", "--tp-size", "--tensor-parallel-size"]) {
      expect(parse(name, "1").tp).toBe(1);
      expect(() => options(name, "2")).toThrow("tensor parallelism is not available yet: --tp must be 1");
    }
  });

  test("the last of two names counts", () => {
    expect(options("--cache", "naive", "--cache-type", "radix").cache).toBe("radix");
    expect(options("--cache-type", "naive", "--cache", "radix").cache).toBe("radix");
  });

  test("one attention backend is for both phases", () => {
    expect(options("--attn", "fi").attention).toEqual({ prefill: "fi", decode: "fi" });
  });

  test("a home folder is found", () => {
    expect(options("--model", "~/models/x").model).toBe(`${process.env.HOME}/models/x`);
    expect(options("--model", "~other").model).toBe("~other");
  });

  test("sampling flags become a request's parameters", () => {
    const args = ["--temperature", "0.5", "--top-k", "3", "--stop", "a", "--stop", "b", "--seed", "9007199254740991"];
    expect(toParameters(parse<SamplingFlags>(...args))).toEqual({
      temperature: 0.5,
      topK: 3,
      stop: ["a", "b"],
      seed: 2 ** 53 - 1,
    });
  });
});

describe("overlap", () => {
  const name = "MINISGL_DISABLE_OVERLAP_SCHEDULING";
  let before: string | undefined;
  beforeEach(() => {
    before = process.env[name];
  });
  afterEach(() => {
    if (before === undefined) delete process.env[name];
    else process.env[name] = before;
  });

  test("is switched off by the option or the environment, and on again by the other option", () => {
    delete process.env[name];
    expect(options().overlap).toBe(true);
    expect(options("--disable-overlap").overlap).toBe(false);
    process.env[name] = "1";
    expect(options().overlap).toBe(false);
    expect(options("--overlap").overlap).toBe(true);
    process.env[name] = "0";
    expect(options().overlap).toBe(true);
  });

  test("cannot be both", () => {
    expect(() => options("--overlap", "--disable-overlap")).toThrow("exclude each other");
  });
});

describe("what is wrong is said in one line", () => {
  test.each([
    [["--cachee", "naive"], "unknown option '--cachee'. Did you mean '--cache'?"],
    [["serve", "--cach-type", "naive"], "unknown option '--cach-type'. Did you mean '--cache-type'?"],
    [
      ["shell", "--tensor-parallel-siz", "1"],
      "unknown option '--tensor-parallel-siz'. Did you mean '--tensor-parallel-size'?",
    ],
    [["generate", "--max-tokns", "1"], "unknown option '--max-tokns'. Did you mean '--max-tokens'?"],
    [["bench", "offline", "--sequence", "1"], "unknown option '--sequence'. Did you mean '--sequences'?"],
    [["bench", "serve", "--port", "7"], "unknown option '--port'. Did you mean '--plot'?"],
    [["doctor", "--threds", "1"], "unknown option '--threds'. Did you mean '--threads'?"],
    [["doctor", "--page-size", "1"], "unknown option '--page-size'"],
    [["bench", "ofline"], "unknown command 'ofline'. Did you mean one of 'offline', 'online'?"],
    [["help", "foo"], "unknown command 'foo'"],
    [["bench", "help", "foo"], "unknown command 'foo'"],
    [["serve", "--model", "m", "--host", ""], "argument '' is invalid. It must be an address or a name"],
    [["--model", "m", "--host= "], "0.0.0.0 is every interface."],
    [["generate", "--model", "m", ""], "the prompt is empty"],
    [[], "see minisgl --help"],
    [["--zzzzzzzz"], "unknown option '--zzzzzzzz'"],
    [["srve", "--model", "m"], "unknown command 'srve': commands come first, minisgl --help lists them"],
    [["serve"], "no model given: add --model with a folder, a .gguf file or a repository name"],
    [["--model"], "option '--model <name>' argument missing"],
    [["--model", "m", "--device", "tpu"], "It must be one of auto, cuda, cpu, null."],
    [["--model", "m", "--dtype", "int8"], "It must be one of auto, float32, bfloat16, float16."],
    [["--model", "m", "--moe-backend", "fused"], "Mixture-of-experts models are not available yet."],
    [["--model", "m", "--model-source", "modelscope"], "ModelScope is not available yet; use huggingface."],
    [["--model", "m", "--attn", "trtllm"], "use fa, fi or auto"],
    [["--model", "m", "--attn", "fa,fi,fa"], "two as prefill,decode"],
    [["generate", "--model", "m", "--prompts", "f", "text"], "give a prompt or --prompts, not both"],
    [["bench", "latency", "--model", "m", "--batch", "1,x"], "It must be an integer from 1 to 4096."],
    [["bench", "online", "--url", "no address"], "It must be an address such as http://127.0.0.1:1919."],
    [["bench", "host", "--json", "/no/such/folder/file"], "cannot write the figures: ENOENT"],
    [["doctor", "--json", "/no/such/folder/file"], "cannot write the report: ENOENT"],
    [["tune"], "no model given: add --model"],
    [["tune", "--model-path", "m", "--output", "/no/such/folder/file"], "cannot write the table: ENOENT"],
    [["tune", "--model", "m", "--tokens", "16,x"], "It must be an integer from 1 to 131072."],
  ])("%j", async (args, message) => {
    const text = await refusal(...args);
    expect(text).toContain(message);
    expect(text).not.toContain("\n");
  });

  test.each([
    ["--port", ["abc", "-1", "65536", "1.5", "", "0x10", "1e3"]],
    ["--page-size", ["0", "-4", "x", "65537"]],
    ["--max-running-requests", ["0", "nan", "4097"]],
    ["--memory-ratio", ["0", "1", "2", "-0.5", "x", "", "Infinity", "NaN"]],
    ["--num-pages", ["0", "99999999999"]],
    ["--max-prefill-length", ["0", "-1"]],
    ["--max-seq-len-override", ["0"]],
    ["--threads", ["-1", "two"]],
    ["--tp", ["0", "x"]],
  ])("%s", async (name, values) => {
    for (const value of values) {
      expect(await refusal("--model", "m", `${name}=${value}`)).toMatch(
        new RegExp(`^option '${name}.*' argument '${value}' is invalid. It must be an? (integer|number)[^\n]*$`),
      );
    }
  });
});

test("a doctor that is asked for an op it does not know says so before it checks any", async () => {
  const write = spyOn(process.stdout, "write").mockImplementation(() => true);
  try {
    const text = await refusal("doctor", "--device", "cpu", "--threads", "1", "--ops", "copy_fill,nonsense");
    expect(text).toMatch(/^there is no check of nonsense; there are those of copy_fill, .*sample$/);
    expect(write.mock.calls.join("")).not.toContain("Checking");
  } finally {
    write.mockRestore();
  }
});

test("a run that fails leaves no file for its figures, and one that was there alone", async () => {
  const folder = mkdtempSync(join(tmpdir(), "minisgl-cli-"));
  const [made, kept] = [join(folder, "new.json"), join(folder, "old.json")];
  writeFileSync(kept, "{}");
  for (const file of [made, kept]) {
    expect(await refusal("bench", "prefill", "--model", "/not/there", "--json", file)).toContain("/not/there");
  }
  expect(existsSync(made)).toBe(false);
  expect(readFileSync(kept, "utf8")).toBe("{}");
  rmSync(folder, { recursive: true });
});

test("an error of several lines is told in one", () => {
  expect(describeError(new Error("first\n   second\n"))).toBe("first second");
  expect(describeError("text")).toBe("text");
});

describe("help", () => {
  /** What a command prints for --help. */
  function help(...path: string[]): string {
    let command = createProgram(() => {
      throw new Error("nothing is to be started");
    });
    for (const name of path) command = command.commands.find((other) => other.name() === name) as Command;
    return command.helpInformation();
  }

  test("shows an option once, with all its names and its default", () => {
    const text = help("serve");
    expect(text.match(/--tensor-parallel-size/g)).toHaveLength(1);
    expect(text).toContain("--tp, --tp-size, --tensor-parallel-size <n>");
    expect(text).toMatch(/--port <number>.*default: 1919/);
    for (const group of ["Model:", "Device:", "Memory and scheduling:", "Server:"]) expect(text).toContain(group);
  });

  test("tells defaults in the words of the command line", () => {
    expect(help("bench", "online")).toMatch(
      /--rate <n>.*\(default: all at once\)\s[\s\S]*--input-length <n>.*default: 512\)/,
    );
    for (const path of [["bench", "online"], ["bench", "latency"], ["tune"]]) {
      expect(help(...path)).not.toMatch(/default: (null|[[{])/);
    }
  });

  test("of the program shows the commands and the options of the default one", () => {
    const text = help();
    for (const word of ["serve", "shell", "generate", "bench", "version", "--cache, --cache-type <kind>", "--port"]) {
      expect(text).toContain(word);
    }
  });

  test("names every option of Mini-SGLang", () => {
    const names = `--model --model-path --dtype --tp --tp-size --tensor-parallel-size --max-running-requests
      --max-seq-len-override --memory-ratio --dummy-weight --host --port --cuda-graph-max-bs --graph --num-tokenizer
      --tokenizer-count --max-prefill-length --max-extend-length --num-pages --page-size --cache --cache-type --attn
      --attention-backend --moe-backend --disable-pynccl --model-source --shell --shell-mode --device`;
    const text = help("serve");
    for (const name of names.split(/\s+/)) expect(text).toMatch(new RegExp(`${name}[ ,]`));
  });

  test("is what bench without a benchmark shows, and no failure", async () => {
    const expected = help("bench");
    const write = spyOn(process.stdout, "write").mockImplementation(() => true);
    try {
      const program = createProgram(() => {
        throw new Error("nothing is to be started");
      });
      const end = await program.parseAsync(["bench"], { from: "user" }).catch((error) => error);
      expect(end).toMatchObject({ code: "commander.help", exitCode: 0 });
      // A terminal of another width breaks the lines elsewhere.
      const words = (text: string) => text.split(/\s+/);
      expect(words(write.mock.calls.join(""))).toEqual(words(expected));
    } finally {
      write.mockRestore();
    }
  });

  test("does not show the benchmarks' client", () => {
    expect(help("bench")).not.toContain("client");
  });
});

describe("progress", () => {
  /** What is written while the clock shows the given times. */
  function written(isTTY: boolean, steps: [time: number, stage: string, done: number, total: number][]): string[] {
    const lines: string[] = [];
    let now = 0;
    const progress = new Progress({ isTTY, columns: 60, write: (text) => lines.push(text) }, () => now);
    for (const [time, stage, done, total] of steps) {
      now = time;
      progress.update(stage, done, total);
    }
    progress.clear();
    return lines;
  }

  test("is a bar on a terminal, taken away at the end", () => {
    const lines = written(true, [
      [1000, "weights", 0, 2e9],
      [1010, "weights", 1e8, 2e9],
      [1100, "weights", 1e9, 2e9],
      [1200, "weights", 2e9, 2e9],
    ]);
    expect(lines).toHaveLength(4);
    expect(lines[1]).toBe("\rloading weights [############------------] 50% of 2.0 GB\x1b[K");
    expect(lines.at(-1)).toBe("\r\x1b[K");
  });

  test("is a line now and then elsewhere", () => {
    const lines = written(false, [
      [0, "weights", 1, 2e9],
      [100, "weights", 1e9, 2e9],
      [2500, "weights", 1.5e9, 2e9],
      [2600, "weights", 2e9, 2e9],
    ]);
    expect(lines).toEqual([
      "loading weights: 0% of 2.0 GB\n",
      "loading weights: 75% of 2.0 GB\n",
      "loading weights: 100% of 2.0 GB\n",
    ]);
  });
});

test("the ready line tells how fast the weights came, and what the graphs took", () => {
  const { info } = new FakeRuntime();
  const loaded = { ...info, weightBytes: 8e9, weightSeconds: 0.8, captureSeconds: 0.52, loadSeconds: 1.9 };
  expect(describeModel(loaded)).toBe(
    "fake.gguf (llama in float32 on cpu, weights 8.0 GB in 0.8 s (10 GB/s), context 4096, 4096 pages of 1 token (1 B), " +
      "graphs captured in 0.5 s, loaded in 1.9 s)",
  );
  expect(describeModel({ ...loaded, captureSeconds: 0.0001 })).not.toContain("graphs");
});

test("bytes", () => {
  expect([0, 999, 1000, 99_500, 1_234_567, 16e9].map(formatBytes)).toEqual([
    "0 B",
    "999 B",
    "1.0 kB",
    "100 kB",
    "1.2 MB",
    "16 GB",
  ]);
});
