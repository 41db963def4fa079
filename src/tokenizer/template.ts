import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";

/** A chat that the model's template refuses, or a template that cannot be rendered. Becomes a 400. */
export class TemplateError extends Error {}

export interface TemplateMessage {
  role: string;
  content?: unknown;
  [key: string]: unknown;
}

export interface RenderOptions {
  /** Ends with what starts the assistant's answer. */
  addGenerationPrompt?: boolean;
  /** Further variables of the template, e.g. `enable_thinking`. */
  templateArguments?: Record<string, unknown>;
}

// Templates come with the model and messages from anyone: what one rendering may cost.
const MAX_STEPS = 20_000_000;
const MAX_MILLISECONDS = 30_000;
const MAX_CHARACTERS = 64 << 20;
const MAX_LIST = 1 << 20;
/** As in Jinja's sandbox. */
const MAX_RANGE = 100_000;

type Statement = Parameters<Interpreter["evaluate"]>[0];

/** A chat template in Jinja, rendered as transformers' apply_chat_template does. */
export class ChatTemplate {
  readonly #program: ReturnType<typeof parse>;

  /**
   * @param source Jinja source
   * @param specialTokens `bos_token`, `eos_token` and so on, for the template
   * @throws TemplateError where the source cannot be parsed
   */
  constructor(
    source: string,
    readonly specialTokens: Record<string, string>,
  ) {
    try {
      this.#program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
    } catch (error) {
      throw new TemplateError(`the model's chat template cannot be parsed: ${reason(error)}`);
    }
  }

  /** @throws TemplateError with the template's own message, or saying what of it went wrong */
  render(messages: readonly TemplateMessage[], options: RenderOptions = {}): string {
    const variables: Record<string, unknown> = {
      ...GLOBALS,
      ...this.specialTokens,
      tools: null,
      documents: null,
      ...options.templateArguments,
      messages: messages.map((message) => ({ ...message, content: flattenContent(message.content) })),
      add_generation_prompt: options.addGenerationPrompt ?? false,
    };
    try {
      const environment = new Environment();
      for (const [name, value] of Object.entries(variables)) {
        if (!environment.variables.has(name)) environment.set(name, value);
      }
      const result = new BoundedInterpreter(environment).run(this.#program).value;
      return String(result).toWellFormed();
    } catch (error) {
      if (error instanceof TemplateError) throw error;
      throw new TemplateError(`the model's chat template failed: ${reason(error)}`);
    }
  }
}

/** An interpreter that ends: Jinja has no endless loop, but nested ones and doubling strings come close. */
class BoundedInterpreter extends Interpreter {
  #steps = 0;
  readonly #deadline = performance.now() + MAX_MILLISECONDS;

  override evaluate(statement: Statement, environment: Environment) {
    this.#steps++;
    if (this.#steps > MAX_STEPS || ((this.#steps & 1023) === 0 && performance.now() > this.#deadline)) {
      throw new TemplateError("the model's chat template takes too long");
    }
    const result = super.evaluate(statement, environment);
    const value: unknown = result.value;
    const size = typeof value === "string" ? value.length / MAX_CHARACTERS : 0;
    if (size > 1 || (Array.isArray(value) && value.length > MAX_LIST)) {
      throw new TemplateError("the model's chat template makes too much text");
    }
    return result;
  }
}

const GLOBALS: Record<string, unknown> = {
  true: true,
  True: true,
  false: false,
  False: false,
  none: null,
  None: null,
  raise_exception: (message: unknown) => {
    throw new TemplateError(String(message));
  },
  range: (start: number, stop?: number, step = 1) => range(stop === undefined ? 0 : start, stop ?? start, step),
  strftime_now: (format: unknown) => strftime(String(format), new Date()),
};

function range(start: number, stop: number, step: number): number[] {
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= MAX_RANGE)) throw new TemplateError(`range(${start}, ${stop}, ${step}) is too long`);
  return Array.from({ length }, (_, i) => start + i * step);
}

/** Parts of text become one text, one part a line; no content becomes an empty one. */
function flattenContent(content: unknown): unknown {
  if (content === null || content === undefined) return "";
  if (!Array.isArray(content)) return content;
  return content.map((part) => (typeof part === "string" ? part : String(part?.text ?? ""))).join("\n");
}

const MONTHS = "January February March April May June July August September October November December".split(" ");
const DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ");

/** Python's strftime in the C locale, for the directives that dates and times need. */
export function strftime(format: string, date: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const hour = date.getHours();
  const values: Record<string, string> = {
    Y: String(date.getFullYear()),
    y: two(date.getFullYear() % 100),
    m: two(date.getMonth() + 1),
    B: MONTHS[date.getMonth()],
    b: MONTHS[date.getMonth()].slice(0, 3),
    d: two(date.getDate()),
    A: DAYS[date.getDay()],
    a: DAYS[date.getDay()].slice(0, 3),
    H: two(hour),
    I: two(hour % 12 || 12),
    p: hour < 12 ? "AM" : "PM",
    M: two(date.getMinutes()),
    S: two(date.getSeconds()),
    "%": "%",
  };
  return format.replace(/%-?([A-Za-z%])/g, (directive, letter: string) => {
    const value = values[letter] ?? directive;
    return directive[1] === "-" ? value.replace(/^0(?=\d)/, "") : value;
  });
}

function reason(error: unknown): string {
  if (error instanceof RangeError) return "it nests too deep or makes too much text";
  return error instanceof Error ? error.message : String(error);
}
