/** Logprobs as each API writes them. A token's text is what its bytes are by themselves, U+FFFD for parts of characters. */
import type { RuntimeInterface, TokenLogprob } from "../runtime/types.ts";

/** Stands for minus infinity, which JSON cannot express; as in vLLM. */
const least = -9999;

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

type Probable = Pick<TokenLogprob, "token" | "logprob">;

/** Writes tokens; `asIds`: as "token_id:123", which is what tokens of models without tokenizer are written as, too. */
export class TokenWriter {
  /** The same few thousand tokens are the most probable ones everywhere. */
  private readonly texts = new Map<number, string>();

  constructor(
    readonly runtime: RuntimeInterface,
    private readonly asIds = false,
  ) {}

  text(token: number): string {
    let text = this.texts.get(token);
    if (text === undefined) {
      const known = this.asIds ? null : this.runtime.tokenText(token);
      text = known === null ? `token_id:${token}` : decoder.decode(known.bytes);
      this.texts.set(token, text);
    }
    return text;
  }

  bytes(token: number): number[] | null {
    const known = this.runtime.tokenText(token);
    return known === null ? null : Array.from(known.bytes);
  }
}

const finite = (logprob: number): number => Math.max(logprob, least);

/** `logprobs` of a choice of chat. */
export function chatLogprobs(writer: TokenWriter, logprobs: readonly TokenLogprob[]): object {
  const entry = ({ token, logprob }: Probable) => ({
    token: writer.text(token),
    logprob: finite(logprob),
    bytes: writer.bytes(token),
  });
  const content = logprobs.map((each) => ({ ...entry(each), top_logprobs: each.top.map(entry) }));
  return { content, refusal: null };
}

/** `prompt_logprobs` of vLLM: null for the first token, then by id the `top` most probable ones and the token itself. */
export function promptLogprobs(writer: TokenWriter, logprobs: readonly TokenLogprob[], top: number): object {
  const entry = ({ token, logprob }: Probable, rank: number | null) => [
    token,
    { logprob: finite(logprob), rank, decoded_token: writer.text(token) },
  ];
  const rows = logprobs.map((own) => {
    const place = own.top.findIndex(({ token }) => token === own.token);
    const probable = own.top.slice(0, top).map((each, index) => entry(each, index + 1));
    return Object.fromEntries([...probable, entry(own, place < 0 ? null : place + 1)]);
  });
  return [null, ...rows];
}

/** A run of tokens in the legacy form. */
interface LegacyRun {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  /** Where each token begins, or the character does that it goes on with: in code points of the choice's text. */
  text_offset: number[];
}

/** `logprobs` of a choice of /v1/completions, whose parts come one after the other. */
export class LegacyLogprobs {
  private offset = 0;
  private readonly decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  /**
   * @param top how many of the most probable tokens to write beside the token itself
   * @param skipsSpecial answers' texts leave special tokens out
   */
  constructor(
    private readonly writer: TokenWriter,
    private readonly top: number,
    private readonly skipsSpecial: boolean,
  ) {}

  /** The echoed prompt: `tokens`, the logprobs of all but the first, and the text that they are in. */
  prompt(tokens: readonly number[], logprobs: readonly TokenLogprob[], text: string): LegacyRun {
    const run = this.run([null, ...logprobs], tokens, false);
    // What tokenizers put in front, a BOS or the first word's space, takes no room in the text.
    const length = codePoints(text);
    const unseen = Math.max(0, this.offset - length);
    this.offset = length;
    return { ...run, text_offset: run.text_offset.map((offset) => Math.max(0, offset - unseen)) };
  }

  answer(logprobs: readonly TokenLogprob[]): LegacyRun {
    const tokens = logprobs.map(({ token }) => token);
    return this.run(logprobs, tokens, this.skipsSpecial);
  }

  private run(logprobs: readonly (TokenLogprob | null)[], tokens: readonly number[], skipsSpecial: boolean): LegacyRun {
    return {
      tokens: tokens.map((token) => this.writer.text(token)),
      token_logprobs: logprobs.map((each) => each && finite(each.logprob)),
      top_logprobs: logprobs.map((each) => each && this.probable(each)),
      text_offset: tokens.map((token) => this.advance(token, skipsSpecial)),
    };
  }

  private probable(own: TokenLogprob): Record<string, number> {
    const entries = [...own.top.slice(0, this.top), own];
    return Object.fromEntries(entries.map(({ token, logprob }) => [this.writer.text(token), finite(logprob)]));
  }

  /** The offset of a token; the next begins after it. */
  private advance(token: number, skipsSpecial: boolean): number {
    const { offset } = this;
    const known = this.writer.runtime.tokenText(token);
    if (known !== null && !(skipsSpecial && known.special)) {
      this.offset += codePoints(this.decoder.decode(known.bytes, { stream: true }));
    }
    return offset;
  }
}

/** Two runs as one. */
export function joinRuns(first: LegacyRun, second: LegacyRun): LegacyRun {
  return {
    tokens: [...first.tokens, ...second.tokens],
    token_logprobs: [...first.token_logprobs, ...second.token_logprobs],
    top_logprobs: [...first.top_logprobs, ...second.top_logprobs],
    text_offset: [...first.text_offset, ...second.text_offset],
  };
}

/** Length in characters as Python counts them. */
function codePoints(text: string): number {
  let count = 0;
  for (const _ of text) count++;
  return count;
}

/** [logprob, id, text or null] of SGLang. */
type NativeEntry = [number | null, number, string | null];

/** Fields of SGLang's meta_info for one of "input" and "output"; a first entry of null is a token without logprob. */
export function nativeLogprobs(
  kind: "input" | "output",
  writer: TokenWriter | null,
  tokens: readonly number[],
  logprobs: readonly (TokenLogprob | null)[],
  top: number,
): object {
  const entry = (logprob: number | null, token: number): NativeEntry => [
    logprob === null ? null : finite(logprob),
    token,
    writer?.text(token) ?? null,
  ];
  return {
    [`${kind}_token_logprobs`]: logprobs.map((each, index) => entry(each?.logprob ?? null, tokens[index])),
    ...(top > 0 && {
      [`${kind}_top_logprobs`]: logprobs.map(
        (each) => each?.top.slice(0, top).map(({ logprob, token }) => entry(logprob, token)) ?? null,
      ),
    }),
  };
}
