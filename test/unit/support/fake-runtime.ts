/** A runtime that answers from a script, so that the server's tests say exactly what comes when. Tokens are UTF-8 bytes. */
import {
  type Generation,
  type GenerationEvent,
  type GenerationParameters,
  InvalidRequest,
  type Prompt,
  type RuntimeInterface,
  type RuntimeStatistics,
  type TokenLogprob,
  type TokenText,
} from "../../../src/runtime/types.ts";
import { type RunningServer, type ServerOptions, serve } from "../../../src/server/server.ts";

export interface Script {
  /** The pieces of the answer, one event each. */
  pieces: string[];
  finishReason: "stop" | "length";
  stopReason?: string | number;
  cachedTokens?: number;
  /** Logprobs that wait for a reader, always. */
  gatheredLogprobs?: number;
  /** The tokens of each event, where they are not the event's number. */
  tokens?: number[][];
  /** Waits for this before event `index`. */
  before?(index: number): Promise<unknown> | undefined;
}

export const hello: Script = { pieces: ["Hel", "lo", " wörld"], finishReason: "stop" };

export interface Call {
  prompt: Prompt;
  tokens: number[];
  parameters: GenerationParameters;
  generation: FakeGeneration;
}

const bytes = (text: string): number[] => [...new TextEncoder().encode(text)];

/** -token / 8; the most probable are 0, 1, 2, ... */
const logprobOf = (token: number, top: number): TokenLogprob => ({
  token,
  logprob: -token / 8,
  top: Array.from({ length: top }, (_, rank) => ({ token: rank, logprob: -rank / 8 })),
});

class FakeGeneration implements Generation {
  completionTokens = 0;
  readonly startedAt = performance.now();
  aborted = false;
  ended = false;
  private readonly onAbort = Promise.withResolvers<void>();

  constructor(
    readonly uid: number,
    readonly promptTokens: readonly number[],
    private readonly script: Script,
    private readonly parameters: GenerationParameters,
    private readonly maxTokens: number,
  ) {}

  get gatheredLogprobs(): number {
    return this.script.gatheredLogprobs ?? 0;
  }

  private known: TokenLogprob[] | undefined;

  get promptLogprobs(): readonly TokenLogprob[] {
    const { promptLogprobs: top } = this.parameters;
    this.known ??= top === undefined ? [] : this.promptTokens.slice(1).map((token) => logprobOf(token, top));
    return this.known;
  }

  get cachedTokens(): number {
    return this.script.cachedTokens ?? 0;
  }

  abort(): void {
    if (this.ended) return;
    this.aborted = true;
    this.onAbort.resolve();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<GenerationEvent, void> {
    const { pieces, before, finishReason, stopReason } = this.script;
    try {
      for (const [index, text] of pieces.entries()) {
        await Promise.race([before?.(index), this.onAbort.promise]);
        if (this.aborted) {
          yield { text: "", tokens: [], finishReason: "abort" };
          return;
        }
        const tokens = this.script.tokens?.[index] ?? [index];
        this.completionTokens += tokens.length;
        const cut = this.completionTokens >= this.maxTokens;
        const last = index === pieces.length - 1;
        const finish = last ? finishReason : cut ? "length" : null;
        const { logprobs: top } = this.parameters;
        yield {
          text,
          tokens,
          ...(top !== undefined && { logprobs: tokens.map((token) => logprobOf(token, top)) }),
          finishReason: finish,
          ...(last && stopReason !== undefined && { stopReason }),
        };
        if (finish !== null) return;
      }
    } finally {
      this.ended = true;
    }
  }
}

export class FakeRuntime implements RuntimeInterface {
  calls: Call[] = [];
  /** The answer to a prompt; throws to refuse it. */
  script: (prompt: string, choice: number) => Script = () => hello;
  hasChatTemplate = true;
  thinks = false;
  flushable = true;
  readonly info = {
    model: "models/fake.gguf",
    architecture: "llama",
    dtype: "float32",
    device: "cpu",
    library: "fake",
    vocabularySize: 256,
    maxContext: 4096,
    maxRunningRequests: 8,
    numPages: 4096,
    pageSize: 1,
    weightBytes: 1,
    poolBytes: 1,
    weightSeconds: 0,
    captureSeconds: 0,
    loadSeconds: 0,
    warning: null,
  };

