/** Generations whose events are changed on their way to the client. */
import type { Generation, GenerationEvent, RuntimeInterface, TokenLogprob } from "../runtime/types.ts";

class ChangedGeneration implements Generation {
  constructor(
    private readonly inner: Generation,
    private readonly change: (event: GenerationEvent) => GenerationEvent,
    private readonly countsTokens: boolean,
  ) {}

  get uid(): number {
    return this.inner.uid;
  }
  get promptTokens(): readonly number[] {
    return this.inner.promptTokens;
  }
  get promptLogprobs(): readonly TokenLogprob[] {
    return this.inner.promptLogprobs;
  }
  get cachedTokens(): number {
    return this.inner.cachedTokens;
  }
  get completionTokens(): number {
    return this.countsTokens ? this.inner.completionTokens : 0;
  }
  get startedAt(): number {
    return this.inner.startedAt;
  }
  get gatheredLogprobs(): number {
    return this.inner.gatheredLogprobs;
  }

  abort(): void {
    this.inner.abort();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<GenerationEvent, void> {
    for await (const event of this.inner) yield this.change(event);
  }
}

/** Of a generation of one token, everything but that token: what max_tokens of 0 asks for. */
export function promptOnly(inner: Generation): Generation {
  const change = ({ finishReason }: GenerationEvent): GenerationEvent => ({
    text: "",
    tokens: [],
    logprobs: [],
    finishReason: finishReason === "stop" ? "length" : finishReason,
  });
  return new ChangedGeneration(inner, change, false);
}

/** The generation with the stop string, or the stop token's text, that ended it. */
export function withStop(inner: Generation, runtime: RuntimeInterface): Generation {
  const change = (event: GenerationEvent): GenerationEvent => {
    const { stopReason } = event;
    if (stopReason === undefined) return event;
    return {
      ...event,
      text: event.text + (typeof stopReason === "string" ? stopReason : stopText(runtime, stopReason)),
    };
  };
  return new ChangedGeneration(inner, change, true);
}

function stopText(runtime: RuntimeInterface, token: number): string {
  return runtime.tokenText(token)?.special === false ? runtime.decode([token]) : "";
}
