/**
 * Server-sent events. The stream pulls one event at a time and waits for the socket, so that a slow reader holds back
 * its own generation's reader and nothing piles up here; one that stalls for long is cut off.
 */
import type { GenerationEvent } from "../runtime/types.ts";
import type { Choices } from "./choices.ts";
import { errorBody, toHttpError } from "./errors.ts";

/** How an API writes its stream: complete frames, "data: ...\n\n", or nothing. */
export interface StreamFormat {
  /** `first`: the first event of this choice. */
  event(choice: number, event: GenerationEvent, first: boolean): string;
  /** After the last event of the last choice. */
  close(): string;
}

export const streamHeaders = {
  "content-type": "text/event-stream; charset=utf-8",
  "cache-control": "no-cache",
  // Asks proxies not to collect the stream.
  "x-accel-buffering": "no",
};

const done = "data: [DONE]\n\n";

/**
 * Waits for the first event of any choice, then gives the body of the response. What goes wrong before that is thrown,
 * and can be answered as JSON; what goes wrong later becomes an error event.
 */
export async function eventStream(
  choices: Choices,
  format: StreamFormat,
  stallTimeoutSeconds: number,
): Promise<ReadableStream> {
  const sources = choices.generations.map((generation) => {
    const iterator = generation[Symbol.asyncIterator]();
    const first = iterator.next();
    first.catch(() => {});
    return { iterator, first };
  });
  const stop = () => {
    choices.abort();
    choices.end();
  };
  /** Ends the request, and lets those act who waited for that, while there still is a connection. */
  const finish = () => {
    stop();
    return choices.ended;
  };
  try {
    await Promise.race(sources.map(({ first }) => first));
  } catch (error) {
    stop();
    throw error;
  }
  return new ReadableStream({
    type: "direct",
    async pull(controller) {
      const sink = new Sink(controller, choices, stallTimeoutSeconds * 1000);
      try {
        await Promise.all(sources.map((source, choice) => forward(source, choice, choices, format, sink)));
        await sink.send(format.close() + done);
        await finish();
        controller.close();
      } catch (error) {
        await finish();
        fail(controller, error);
      }
    },
    cancel: stop,
  });
}

async function forward(
  { iterator, first }: { iterator: AsyncIterator<GenerationEvent>; first: Promise<IteratorResult<GenerationEvent>> },
  choice: number,
  choices: Choices,
  format: StreamFormat,
  sink: Sink,
): Promise<void> {
  let opening = true;
  for (let result = await first; !result.done; result = await iterator.next()) {
    choices.note(choice, result.value);
    const sent = sink.send(format.event(choice, result.value, opening));
    if (sent !== undefined) await sent;
    opening = false;
  }
}

/** Thrown out of a stream whose reader has gone or stalled: there is nobody to tell. */
class ReaderLost extends Error {}

/** Tells the client why its stream ends early, where there still is one, and closes it. */
function fail(controller: ReadableStreamDirectController, error: unknown): void {
  if (!(error instanceof ReaderLost)) {
    controller.write(`data: ${JSON.stringify(errorBody(toHttpError(error)))}\n\n${done}`);
  }
  controller.close(error instanceof ReaderLost ? error : undefined);
}

class Sink {
  constructor(
    private readonly controller: ReadableStreamDirectController,
    private readonly choices: Choices,
    private readonly patience: number,
  ) {}

  /** Writes frames and sends them on; a promise only where the socket is full. */
  send(frames: string): Promise<void> | undefined {
    const written = this.controller.write(frames);
    if (written === 0) throw new ReaderLost("the client has gone");
    this.controller.flush();
    return typeof written === "number" ? undefined : this.drained(written);
  }

  private async drained(written: Promise<number>): Promise<void> {
    const end = performance.now() + this.patience;
    let timer: Timer | undefined;
    const stalled = new Promise<never>((_, reject) => {
      const look = () => {
        if (performance.now() >= end || this.choices.isOverfull) reject(new ReaderLost("the client reads nothing"));
      };
      timer = setInterval(look, Math.min(this.patience, 500));
    });
    try {
      await Promise.race([written, stalled]);
    } finally {
      clearInterval(timer);
    }
  }
}
