/**
 * The tokenizer room: text to ids (this file), chats to text (template.ts), ids to text as they come
 * (detokenizer.ts, which needs only the table of vocabulary.ts), and stop strings in that text (stop.ts).
 */
import { Tokenizer as Encoder } from "@huggingface/tokenizers";
import { CheckpointError, type TokenizerSource } from "../checkpoint/types.ts";
import { BytePairEncoder } from "./bpe.ts";
import { type DetokenizerOptions, TokenTable } from "./detokenizer.ts";
import { TemplateError } from "./jinja.ts";
import { namedTokens, type PreparedTokenizer, prepareTokenizer } from "./prepare.ts";
import { ChatTemplate, type RenderOptions, type TemplateMessage } from "./template.ts";
import { tabulate, type VocabularyBytes } from "./vocabulary.ts";

/** Encodes, decodes and renders chats as transformers does with the same files. */
export class Tokenizer {
  readonly #encoder: Encoder;
  readonly #table: TokenTable;
  readonly #template: ChatTemplate | null;

  /** @throws CheckpointError for a kind of tokenizer that is not supported, and for a damaged one */
  constructor(source: TokenizerSource) {
    try {
      const prepared = prepareTokenizer(source);
      const pairs = new BytePairEncoder(prepared.model);
      this.#encoder = createEncoder(prepared, pairs);
      this.#table = new TokenTable(tabulate(pairs.tokens, prepared.added_tokens, prepared.decoder));
    } catch (error) {
      if (error instanceof CheckpointError) throw error;
      throw new CheckpointError(`tokenizer.json cannot be used: ${error instanceof Error ? error.message : error}`);
    }
    const named = namedTokens(source.tokenizerConfig);
    this.#template = source.chatTemplate === null ? null : new ChatTemplate(source.chatTemplate, named);
  }

  /** Ids are below this. The model's own vocabulary may be larger (padded). */
  get size(): number {
    return this.#table.size;
  }

  get hasChatTemplate(): boolean {
    return this.#template !== null;
  }

  /** What a TokenTable is made of. */
  vocabularyBytes(): VocabularyBytes {
    return this.#table.vocabulary;
  }

  /**
   * Text to ids. Special tokens written out in the text are recognised, as in transformers.
   * @param options.addSpecialTokens put in what the tokenizer puts around a text, such as BOS; default true
   */
  encode(text: string, options: { addSpecialTokens?: boolean } = {}): number[] {
    // A lone surrogate has no UTF-8: it becomes U+FFFD.
    return this.#encoder.encode(text.toWellFormed(), { add_special_tokens: options.addSpecialTokens ?? true }).ids;
  }

  /** Ids to text; special tokens are left out unless asked for. Ids outside the vocabulary are no text. */
  decode(ids: Iterable<number>, options: DetokenizerOptions = {}): string {
    return this.#table.decode(ids, options);
  }

  /** @throws TemplateError where there is no template, or it refuses the messages */
  renderChat(messages: readonly TemplateMessage[], options: RenderOptions = {}): string {
    if (this.#template === null) {
      throw new TemplateError("the model has no chat template: use completions with a prompt instead of messages");
    }
    return this.#template.render(messages, options);
  }

  /** Renders a chat and encodes it. The template writes BOS itself, so none is added. */
  encodeChat(messages: readonly TemplateMessage[], options: RenderOptions = {}): number[] {
    return this.encode(this.renderChat(messages, options), { addSpecialTokens: false });
  }
}

/** The library normalises, splits and finds added tokens; words become tokens by our own BPE. */
function createEncoder(prepared: PreparedTokenizer, pairs: BytePairEncoder): Encoder {
  const model = { ...prepared.model, merges: [] };
  const encoder = new Encoder({ ...prepared, model }, { clean_up_tokenization_spaces: false });
  encoder.model!.encode = (words) => pairs.encode(words);
  return encoder;
}
