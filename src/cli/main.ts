/**
 * The cli room: commands, options, help, progress. Read this file (the commands), then options.ts, then a file per
 * command. Whatever goes wrong ends in fail(): one line on standard error and exit code 1.
 */
import { Command, CommanderError, type HelpContext, type Option } from "commander";
import packageJson from "../../package.json" with { type: "json" };
import type { Runtime } from "../runtime/runtime.ts";
import type { SpawnWorker } from "../runtime/types.ts";
import { addBench } from "./bench.ts";
import { addDoctor } from "./doctor.ts";
import { fail, UserError } from "./errors.ts";
import { type GenerateFlags, generate, prepareJob } from "./generate.ts";
import {
  type EngineFlags,
  engineFlags,
  GroupedHelp,
  type SamplingFlags,
  samplingFlags,
  toParameters,
  toRuntimeOptions,
} from "./options.ts";
import { startRuntime } from "./runtime.ts";
import { score } from "./score.ts";
import { serve } from "./serve.ts";
import { type ServerFlags, serverFlags } from "./server-options.ts";
import { type ShellFlags, shell } from "./shell.ts";
import { addTune } from "./tune.ts";
import { integer } from "./values.ts";

const EXAMPLES = `
Examples:
  minisgl --model Qwen/Qwen3-0.6B                            serve a model of the Hugging Face cache
  minisgl serve --model model.gguf --host 0.0.0.0 --port 80  serve a GGUF file to everyone
  minisgl shell --model model.gguf                           talk to it
  minisgl generate --model model.gguf "Once upon a time"     one answer
  minisgl <command> --help                                   what a command can do
`;

/** Runs the command line `args` (without the program's name). Returns when the command is done. */
export async function main(args: readonly string[], spawn: SpawnWorker): Promise<void> {
  process.on("uncaughtException", fail).on("unhandledRejection", fail);
  // A reader that has seen enough (`| head`) is no error.
  process.stdout.on("error", (error: Error & { code?: string }) => {
    if (error.code === "EPIPE") process.exit(0);
    fail(error);
  });
  try {
    await createProgram(spawn).parseAsync(args, { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) fail(error);
    if (error.exitCode !== 0) fail(new UserError(usageError(error.message)));
  }
}

/** Commander's message as one line in this program's words. */
export function usageError(message: string): string {
  const surplus = message.match(/^error: too many arguments for 'serve'.*?: (.+?)(?:, .*)?\.$/)?.[1];
  if (surplus !== undefined) return `unknown command '${surplus}': commands come first, minisgl --help lists them`;
  return message
    .replace(/^error: /, "")
    .replace(/\n\(Did you mean (one of )?(.+)\?\)$/, (_, several, names: string) => {
      const quoted = names.split(", ").map((name) => `'${name}'`);
      return `. Did you mean ${several ? "one of " : ""}${quoted.join(", ")}?`;
    });
}

class Program extends Command {
  override createCommand(name?: string): Program {
    return new Program(name);
  }

  override createHelp(): GroupedHelp {
    return Object.assign(new GroupedHelp(), this.configureHelp());
  }

  /** Commander also comes here, with `error`, for a command without its subcommand and for help on an unknown one. */
  override help(context?: HelpContext | ((text: string) => string)): never {
    const unknown = typeof context === "object" && context.error ? this.args[1] : undefined;
    if (unknown !== undefined) this.error(`error: unknown command '${unknown}'`);
    return super.help();
  }

  addOptions(options: readonly Option[]): this {
    for (const option of options) this.addOption(option);
    return this;
  }
}

/** The commands; apart from main(), so that tests can look at them. */
export function createProgram(spawn: SpawnWorker): Command {
  const program = new Program("minisgl")
    .description("Serves large language models over the OpenAI API.")
    .version(packageJson.version, "-v, --version", "print the version")
    .helpOption("-h, --help", "print this help")
    .addHelpText("after", EXAMPLES)
    .configureOutput({ outputError: () => {} })
    .exitOverride();
  addServe(program, spawn);
  addShell(program, spawn);
  addGenerate(program, spawn);
  addScore(program);
  addBench(program, spawn);
  addDoctor(program);
  addTune(program);
  program
    .command("version")
    .description("print the version")
    .action(() => console.log(packageJson.version));
  return program;
}

function addServe(program: Program, spawn: SpawnWorker): void {
  program
    .command("serve", { isDefault: true })
    .description("serve a model over HTTP (the default command)")
    .addOptions([...engineFlags(), ...serverFlags()])
    .action(async (flags: EngineFlags & ServerFlags) => {
      if (flags.shell) await runShell(flags, {}, {}, spawn);
      else await serve(toRuntimeOptions(flags), flags, spawn);
    });
}

function addShell(program: Program, spawn: SpawnWorker): void {
  program
    .command("shell")
    .description("talk to a model in the terminal")
    .addOptions([...engineFlags(), ...samplingFlags()])
    .option("--system <text>", "the system message")
    .option("--stats", "show tokens per second after each answer")
    .action((flags: EngineFlags & ShellFlags & SamplingFlags) => runShell(flags, flags, flags, spawn));
}

async function runShell(engine: EngineFlags, flags: ShellFlags, sampling: SamplingFlags, spawn: SpawnWorker) {
  await withRuntime(engine, spawn, (runtime) => shell(runtime, flags, toParameters(sampling)));
}

function addGenerate(program: Program, spawn: SpawnWorker): void {
  program
    .command("generate")
    .description("answer one prompt, or a file of prompts")
    .argument("[prompt]", "the text to continue; -, or nothing: read it from standard input")
    .addOptions([...engineFlags(), ...samplingFlags()])
    .option("--chat", "make the prompt a message of a conversation, as the model's chat template has it")
    .option("--prompts <file>", "a prompt a line, or .jsonl with strings, {prompt}, {messages} or {tokens}")
    .option("--output <file>", "write here instead of to standard output")
    .option("--stats", "show tokens per second")
    .action(async (prompt: string | undefined, flags: EngineFlags & GenerateFlags & SamplingFlags) => {
      const job = await prepareJob(prompt, flags);
      const abort = new AbortController();
      process.once("SIGINT", () => {
        abort.abort();
        process.once("SIGINT", () => process.exit(130));
      });
      await withRuntime(flags, spawn, (runtime) =>
        generate(runtime, job, toParameters(flags), abort.signal).catch((error) => {
          if (!abort.signal.aborted) throw error;
        }),
      );
      if (abort.signal.aborted) process.exit(130);
    });
}

function addScore(program: Program): void {
  program
    .command("score")
    .description("logprobs of given continuations, a JSON line each")
    .argument("<file>", 'lines of {"prompt": [token ids], "continuation": [token ids]}')
    .addOptions(engineFlags())
    .option(
      "--chunk <tokens>",
      "tokens of a prompt computed at a time; 0: as many as a step takes",
      integer(0, 1 << 20),
      0,
    )
    .action((file: string, flags: EngineFlags & { chunk: number }) =>
      score(file, flags.chunk, toRuntimeOptions(flags)),
    );
}

/** Starts a runtime for `work` and ends it afterwards. */
async function withRuntime(flags: EngineFlags, spawn: SpawnWorker, work: (runtime: Runtime) => Promise<void>) {
  const runtime = await startRuntime(toRuntimeOptions(flags), spawn);
  try {
    await work(runtime);
  } finally {
    await runtime.stop();
  }
}