  async generate(prompt: Prompt, parameters: GenerationParameters, signal?: AbortSignal): Promise<Generation> {
    const tokens = await this.encode(prompt);
    const room = this.info.maxContext - tokens.length;
    const { maxTokens = room } = parameters;
    if (room < 1 || maxTokens > room) throw new InvalidRequest("longer than the context", "maxTokens", "too_long");
    const biased = [...(parameters.logitBias?.keys() ?? [])].find((token) => token >= 256);
    if (biased !== undefined) throw new InvalidRequest(`token id ${biased} is not within the vocabulary`, "logitBias");
    const choice = this.calls.filter((call) => Buffer.from(call.tokens).equals(Buffer.from(tokens))).length;
    const script = this.script(this.decode(tokens), choice);
    const generation = new FakeGeneration(this.calls.length + 1, tokens, script, parameters, maxTokens);
    signal?.addEventListener("abort", () => generation.abort());
    this.calls.push({ prompt, tokens, parameters, generation });
    return generation;
  }

  async encode(prompt: Prompt): Promise<number[]> {
    if ("tokens" in prompt) {
      const wrong = prompt.tokens.find((token) => token >= 256);
      if (wrong !== undefined) throw new InvalidRequest(`token id ${wrong} is not within the vocabulary`, "prompt");
      return [...prompt.tokens];
    }
    if ("text" in prompt) return bytes(prompt.text);
    return bytes(prompt.messages.map(({ role, content }) => `${role}:${content}\n`).join(""));
  }

  decode(tokens: readonly number[]): string {
    return new TextDecoder().decode(Uint8Array.from(tokens));
  }

  tokenText(token: number): TokenText {
    return { bytes: Uint8Array.of(token), special: token === 255 };
  }

  statistics(): RuntimeStatistics {
    return {
      runningRequests: this.calls.filter(({ generation }) => !generation.ended).length,
      waitingRequests: 1,
      usedPages: 2,
      cachedPages: 3,
      totalPages: 4096,
      steps: 5,
      ringStalls: 6,
      preemptions: 7,
      promptTokens: 8,
      cachedTokens: 9,
      generatedTokens: 10,
      busyMicroseconds: 11,
      idleMicroseconds: 12,
    };
  }

  async flushCache(): Promise<boolean> {
    return this.flushable;
  }

  onFatal(): void {}

  async stop(): Promise<void> {}
}

/** A server over a fake runtime on a free port. */
export function startServer(
  runtime: FakeRuntime | null,
  options: ServerOptions & { idleTimeoutSeconds?: number } = {},
): RunningServer {
  return serve(() => runtime, { hostname: "127.0.0.1", port: 0, ...options });
}

export function post(server: RunningServer, path: string, body: unknown, init: RequestInit = {}): Promise<Response> {
  const text = typeof body === "string" || body instanceof Uint8Array ? body : JSON.stringify(body);
  return fetch(new URL(path, server.url), { method: "POST", body: text as string, ...init });
}

/** The data of a stream's events; checks that nothing else is in it and that [DONE] is last. */
export async function events<Event>(response: Response): Promise<Event[]> {
  const frames = (await response.text()).split("\n\n");
  if (frames.pop() !== "") throw new Error("the stream does not end with a complete event");
  if (frames.pop() !== "data: [DONE]") throw new Error("the stream does not end with [DONE]");
  return frames.map((frame) => {
    if (!frame.startsWith("data: ")) throw new Error(`not an event: ${frame}`);
    return JSON.parse(frame.slice("data: ".length));
  });
}
