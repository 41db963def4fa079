/** What the routes share: the options, the runtime once it is there, and the requests under way. */
import { basename } from "node:path";
import type { RuntimeInterface } from "../runtime/types.ts";
import type { Choices } from "./choices.ts";
import { HttpError } from "./errors.ts";
import type { Log } from "./log.ts";
import { Metrics } from "./metrics.ts";

/** Gives the runtime, or null while the model is loading. */
export type RuntimeHolder = () => RuntimeInterface | null;

/** Fields left out take the defaults of `defaultOptions`. */
export interface ServerOptions {
  /** Names that requests may ask for and /v1/models lists; none: the model as it was given on the command line. */
  servedModelNames?: readonly string[];
  /** Origins that browsers may call from; "*" for all, none for no CORS headers. */
  corsOrigins?: readonly string[];
  maxBodyBytes?: number;
  /** Answers that one request may ask for, prompts times n. */
  maxChoices?: number;
  /** Seconds after which a client that reads nothing of its stream is cut off. */
  stallTimeoutSeconds?: number;
  /** Keys of which every request must carry one; none: the server is open. */
  apiKeys?: readonly string[];
  /** Keys of the admin routes where they are not those of the users. */
  adminKeys?: readonly string[];
  /** Prometheus needs a key for /metrics too. */
  protectMetrics?: boolean;
  /** Seconds from a request's arrival to the end of its answer; 0: as long as it takes. */
  requestTimeoutSeconds?: number;
  /** Takes a line for each request; null: none are told. */
  requestLog?: Log | null;
  /** Shown by /server_info as `options`. */
  settings?: object;
}

/** What the log says of a request that was queued. Times in milliseconds; null for what did not happen. */
export interface RequestRecord {
  id: string;
  choices: number;
  promptTokens: number;
  cachedTokens: number;
  completionTokens: number;
  finishReasons: string[];
  /** From arrival to the launch of the first step, thence to the first token, and thence to the last one. */
  queue: number | null;
  prefill: number | null;
  decode: number | null;
}

export const defaultOptions: Required<ServerOptions> = {
  servedModelNames: [],
  corsOrigins: [],
  maxBodyBytes: 32 * 2 ** 20,
  maxChoices: 2048,
  stallTimeoutSeconds: 60,
  apiKeys: [],
  adminKeys: [],
  protectMetrics: false,
  requestTimeoutSeconds: 0,
  requestLog: null,
  settings: {},
};

/** Milliseconds without a request after which garbage is collected: nobody waits for it then, and memory at rest is flat. */
const restAfter = 1000;

export class ServerContext {
  readonly options: Required<ServerOptions>;
  /** Requests that are being answered. */
  readonly active = new Set<Choices>();
  readonly metrics = new Metrics();
  readonly started = Math.floor(Date.now() / 1000);
  draining = false;
  private whenIdle: (() => void) | null = null;
  private rest: Timer | undefined;

  constructor(
    private readonly holder: RuntimeHolder,
    options: ServerOptions,
  ) {
    this.options = { ...defaultOptions, ...options };
  }

  /**
   * The runtime.
   * @throws HttpError 503 while it is loading or the server is draining
   */
  runtime(): RuntimeInterface {
    if (this.draining) throw unavailable("the server is shutting down", "draining");
    return this.observed();
  }

  /**
   * The runtime for whoever only looks at it, draining or not.
   * @throws HttpError 503 while it is loading
   */
  observed(): RuntimeInterface {
    const runtime = this.holder();
    if (runtime === null) throw unavailable("the model is still loading", "loading");
    return runtime;
  }

  /** Names that the model is listed under. */
  modelNames(runtime: RuntimeInterface): readonly string[] {
    const { servedModelNames } = this.options;
    return servedModelNames.length > 0 ? servedModelNames : [runtime.info.model];
  }

  /**
   * The name to answer under when `asked` is asked for.
   * @throws HttpError 404 for a model that is not served
   */
  modelName(runtime: RuntimeInterface, asked: string | undefined): string {
    const names = this.modelNames(runtime);
    if (asked === undefined || asked === "" || asked === "default") return names[0];
    if (names.includes(asked) || names.some((name) => basename(name) === asked)) return asked;
    throw new HttpError(404, `the model ${JSON.stringify(asked)} does not exist here; served: ${names.join(", ")}`, {
      param: "model",
      code: "model_not_found",
    });
  }

  enter(choices: Choices): void {
    clearTimeout(this.rest);
    this.active.add(choices);
  }

  leave(choices: Choices): void {
    this.active.delete(choices);
    if (this.active.size > 0) return;
    this.whenIdle?.();
    clearTimeout(this.rest);
    this.rest = setTimeout(() => Bun.gc(true), restAfter);
    this.rest.unref();
  }

  /** See RunningServer.drain. */
  async drain(timeoutSeconds: number): Promise<number> {
    this.draining = true;
    if (this.active.size > 0) {
      const idle = new Promise<void>((resolve) => {
        this.whenIdle = resolve;
      });
      let timer: Timer | undefined;
      const late = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, timeoutSeconds * 1000);
      });
      await Promise.race([idle, late]);
      clearTimeout(timer);
    }
    const left = [...this.active];
    for (const choices of left) choices.abort();
    return left.length;
  }
}

function unavailable(message: string, code: string): HttpError {
  return new HttpError(503, message, { code, headers: { "retry-after": "1" } });
}
