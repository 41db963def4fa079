/** The options that commands share, under the names that Mini-SGLang's users know, and what they become. */
import { type Command, Help, Option } from "commander";
import type { EngineOptions } from "../message/types.ts";
import { DEFAULT_OPTIONS } from "../runtime/options.ts";
import type { GenerationParameters, RuntimeOptions } from "../runtime/types.ts";
import { UserError } from "./errors.ts";
import { attention, available, choice, collect, integer, number } from "./values.ts";

/** An option with any number of names; all set the same attribute. The first name stands for it in help. */
class NamedOption extends Option {
  constructor(
    name: string,
    value: string,
    description: string,
    readonly names: readonly string[],
    readonly isAlias: boolean,
  ) {
    super(value === "" ? name : `${name} ${value}`, description);
  }

  override attributeName(): string {
    const word = (this.names[0] as string).slice(2);
    return word.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());
  }

  get term(): string {
    return this.flags.replace(/^\S+/, this.names.join(", "));
  }
}

/** Help that shows an option once with all its names, while every name is a candidate for "did you mean". */
export class GroupedHelp extends Help {
  private displaying = false;

  override prepareContext(context: { error?: boolean; helpWidth?: number; outputHasColors?: boolean }): void {
    super.prepareContext({ ...context, helpWidth: Math.min(context.helpWidth ?? 110, 110) });
    this.displaying = true;
  }

  /** In help, the program's own options stand after those of the command that it runs where none is named. */
  override visibleOptions(command: Command): Option[] {
    const own = super.visibleOptions(command);
    if (!this.displaying) return own;
    const byDefault = command.parent === null ? command.commands.find((other) => other.name() === "serve") : undefined;
    const options = [...(byDefault?.options ?? []), ...own];
    return options.filter((option) => !(option instanceof NamedOption && option.isAlias));
  }

  override optionTerm(option: Option): string {
    return option instanceof NamedOption ? option.term : option.flags;
  }
}

interface Extra {
  parse?: (text: string, previous: never) => unknown;
  default?: unknown;
  /** What help says of the default where its value would not tell. */
  defaultText?: string;
}

