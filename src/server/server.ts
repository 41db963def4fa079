/**
 * The server room: the OpenAI API, and what operators and routers ask for, over a runtime. Read server.ts (which routes
 * there are and what stands before them), schemas.ts (what may be asked), choices.ts (how a request becomes generations),
 * openai.ts and event-stream.ts (how answers are written), then routes/.
 */
import { Hono } from "hono";
import type { Choices } from "./choices.ts";
import { type RuntimeHolder, ServerContext, type ServerOptions } from "./context.ts";
import { errorResponse, HttpError } from "./errors.ts";
import { apiKey } from "./middleware/api-key.ts";
import { accessControl } from "./middleware/cors.ts";
import { idleAgain } from "./middleware/idle-again.ts";
import { requestId } from "./middleware/request-id.ts";
import { requestLog as logRequests } from "./middleware/request-log.ts";
import { adminRoutes } from "./routes/admin.ts";
import { chatRoutes } from "./routes/chat.ts";
import { completionRoutes } from "./routes/completions.ts";
import { generateRoutes } from "./routes/generate.ts";
import { healthRoutes } from "./routes/health.ts";
import { metricsRoutes } from "./routes/metrics.ts";
import { modelRoutes } from "./routes/models.ts";
import { openApiRoutes } from "./routes/openapi.ts";
import { playgroundRoutes } from "./routes/playground.ts";
import { tokenizeRoutes } from "./routes/tokenize.ts";

export type { RuntimeHolder, ServerOptions } from "./context.ts";

/** What every handler finds in its Hono context. */
export type Environment = {
  Bindings: {
    /** Takes the idle timeout off the connection, and puts it on again. */
    untimed?: () => void;
    timed?: () => void;
  };
  /** `choices`: what the request has queued, once it has. */
  Variables: { requestId: string; choices?: Choices };
};

/** Seconds after which a connection is closed on which nothing happens: no request, or half of one. */
const idleTimeout = 60;

/** The app, and the state that its life cycle needs. */
export interface Server {
  readonly app: Hono<Environment>;
  readonly context: ServerContext;
}

/** Builds the app. `runtime` gives null until the model is loaded: till then only /ping and /version answer with 200. */
export function createServer(runtime: RuntimeHolder, options: ServerOptions = {}): Server {
  const context = new ServerContext(runtime, options);
  const app = new Hono<Environment>({ getPath });
  app.use(requestId);
  app.use(idleAgain);
  const { corsOrigins, apiKeys, adminKeys, protectMetrics, requestLog } = context.options;
  if (requestLog !== null) app.use(logRequests(requestLog));
  if (corsOrigins.length > 0) app.use(accessControl(corsOrigins));
  app.use(apiKey(apiKeys, adminKeys, protectMetrics));
  healthRoutes(app, context);
  modelRoutes(app, context);
  chatRoutes(app, context);
  completionRoutes(app, context);
  generateRoutes(app, context);
  tokenizeRoutes(app, context);
  metricsRoutes(app, context);
  adminRoutes(app, context);
  playgroundRoutes(app);
  openApiRoutes(app, context);
  app.notFound((c) => {
    throw unknownRoute(app, c.req.method, c.req.path);
  });
  app.onError((error, c) => errorResponse(c, error));
  return { app, context };
}

/** A request's path, also where a request of HTTP/1.0 names no host: Bun's URL is then a bare path, or has none. */
function getPath({ url }: Request): string {
  const scheme = url.indexOf("://");
  const begin = url.startsWith("/") ? 0 : url.indexOf("/", scheme + 3);
  const end = url.slice(begin).search(/[?#]/);
  return end < 0 ? url.slice(begin) : url.slice(begin, begin + end);
}

/** 405 where the path exists under another method, else 404. */
function unknownRoute(app: Hono<Environment>, method: string, path: string): HttpError {
  const allowed = ["GET", "POST"].filter((other) =>
    app.router.match(other, path)[0].some(([[, route]]) => route.method === other),
  );
  if (allowed.length === 0) return new HttpError(404, `there is no ${path} here`, { code: "not_found" });
  return new HttpError(405, `${path} does not answer ${method}, use ${allowed.join(" or ")}`, {
    code: "method_not_allowed",
    headers: { allow: allowed.join(", ") },
  });
}

/** A server that listens. */
export interface RunningServer extends Server {
  readonly hostname: string;
  readonly port: number;
  readonly url: string;
  /**
   * Refuses new requests with 503, lets those that run end, and aborts what is left after `timeoutSeconds`. Resolves to
   * the number of requests that were aborted. The port stays open until stop(), so that the refusals can be read.
   */
  drain(timeoutSeconds: number): Promise<number>;
  /** Closes the port, and every connection once its answer is written, a second later at the most. */
  stop(): Promise<void>;
}

/** A certificate chain and its private key, in PEM. */
export interface Certificate {
  cert: string;
  key: string;
}

/**
 * Listens on hostname:port (port 0: any free one).
 * @throws what Bun.serve throws, with code "EADDRINUSE" where the port is taken
 */
export function serve(
  runtime: RuntimeHolder,
  options: ServerOptions & {
    hostname: string;
    port: number;
    idleTimeoutSeconds?: number;
    /** Speaks HTTPS with it. */
    certificate?: Certificate | null;
  },
): RunningServer {
  const { app, context } = createServer(runtime, options);
  const idleSeconds = options.idleTimeoutSeconds ?? idleTimeout;
  const server = Bun.serve({
    hostname: options.hostname,
    port: options.port,
    development: false,
    tls: options.certificate ?? undefined,
    // Off by itself only in development: a second server on the port must fail, not share it.
    reusePort: false,
    // A stream may be silent for as long as a prompt is computed; readers that stall are cut off in event-stream.ts.
    fetch: (request, server) =>
      app.fetch(request, {
        untimed: () => server.timeout(request, 0),
        timed: () => server.timeout(request, idleSeconds),
      }),
    idleTimeout: idleSeconds,
    // body.ts enforces the limit: here it would end in an answer without a reason.
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
  });
  return {
    app,
    context,
    hostname: options.hostname,
    port: server.port as number,
    url: server.url.href,
    drain: (timeoutSeconds) => context.drain(timeoutSeconds),
    stop: async () => {
      await Promise.race([server.stop(), Bun.sleep(1000)]);
      await server.stop(true);
    },
  };
}
