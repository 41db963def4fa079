import { Environment, parse, tokenize } from "@huggingface/jinja";
import { BoundedInterpreter, TemplateError } from "./jinja.ts";

export { TemplateError };

export interface TemplateMessage {
  role: string;
  content?: unknown;
  [key: string]: unknown;
}

export interface RenderOptions {
  /** Ends with what starts the assistant's answer. */
  addGenerationPrompt?: boolean;
  /** Ends with the last message's text, so that the answer goes on with it. */
  continueFinalMessage?: boolean;
  /** Further variables of the template, e.g. `enable_thinking`. */
  templateArguments?: Record<string, unknown>;
}

/** Marks where a message that goes on ends. Its last space shows whether the template trims. */
const GOES_ON = "\uE000goes on\uE001 ";

/** As in Jinja's sandbox. */
const MAX_RANGE = 100_000;

/** A chat template in Jinja, rendered as transformers' apply_chat_template does. */
export class ChatTemplate {
  #program: ReturnType<typeof parse> | null = null;

  /**
   * @param source Jinja source, parsed when it is first needed: a model whose template is damaged still completes text
   * @param specialTokens `bos_token`, `eos_token` and so on, for the template
   */
  constructor(
    private readonly source: string,
    private readonly specialTokens: Record<string, string>,
  ) {}

  /** @throws TemplateError with the template's own message, or saying what of it went wrong */
  render(messages: readonly TemplateMessage[], options: RenderOptions = {}): string {
    if (messages.length === 0) throw new TemplateError("messages must not be empty");
    if (options.continueFinalMessage) return this.#renderOpen(messages, options);
    const variables: Record<string, unknown> = {
      ...GLOBALS,
      ...this.specialTokens,
      tools: null,
      documents: null,
      ...options.templateArguments,
      messages: messages.map(flattenContent),
      add_generation_prompt: options.addGenerationPrompt ?? false,
    };
    try {
      const environment = new Environment();
      for (const [name, value] of Object.entries(variables)) {
        if (!environment.variables.has(name)) environment.set(name, value);
      }
      const result = new BoundedInterpreter(environment).run(this.#parse()).value;
      return String(result).toWellFormed();
    } catch (error) {
      if (error instanceof TemplateError) throw error;
      throw new TemplateError(`the model's chat template failed: ${reason(error)}`);
    }
  }

  /** As far as the last message's text; as transformers does it, with a mark that is cut off again. */
  #renderOpen(messages: readonly TemplateMessage[], options: RenderOptions): string {
    const last = flattenContent(messages[messages.length - 1]);
    const content = String(last.content ?? "");
    const marked = [...messages.slice(0, -1), { ...last, content: content + GOES_ON }];
    const text = this.render(marked, { ...options, addGenerationPrompt: false, continueFinalMessage: false });
    const end = text.lastIndexOf(GOES_ON.trimEnd());
    if (end < 0)
      throw new TemplateError("the model's chat template leaves out the last message: it cannot be continued");
    const open = text.slice(0, end);
    const space = content.slice(content.trimEnd().length);
    const trims = !text.startsWith(GOES_ON, end);
    return trims && open.endsWith(space) ? open.slice(0, open.length - space.length) : open;
  }

  #parse(): ReturnType<typeof parse> {
    this.#program ??= parse(tokenize(this.source, { lstrip_blocks: true, trim_blocks: true }));
    return this.#program;
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

/** Parts of text become one text, one part a line: templates of text models expect a string. */
function flattenContent(message: TemplateMessage): TemplateMessage {
  if (!Array.isArray(message.content)) return message;
  const text = message.content.map((part) => (typeof part === "string" ? part : String(part?.text ?? ""))).join("\n");
  return { ...message, content: text };
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