/** An option and its aliases: `flags` is "--name, --alias, ... <value>". */
export function option(group: string, flags: string, description: string, extra: Extra = {}): Option[] {
  const names = flags.match(/--[a-z-]+/g) as string[];
  const value = flags.match(/[<[].*$/)?.[0] ?? "";
  return names.map((name, index) => {
    const made = new NamedOption(name, value, description, names, index > 0).helpGroup(group);
    if (extra.parse !== undefined) made.argParser(extra.parse as (text: string, previous: unknown) => unknown);
    if (index === 0 && "default" in extra) made.default(extra.default, extra.defaultText);
    return made;
  });
}

/** An option whose default would not tell in help what it means, or how it is written. */
export function worded<T>(flags: string, description: string, parse: (text: string) => T, value: T, words: string) {
  return new Option(flags, description).argParser<T>(parse).default(value, words);
}

export interface EngineFlags {
  model?: string;
  modelSource: "huggingface";
  dtype: EngineOptions["dtype"];
  dummyWeight?: boolean;
  maxSeqLenOverride: number;
  device: EngineOptions["device"];
  threads: number;
  tp: number;
  disablePynccl?: boolean;
  attn: EngineOptions["attention"];
  moeBackend: "auto";
  graph: number;
  maxRunningRequests: number;
  maxPrefillLength: number;
  memoryRatio: number;
  numPages: number;
  pageSize: number;
  cache: EngineOptions["cache"];
  overlap?: boolean;
  disableOverlap?: boolean;
  tokenizerCount: number;
  samplingDefaults: "model" | "openai";
}

/** Options of every command that runs a model. */
export function engineFlags(): Option[] {
  const model = "Model:";
  const device = "Device:";
  const memory = "Memory and scheduling:";
  return [
    ...option(model, "--model, --model-path <name>", "folder, .gguf file, or repository in the Hugging Face cache"),
    ...option(model, "--model-source <hub>", "where a repository name is looked up", {
      parse: available(["huggingface"], { modelscope: "ModelScope is not available yet; use huggingface." }),
      default: "huggingface",
    }),
    ...option(model, "--dtype <type>", "auto, float32, bfloat16 or float16", {
      parse: choice(["auto", "float32", "bfloat16", "float16"]),
      default: "auto",
    }),
    ...option(model, "--dummy-weight", "random weights; of the model only config.json is read"),
    ...option(model, "--max-seq-len-override <tokens>", "longest sequence, prompt and answer together", {
      parse: integer(1),
      default: 0,
      defaultText: "the model's",
    }),
    ...option(model, "--tokenizer-count, --num-tokenizer <n>", "threads that apply templates and tokenize", {
      parse: integer(1, 64),
      default: DEFAULT_OPTIONS.numTokenizers,
    }),
    ...option(model, "--sampling-defaults <from>", "what requests that leave a field out get: model or openai", {
      parse: choice(["model", "openai"]),
      default: "model",
    }),
    ...option(device, "--device <name>", "auto, cuda, cpu, or null (computes nothing)", {
      parse: choice(["auto", "cuda", "cpu", "null"]),
      default: "auto",
    }),
    ...option(device, "--threads <n>", "CPU threads that compute", {
      parse: integer(0, 1024),
      default: 0,
      defaultText: "all cores",
    }),
    ...option(device, "--tp, --tp-size, --tensor-parallel-size <n>", "GPUs that share the model", {
      parse: integer(1, 64),
      default: 1,
    }),
    ...option(device, "--disable-pynccl", "no NCCL between GPUs"),
    ...option(device, "--attn, --attention-backend <name>", "auto, fa, fi, or a pair prefill,decode", {
      parse: attention,
      default: { prefill: "auto", decode: "auto" },
      defaultText: "auto",
    }),
    ...option(device, "--moe-backend <name>", "kernels for mixtures of experts", {
      parse: available(["auto"], { fused: "Mixture-of-experts models are not available yet." }),
      default: "auto",
    }),
    ...option(device, "--graph, --cuda-graph-max-bs <n>", "largest decode batch that is captured; 0: none", {
      parse: integer(0, 65536),
      default: -1,
      defaultText: "by device",
    }),
    ...option(memory, "--max-running-requests <n>", "sequences that run at the same time", {
      parse: integer(1, 4096),
      default: 0,
      defaultText: "256, 64 on a CPU",
    }),
    ...option(
      memory,
      "--max-prefill-length, --max-extend-length <tokens>",
      "tokens of one step; longer prompts go in chunks",
      {
        parse: integer(1, 2 ** 20),
        default: 0,
        defaultText: "8192, 512 on a CPU",
      },
    ),
    ...option(memory, "--memory-ratio <ratio>", "share of the free memory that the KV pool may take", {
      parse: number("a number between 0 and 1", (value) => value > 0 && value < 1),
      default: 0,
      defaultText: "0.9, less on a CPU",
    }),
    ...option(memory, "--num-pages <n>", "pages of the KV pool", {
      parse: integer(1),
      default: 0,
      defaultText: "as the memory ratio gives",
    }),
    ...option(memory, "--page-size <tokens>", "tokens of a page", { parse: integer(1, 65536), default: 1 }),
    ...option(memory, "--cache, --cache-type <kind>", "prefix cache: radix or naive (none)", {
      parse: choice(["radix", "naive"]),
      default: "radix",
    }),
    ...option(memory, "--overlap", "prepare the next step while one is computed (the default)"),
    ...option(memory, "--disable-overlap", "one step after the other (also MINISGL_DISABLE_OVERLAP_SCHEDULING=1)"),
  ];
}

/** The flags as the runtime takes them. Throws a UserError for what is not available and for a missing model. */
export function toRuntimeOptions(flags: EngineFlags): RuntimeOptions {
  if (flags.model === undefined || flags.model === "") {
    throw new UserError(
      "no model given: add --model with a folder, a .gguf file or a repository name (see minisgl --help)",
    );
  }
  if (flags.tp > 1) throw new UserError("tensor parallelism is not available yet: --tp must be 1");
  if (flags.overlap && flags.disableOverlap) throw new UserError("--overlap and --disable-overlap exclude each other");
  const disabled =
    flags.disableOverlap || /^(1|true|yes|on)$/i.test(process.env.MINISGL_DISABLE_OVERLAP_SCHEDULING ?? "");
  return {
    ...DEFAULT_OPTIONS,
    model: flags.model.replace(/^~(?=$|\/)/, process.env.HOME ?? "~"),
    dtype: flags.dtype,
    device: flags.device,
    threads: flags.threads,
    dummyWeight: flags.dummyWeight ?? false,
    tensorParallelSize: flags.tp,
    maxRunningRequests: flags.maxRunningRequests,
    maxSequenceLength: flags.maxSeqLenOverride,
    maxPrefillLength: flags.maxPrefillLength,
    memoryRatio: flags.memoryRatio,
    numPages: flags.numPages,
    pageSize: flags.pageSize,
    cache: flags.cache,
    graphMaxBatchSize: flags.graph,
    attention: flags.attn,
    overlap: flags.overlap ?? !disabled,
    numTokenizers: flags.tokenizerCount,
    samplingDefaults: flags.samplingDefaults,
  };
}

export interface SamplingFlags {
  maxTokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  seed?: number;
  stop?: string[];
  ignoreEos?: boolean;
}

/** Options that say how an answer is drawn; left out, the model's generation_config.json decides. */
export function samplingFlags(): Option[] {
  const group = "Sampling:";
  return [
    ...option(group, "--max-tokens <n>", "longest answer (default: what the context leaves)", { parse: integer(1) }),
    ...option(group, "--temperature <t>", "0 takes the most probable token", {
      parse: number("a number from 0 to 100", (value) => value >= 0 && value <= 100),
    }),
    ...option(group, "--top-k <n>", "of the n most probable tokens; 0: of all", { parse: integer(0) }),
    ...option(group, "--top-p <p>", "of the most probable tokens that reach p together", {
      parse: number("a number above 0, at most 1", (value) => value > 0 && value <= 1),
    }),
    ...option(group, "--min-p <p>", "of tokens at least p times as probable as the first", {
      parse: number("a number from 0 to 1", (value) => value >= 0 && value <= 1),
    }),
    ...option(group, "--seed <n>", "same seed, same answer", { parse: integer(0, Number.MAX_SAFE_INTEGER) }),
    ...option(group, "--stop <text>", "ends the answer; may be repeated", { parse: collect as never }),
    ...option(group, "--ignore-eos", "go on to --max-tokens"),
  ];
}

/** The sampling flags as a request has them. */
export function toParameters(flags: SamplingFlags): GenerationParameters {
  const { maxTokens, temperature, topK, topP, minP, seed, stop, ignoreEos } = flags;
  return { maxTokens, temperature, topK, topP, minP, seed, stop, ignoreEos };
}
