/** What a tokenizer thread does: templates and encoding, one prompt after the other. */
import type { MessagePort } from "node:worker_threads";
import type { TokenizerSource } from "../checkpoint/types.ts";
import type { RenderOptions, TemplateMessage } from "./template.ts";
import { Tokenizer } from "./tokenizer.ts";
import type { VocabularyBytes } from "./vocabulary.ts";

/** A prompt that is not token ids yet. */
export type TextPrompt = { text: string; addSpecialTokens?: boolean } | ChatPrompt;

interface ChatPrompt extends RenderOptions {
  messages: readonly TemplateMessage[];
}

/** What main gives the thread to start with. */
export interface TokenizerThreadData {
  source: TokenizerSource;
  port: MessagePort;
}

/** What main says to it. */
export type ToTokenizer =
  /** maxTokens: what is certainly longer is refused unencoded, so that no giant prompt keeps the others waiting. */
  { type: "encode"; id: number; prompt: TextPrompt; maxTokens: number } | { type: "stop" };

/** What it answers: first the vocabulary, for main's detokenizer, or why it cannot start; then each prompt is either encoded or refused. */
export type FromTokenizer =
  | { type: "ready"; vocabulary: VocabularyBytes }
  | { type: "failed"; message: string }
  | { type: "encoded"; id: number; tokens: Int32Array }
  | { type: "refused"; id: number; message: string; parameter: string; code: string | null };

/** A text that has more tokens than were asked for, however it is encoded. */
class TooLong extends Error {}

/** Serves the port until main says stop. Whatever a prompt makes the template or the tokenizer throw refuses that prompt. */
export function runTokenizerThread({ source, port }: TokenizerThreadData): void {
  const say = (message: FromTokenizer, transfer: ArrayBuffer[] = []): void => port.postMessage(message, transfer);
  let encoder: PromptEncoder;
  try {
    encoder = new PromptEncoder(source);
  } catch (error) {
    say({ type: "failed", message: messageOf(error) });
    port.close();
    return;
  }
  port.on("message", (message: ToTokenizer) => {
    if (message.type === "stop") {
      port.close();
      return;
    }
    const { id, prompt, maxTokens } = message;
    try {
      const tokens = Int32Array.from(encoder.encode(prompt, maxTokens));
      say({ type: "encoded", id, tokens }, [tokens.buffer]);
    } catch (error) {
      const parameter = "messages" in prompt ? "messages" : "prompt";
      const code = error instanceof TooLong ? "context_length_exceeded" : null;
      say({ type: "refused", id, message: messageOf(error), parameter, code });
    }
  });
  say({ type: "ready", vocabulary: encoder.vocabulary });
}

class PromptEncoder {
  readonly vocabulary: VocabularyBytes;
  private readonly tokenizer: Tokenizer;
  private readonly longestToken: number;

  constructor(source: TokenizerSource) {
    this.tokenizer = new Tokenizer(source);
    this.vocabulary = this.tokenizer.vocabularyBytes();
    this.longestToken = longestToken(this.vocabulary);
  }

  encode(prompt: TextPrompt, maxTokens: number): number[] {
    const isText = "text" in prompt;
    const text = isText ? prompt.text : this.render(prompt);
    if (text.length > maxTokens * this.longestToken) {
      throw new TooLong(`the prompt is too long for the context: ${text.length} characters`);
    }
    // A template writes BOS itself.
    return this.tokenizer.encode(text, { addSpecialTokens: isText && (prompt.addSpecialTokens ?? true) });
  }

  private render({ messages, addGenerationPrompt = true, ...options }: ChatPrompt): string {
    return this.tokenizer.renderChat(messages, { addGenerationPrompt, ...options });
  }
}

/** Bytes of the longest token. */
function longestToken({ offsets }: VocabularyBytes): number {
  let longest = 1;
  for (let id = 1; id < offsets.length; id++) longest = Math.max(longest, offsets[id] - offsets[id - 1]);
  return longest;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
