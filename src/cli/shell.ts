/** `minisgl shell`: a conversation in the terminal, or with whatever is piped in, a message a line. */
import { createInterface } from "node:readline";
import {
  type ChatMessage,
  type GenerationParameters,
  InvalidRequest,
  type RuntimeInterface,
} from "../runtime/types.ts";
import { describe } from "./errors.ts";
import { describeSpeed } from "./generate.ts";
import { describeModel } from "./runtime.ts";
import { Terminal } from "./terminal.ts";

const HELP = `Type a message and press Enter; a paste of several lines is one message.
  /reset   forget the conversation
  /stats   tokens per second of the last answer
  /help    this text
  /exit    leave (also Ctrl-D)
Ctrl-C stops an answer.
`;

export interface ShellFlags {
  stats?: boolean;
  system?: string;
}

/** The conversation and what can be done with it, apart from where its lines come from. */
export class Conversation {
  private readonly messages: ChatMessage[] = [];
  private statistics = "no answer yet";

  constructor(
    private readonly runtime: RuntimeInterface,
    private readonly flags: ShellFlags,
    private readonly parameters: GenerationParameters,
    private readonly write: (text: string) => void,
  ) {
    this.reset();
  }

  /** Answers a message or obeys a command; false if the user wants to leave. */
  async handle(line: string, signal: AbortSignal): Promise<boolean> {
    const command = line.trim();
    if (command === "") return true;
    if (command === "/exit" || command === "/quit") return false;
    if (command === "/reset") {
      this.reset();
      this.write("The conversation starts anew.\n");
    } else if (command === "/stats") this.write(`${this.statistics}\n`);
    else if (command === "/help") this.write(HELP);
    else if (/^\/[a-z]+$/.test(command)) this.write(`unknown command ${command}; /help shows what there is\n`);
    else await this.answer(line, signal);
    return true;
  }

  private reset(): void {
    this.messages.length = 0;
    if (this.flags.system !== undefined) this.messages.push({ role: "system", content: this.flags.system });
  }

  private async answer(content: string, signal: AbortSignal): Promise<void> {
    this.messages.push({ role: "user", content });
    const answer: ChatMessage = { role: "assistant", content: "" };
    try {
      await this.stream(answer, signal);
    } catch (error) {
      if (!(error instanceof InvalidRequest) && !signal.aborted) throw error;
      if (error instanceof InvalidRequest) this.write(`${describe(error)}\n/reset starts a new conversation.\n`);
    }
    // What was said stays said; a question that got no answer is forgotten.
    if (answer.content === "") this.messages.pop();
    else this.messages.push(answer);
  }

  private async stream(answer: ChatMessage, signal: AbortSignal): Promise<void> {
    const begin = performance.now();
    let first = 0;
    let cut = false;
    const prompt = this.runtime.hasChatTemplate
      ? { messages: this.messages }
      : { text: this.messages.map((message) => message.content).join("\n") };
    const generation = await this.runtime.generate(prompt, this.parameters, signal);
    for await (const event of generation) {
      if (first === 0) first = performance.now();
      answer.content += event.text;
      this.write(event.text);
      cut = event.finishReason === "length";
    }
    this.write(answer.content.endsWith("\n") ? "" : "\n");
    if (cut) this.write("[The answer ends at its limit of tokens.]\n");
    this.statistics = describeSpeed(generation, begin, first, performance.now());
    if (this.flags.stats) this.write(`[${this.statistics}]\n`);
  }
}

/** Runs the conversation until the user leaves or the pipe ends. */
export async function shell(
  runtime: RuntimeInterface,
  flags: ShellFlags,
  parameters: GenerationParameters,
): Promise<void> {
  const conversation = new Conversation(runtime, flags, parameters, (text) => void process.stdout.write(text));
  if (process.stdin.isTTY) {
    process.stdout.write(`${describeModel(runtime.info)}\n/help shows what there is besides messages.\n`);
    await converse(conversation);
  } else {
    const never = new AbortController().signal;
    for await (const line of createInterface({ input: process.stdin })) {
      if (!(await conversation.handle(line, never))) break;
    }
  }
}

async function converse(conversation: Conversation): Promise<void> {
  const terminal = new Terminal("> ");
  try {
    for (let stay = true; stay; ) {
      const line = await terminal.read();
      if (line === null) break;
      await terminal.interruptible(async (signal) => {
        stay = await conversation.handle(line, signal);
      });
    }
  } finally {
    terminal.close();
  }
}
