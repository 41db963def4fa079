/** Parts an answer into a chain of thought, which stands between <think> and </think>, and what is meant to be read. */
import type { GenerationEvent, RuntimeInterface } from "../runtime/types.ts";

const open = "<think>";
const close = "</think>";

/** Of the end of a prompt, enough to tell whether its template opened the chain of thought. */
const promptTail = 16;

/** Whether the prompt's template has opened the chain of thought, so that the answer begins within it. */
export function opensThought(runtime: RuntimeInterface, promptTokens: readonly number[]): boolean {
  return runtime.decode(promptTokens.slice(-promptTail)).trimEnd().endsWith(open);
}

/** Where an answer begins that goes on with `text`: within a thought, or after it. */
export function thoughtAfter(text: string): "thought" | "answer" {
  return text.lastIndexOf(open) > text.lastIndexOf(close) ? "thought" : "answer";
}

/** A part of an answer, tags and the space around them left out. */
export interface ReasoningPiece {
  reasoning: string;
  content: string;
}

/** Takes one answer in pieces, and holds back only what may be a part of a tag or the space in front of one. */
export class ReasoningSplitter {
  /** Whether there is a chain of thought. */
  thought: boolean;
  private state: "start" | "opening" | "thought" | "closing" | "answer";
  private held = "";
  private counted = 0;
  /** The last bytes before the closing tag, as Latin-1; null after it. */
  private tail: string | null = "";

  /** @param begin "opened": in a thought that the prompt has just opened; "thought", "answer": in the middle of it. */
  constructor(
    private readonly runtime: RuntimeInterface,
    private readonly begin: "start" | "opened" | "thought" | "answer",
  ) {
    this.state = begin === "opened" ? "start" : begin;
    this.thought = begin === "opened" || begin === "thought";
  }

  /** Tokens up to and including the closing tag. */
  get reasoningTokens(): number {
    return this.thought ? this.counted : 0;
  }

  push({ text, tokens, finishReason }: Pick<GenerationEvent, "text" | "tokens" | "finishReason">): ReasoningPiece {
    for (const token of tokens) this.count(token);
    const piece = this.split(text);
    if (finishReason !== null) {
      piece[this.thought ? "reasoning" : "content"] += this.thought ? this.held.trimEnd() : this.held;
      this.held = "";
    }
    return piece;
  }

  private split(text: string): ReasoningPiece {
    const piece: ReasoningPiece = { reasoning: "", content: "" };
    let rest = this.held + text;
    this.held = "";
    if (this.state === "start") rest = this.decide(rest);
    if (this.state === "opening") {
      rest = rest.trimStart();
      if (rest !== "") this.state = "thought";
    }
    if (this.state === "thought") {
      const end = rest.indexOf(close);
      const upTo = end < 0 ? certainLength(rest) : end;
      piece.reasoning = end < 0 ? rest.slice(0, upTo) : rest.slice(0, upTo).trimEnd();
      if (end < 0) this.held = rest.slice(upTo);
      else this.state = "closing";
      rest = end < 0 ? "" : rest.slice(end + close.length);
    }
    if (this.state === "closing") {
      rest = rest.trimStart();
      if (rest !== "") this.state = "answer";
    }
    if (this.state === "answer") piece.content = rest;
    return piece;
  }

  /** Whether the answer begins with a thought, once there is enough of it to tell. @returns what comes after the tag */
  private decide(text: string): string {
    const start = text.trimStart();
    if (start.length < open.length && open.startsWith(start)) {
      this.held = text;
      return "";
    }
    const tagged = start.startsWith(open);
    this.thought ||= tagged;
    this.state = this.thought ? "opening" : "answer";
    return tagged ? start.slice(open.length) : text;
  }

  private count(token: number): void {
    if (this.tail === null || this.begin === "answer") return;
    this.counted++;
    const bytes = this.runtime.tokenText(token)?.bytes ?? [];
    this.tail += String.fromCharCode(...bytes);
    this.tail = this.tail.includes(close) ? null : this.tail.slice(1 - close.length);
  }
}

/** How much of a thought's text stands before what may be the space and the beginning of its closing tag. */
function certainLength(text: string): number {
  let partial = Math.min(close.length - 1, text.length);
  while (partial > 0 && !close.startsWith(text.slice(-partial))) partial--;
  return text.slice(0, text.length - partial).trimEnd().length;
}
