/**
 * The offline API: a model in this process, without a server.
 *
 *     await using llm = new LLM("models/SmolLM2-135M-Instruct.Q4_1.gguf");
 *     const [completion] = await llm.generate("The capital of France is", { maxTokens: 8, temperature: 0 });
 *     console.log(completion.text);
 */
import type { EngineInfo } from "./message/types.ts";
import { DEFAULT_OPTIONS } from "./runtime/options.ts";
import { Runtime } from "./runtime/runtime.ts";
import type {
  ChatMessage,
  FinishReason,
  GenerationEvent,
  GenerationParameters,
  Prompt,
  RuntimeOptions,
  RuntimeStatistics,
  TokenLogprob,
} from "./runtime/types.ts";
import { spawn } from "./spawn.ts";

/** Any option of the command line; the queue has no bound unless one is given. */
export interface LLMOptions extends Partial<Omit<RuntimeOptions, "model">> {
  /** Told how far loading is: `done` of `total` in units of the stage. */
  onProgress?(stage: string, done: number, total: number): void;
}

/** A text, token ids, or the runtime's own form. */
export type PromptInput = string | readonly number[] | Prompt;

/** A whole answer. */
export interface Completion {
  text: string;
  /** Every token that was drawn, EOS and stop strings included. */
  tokens: number[];
  finishReason: FinishReason;
  /** What ended it, where it was a stop string or a token id other than EOS. */
  stopReason?: string | number;
  promptTokens: readonly number[];
  /** Of each of tokens, where the request asked for them. */
  logprobs?: TokenLogprob[];
  /** Of promptTokens[1] and on, where the request asked for them. */
  promptLogprobs?: readonly TokenLogprob[];
  /** How many of the prompt's tokens were found in the prefix cache. */
  cachedTokens: number;
}

/** How a conversation becomes a prompt. */
export interface ChatOptions {
  /** True, if left out, unless the final message is continued. */
  addGenerationPrompt?: boolean;
  /** The answer goes on with the last message. */
  continueFinalMessage?: boolean;
  templateArguments?: Record<string, unknown>;
}

/** A model, loaded at the first call. Its threads keep the process alive until close(). */
export class LLM {
  private runtime: Promise<Runtime> | null = null;

  /** @param model Folder, .gguf file, or repository name found in the local Hugging Face cache. */
  constructor(
    private readonly model: string,
    private readonly options: LLMOptions = {},
  ) {}

  /**
   * A model that is ready to answer.
   * @throws CheckpointError, or an Error with the engine's reason, if it cannot be loaded.
   */
  static async load(model: string, options: LLMOptions = {}): Promise<LLM> {
    const llm = new LLM(model, options);
    await llm.start();
    return llm;
  }

  /**
   * Answers all prompts, batched; completions come in the prompts' order.
   * @param sampling For all prompts, or one for each.
   * @throws InvalidRequest if one of them cannot be served; the others are aborted.
   */
  async generate(
    prompts: PromptInput | readonly PromptInput[],
    sampling: GenerationParameters | readonly GenerationParameters[] = {},
  ): Promise<Completion[]> {
    const list = isSinglePrompt(prompts) ? [prompts] : prompts;
    if (isList(sampling) && sampling.length !== list.length) {
      throw new RangeError(`there are ${list.length} prompts, but ${sampling.length} sampling parameters`);
    }
    const runtime = await this.start();
    const abort = new AbortController();
    const complete = async (prompt: PromptInput, index: number): Promise<Completion> => {
      const parameters = isList(sampling) ? sampling[index] : sampling;
      const generation = await runtime.generate(toPrompt(prompt), parameters, abort.signal);
      const tokens: number[] = [];
      const logprobs: TokenLogprob[] = [];
      let text = "";
      let last: GenerationEvent | undefined;
      for await (const event of generation) {
        text += event.text;
        for (const token of event.tokens) tokens.push(token);
        for (const logprob of event.logprobs ?? []) logprobs.push(logprob);
        last = event;
      }
      const { promptTokens, promptLogprobs, cachedTokens } = generation;
      const finishReason = last?.finishReason ?? "abort";
      return {
        ...{ text, tokens, finishReason, promptTokens, cachedTokens },
        ...(last?.stopReason !== undefined && { stopReason: last.stopReason }),
        ...(parameters.logprobs !== undefined && { logprobs }),
        ...(parameters.promptLogprobs !== undefined && { promptLogprobs }),
      };
    };
    try {
      return await Promise.all(list.map(complete));
    } catch (error) {
      abort.abort();
      throw error;
    }
  }

  /** Answers conversations through the model's chat template, otherwise as generate(). */
  chat(
    conversations: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
    sampling: GenerationParameters | readonly GenerationParameters[] = {},
    options: ChatOptions = {},
  ): Promise<Completion[]> {
    const list = isSingleConversation(conversations) ? [conversations] : conversations;
    const addGenerationPrompt = options.continueFinalMessage !== true;
    const prompts = list.map((messages) => ({ messages, addGenerationPrompt, ...options }));
    return this.generate(prompts, sampling);
  }

  /** One answer as it is made. Leaving the loop aborts it. */
  async *stream(
    prompt: PromptInput,
    sampling: GenerationParameters = {},
    signal?: AbortSignal,
  ): AsyncGenerator<GenerationEvent, void, undefined> {
    const runtime = await this.start();
    yield* await runtime.generate(toPrompt(prompt), sampling, signal);
  }

  /** Token ids of a text, with BOS where the model has one. */
  async encode(text: string): Promise<number[]> {
    return (await this.start()).encode({ text });
  }

  /** Text of token ids, special tokens included. */
  async decode(tokens: readonly number[]): Promise<string> {
    return (await this.start()).decode(tokens);
  }

  /** What the engine tells about itself. */
  async info(): Promise<EngineInfo> {
    return (await this.start()).info;
  }

  async statistics(): Promise<RuntimeStatistics> {
    return (await this.start()).statistics();
  }

  /** Aborts what is running and ends the threads; the next call would load the model anew. */
  async close(): Promise<void> {
    const { runtime } = this;
    this.runtime = null;
    const started = await runtime?.catch(() => null);
    await started?.stop();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  private start(): Promise<Runtime> {
    if (this.runtime === null) {
      const { onProgress, ...options } = this.options;
      const unbounded = { maxQueuedRequests: Infinity, maxQueuedPromptBytes: Infinity };
      const all: RuntimeOptions = { ...DEFAULT_OPTIONS, ...unbounded, ...options, model: this.model };
      this.runtime = Runtime.start(all, spawn, onProgress);
    }
    return this.runtime;
  }
}

function isList<T>(value: T | readonly T[]): value is readonly T[] {
  return Array.isArray(value);
}

function isSinglePrompt(prompts: PromptInput | readonly PromptInput[]): prompts is PromptInput {
  return !Array.isArray(prompts) || typeof prompts[0] === "number";
}

function isSingleConversation(
  conversations: readonly ChatMessage[] | readonly (readonly ChatMessage[])[],
): conversations is readonly ChatMessage[] {
  return conversations.length > 0 && !Array.isArray(conversations[0]);
}

function toPrompt(input: PromptInput): Prompt {
  if (typeof input === "string") return { text: input };
  return Array.isArray(input) ? { tokens: input } : (input as Prompt);
}
