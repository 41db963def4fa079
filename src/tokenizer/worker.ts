/** What a tokenizer thread does: templates and encoding, one prompt after the other. */
import type { MessagePort } from "node:worker_threads";
import type { TokenizerSource } from "../checkpoint/types.ts";
import { Tokenizer } from "./tokenizer.ts";
import type { VocabularyBytes } from "./vocabulary.ts";

/** A prompt that is not token ids yet. */
export type TextPrompt =
  | { text: string; addSpecialTokens?: boolean }
  | {
      messages: readonly { role: string; content: string; [key: string]: unknown }[];
      addGenerationPrompt?: boolean;
      templateArguments?: Record<string, unknown>;
    };

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
  let tokenizer: Tokenizer;
  try {
    tokenizer = new Tokenizer(source);
  } catch (error) {
    say({ type: "failed", message: messageOf(error) });
    port.close();
    return;
  }
  const vocabulary = tokenizer.vocabularyBytes();
  const bytesOfToken = longestToken(vocabulary);
  port.on("message", (message: ToTokenizer) => {
    if (message.type === "stop") {
      port.close();
      return;
    }
    const { id, prompt, maxTokens } = message;
    try {
      const tokens = Int32Array.from(encode(tokenizer, prompt, maxTokens * bytesOfToken));
      say({ type: "encoded", id, tokens }, [tokens.buffer]);
    } catch (error) {
      const parameter = "messages" in prompt ? "messages" : "prompt";
      const code = error instanceof TooLong ? "context_length_exceeded" : null;
      say({ type: "refused", id, message: messageOf(error), parameter, code });
    }
  });
  say({ type: "ready", vocabulary });
}

function encode(tokenizer: Tokenizer, prompt: TextPrompt, maxCharacters: number): readonly number[] {
  const isText = "text" in prompt;
  const text = isText
    ? prompt.text
    : tokenizer.renderChat(prompt.messages, { ...prompt, addGenerationPrompt: prompt.addGenerationPrompt ?? true });
  if (text.length > maxCharacters)
    throw new TooLong(`the prompt is too long for the context: ${text.length} characters`);
  // A template writes BOS itself.
  return tokenizer.encode(text, { addSpecialTokens: isText && (prompt.addSpecialTokens ?? true) });
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
