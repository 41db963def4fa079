/** Every route: what it takes, and each status that it answers with. */
import type { z } from "zod";
import {
  abortSchema,
  chatSchema,
  completionSchema,
  detokenizeSchema,
  generateSchema,
  tokenizeSchema,
} from "../schemas.ts";
import * as responses from "./responses.ts";

export interface Operation {
  path: string;
  methods: readonly ("get" | "post")[];
  tag: "Generation" | "Tokens" | "Models" | "Health" | "Load" | "Administration" | "Documentation";
  summary: string;
  /** The body, by the name of its schema. */
  request?: string;
  /** A body that the server answers with 200. */
  example?: object;
  /** The answers with 200: by media type, the name of the schema, or null for text. */
  answers: Record<string, string | null>;
  /** What the events of a stream are. */
  events?: string;
  /** The statuses of errors, besides 401. */
  errors: readonly ErrorStatus[];
}

/** Statuses other than 200, and when they are answered. */
export const errors = {
  400: "A field, or the body, is not as it must be.",
  401: "The API key is missing or wrong.",
  404: "There is no such model.",
  413: "The body is too large.",
  429: "The queue is full.",
  500: "The server failed; its log tells more.",
  503: "The model is loading, the server is shutting down, or the request took too long.",
};
export type ErrorStatus = keyof typeof errors;

export const requestSchemas: Record<string, z.ZodType> = {
  ChatCompletionRequest: chatSchema,
  CompletionRequest: completionSchema,
  GenerateRequest: generateSchema,
  TokenizeRequest: tokenizeSchema,
  DetokenizeRequest: detokenizeSchema,
  AbortRequest: abortSchema,
};

export const responseSchemas: Record<string, z.ZodType> = {
  Error: responses.error,
  ChatCompletion: responses.chatCompletion,
  ChatCompletionChunk: responses.chatCompletionChunk,
  Completion: responses.completion,
  CompletionChunk: responses.completionChunk,
  Generation: responses.generation,
  GenerationSnapshot: responses.generationSnapshot,
  Tokens: responses.tokenized,
  Text: responses.detokenized,
  Models: responses.models,
  Model: responses.model,
  ModelInfo: responses.modelInfo,
  ServerInfo: responses.serverInfo,
  Loads: responses.loads,
  Status: responses.status,
  Version: responses.versionInfo,
  Server: responses.server,
  Flushed: responses.flushed,
  Aborted: responses.aborted,
};

const json = (schema: string) => ({ "application/json": schema });
const stream = { "text/event-stream": null };
const ready: readonly ErrorStatus[] = [500, 503];
const withBody: readonly ErrorStatus[] = [400, 413, ...ready];
const generation: readonly ErrorStatus[] = [400, 404, 413, 429, ...ready];

/** A GET of one JSON answer that needs the runtime. */
const inquiry = (path: string, tag: Operation["tag"], summary: string, schema: string): Operation => ({
  path,
  methods: ["get"],
  tag,
  summary,
  answers: json(schema),
  errors: ready,
});

/** A POST of one JSON body. */
const command = (
  path: string,
  tag: Operation["tag"],
  summary: string,
  request: string,
  answers: Operation["answers"],
  errors: readonly ErrorStatus[],
): Operation => ({ path, methods: ["post"], tag, summary, request, answers, errors });

export const operations: readonly Operation[] = [
  {
    ...command(
      "/v1/chat/completions",
      "Generation",
      "Answers a conversation",
      "ChatCompletionRequest",
      { ...json("ChatCompletion"), ...stream },
      generation,
    ),
    example: {
      messages: [{ role: "user", content: "What is the capital of France?" }],
      max_tokens: 32,
      temperature: 0,
    },
    events: "ChatCompletionChunk",
  },
  {
    ...command(
      "/v1/completions",
      "Generation",
      "Continues prompts",
      "CompletionRequest",
      { ...json("Completion"), ...stream },
      generation,
    ),
    example: { prompt: "The capital of France is", max_tokens: 16, temperature: 0 },
    events: "CompletionChunk",
  },
  {
    ...command(
      "/generate",
      "Generation",
      "Continues prompts, in SGLang's native shape",
      "GenerateRequest",
      { ...json("Generation"), ...stream },
      [400, 413, 429, ...ready],
    ),
    example: { text: "The capital of France is", sampling_params: { max_new_tokens: 16, temperature: 0 } },
    events: "GenerationSnapshot",
  },
  {
    ...command("/tokenize", "Tokens", "Text or messages as token ids", "TokenizeRequest", json("Tokens"), [
      404,
      ...withBody,
    ]),
    example: { prompt: "The capital of France is" },
  },
  {
    ...command("/detokenize", "Tokens", "Token ids as text", "DetokenizeRequest", json("Text"), withBody),
    example: { tokens: [1, 2, 3] },
  },
  inquiry("/v1/models", "Models", "The names of the model", "Models"),
  { ...inquiry("/v1/models/{name}", "Models", "One of them", "Model"), errors: [404, ...ready] },
  inquiry("/model_info", "Models", "What model is served", "ModelInfo"),
  inquiry("/get_model_info", "Models", "The older name of /model_info", "ModelInfo"),
  inquiry("/health", "Health", "Whether a token could be made", "Status"),
  inquiry("/health_generate", "Health", "Makes a token", "Status"),
  { ...inquiry("/ping", "Health", "Whether the process answers", "Status"), errors: [] },
  { ...inquiry("/version", "Health", "The version", "Version"), errors: [] },
  {
    ...inquiry("/metrics", "Load", "Prometheus metrics, under vLLM's and SGLang's names", ""),
    answers: { "text/plain": null },
  },
  inquiry("/v1/loads", "Load", "How busy the server is, in SGLang's shape", "Loads"),
  inquiry("/server_info", "Administration", "Model, device, options and counters", "ServerInfo"),
  inquiry("/get_server_info", "Administration", "The older name of /server_info", "ServerInfo"),
  {
    ...inquiry("/flush_cache", "Administration", "Empties the prefix cache; 400 while requests run", "Flushed"),
    methods: ["get", "post"],
    errors: [400, ...ready],
  },
  {
    ...command("/abort_request", "Administration", "Stops requests", "AbortRequest", json("Aborted"), withBody),
    example: { rid: "chatcmpl-0" },
  },
  {
    ...inquiry("/", "Documentation", "A playground for browsers, the version for others", "Server"),
    answers: { ...json("Server"), "text/html": null },
    errors: [],
  },
  {
    ...inquiry("/openapi.json", "Documentation", "This description", ""),
    answers: { "application/json": null },
    errors: [],
  },
  {
    ...inquiry("/docs", "Documentation", "This description to browse", ""),
    answers: { "text/html": null },
    errors: [],
  },
];
