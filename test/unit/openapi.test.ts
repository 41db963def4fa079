/** The description tells the truth: of the routes, of what is answered, and of what is refused. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { z } from "zod";
import { QueueFull } from "../../src/runtime/types.ts";
import { openApiDocument } from "../../src/server/openapi/document.ts";
import { type ErrorStatus, operations, responseSchemas } from "../../src/server/openapi/operations.ts";
import { events, FakeRuntime, hello, post, startServer } from "./support/fake-runtime.ts";

const runtime = new FakeRuntime();
const server = startServer(runtime, { maxBodyBytes: 4096 });
const loading = startServer(null);
const locked = startServer(runtime, { apiKeys: ["key"], adminKeys: ["admin"] });

beforeEach(() => {
  runtime.calls = [];
  runtime.script = () => hello;
  runtime.flushable = true;
  runtime.thinks = false;
});
afterAll(() => Promise.all([server.stop(), loading.stop(), locked.stop()]));

type Node = Record<string, unknown>;
interface Document {
  paths: Record<string, Record<string, { security: object[]; responses: Node; operationId: string }>>;
  components: { schemas: Record<string, z.core.JSONSchema.JSONSchema>; securitySchemes: Node };
}
const documentOf = async ({ url }: { url: string }, init?: RequestInit) =>
  (await (await fetch(new URL("/openapi.json", url), init)).json()) as Document;

/** Holds a response against what the description says of its route. */
async function conforms(response: Response, path: string): Promise<void> {
  const operation = operations.find((each) => each.path === path)!;
  const type = response.headers.get("content-type")!.split(";")[0];
  expect(response.headers.get("x-request-id")).not.toBeNull();
  if (response.status !== 200) {
    expect([...operation.errors, 401]).toContain(response.status as ErrorStatus);
    expect(type).toBe("application/json");
    responseSchemas.Error.parse(await response.json());
    return;
  }
  expect(Object.keys(operation.answers)).toContain(type);
  const schema = operation.answers[type];
  if (schema !== null) responseSchemas[schema].parse(await response.json());
  else if (type === "text/event-stream") {
    for (const event of await events(response)) responseSchemas[operation.events!].parse(event);
  } else if (type === "application/json") await response.json();
}

const messages = [{ role: "user", content: "hi" }];
const everything = { return_token_ids: true, n: 2, stream_options: { include_usage: true } };

describe("the routes", () => {
  test("are all described, and no others", async () => {
    const { paths } = await documentOf(server);
    const described = Object.entries(paths).flatMap(([path, item]) =>
      Object.keys(item).map((method) => `${method.toUpperCase()} ${path}`),
    );
    const routed = server.app.routes
      .filter(({ method, path }) => method !== "ALL" && !path.startsWith("/docs/"))
      .map(({ method, path }) => `${method} ${path.replace(/:(\w+)\{.*\}/, "{$1}")}`);
    expect(described.sort()).toEqual([...new Set(routed)].sort());
  });

  test("have names of their own", async () => {
    const { paths } = await documentOf(server);
    const names = Object.values(paths).flatMap((item) => Object.values(item).map(({ operationId }) => operationId));
    expect(new Set(names).size).toBe(names.length);
  });

  test("want a key where the server does", async () => {
    const withKey = { headers: { authorization: "Bearer key" } };
    const { paths, components } = await documentOf(locked, withKey);
    expect(Object.keys(components.securitySchemes)).toEqual(["ApiKey", "AdminKey"]);
    for (const [path, item] of Object.entries(paths)) {
      for (const [method, { security, responses }] of Object.entries(item)) {
        const url = new URL(path.replace("{name}", "fake.gguf"), locked.url);
        const { status } = await fetch(url, { method: method.toUpperCase() });
        expect(`${path} ${status === 401}`).toBe(`${path} ${security.length > 0}`);
        expect("401" in responses).toBe(security.length > 0);
        if (JSON.stringify(security) === '[{"AdminKey":[]}]') {
          expect((await fetch(url, { ...withKey, method: method.toUpperCase() })).status).toBe(401);
        }
      }
    }
    expect((await documentOf(server)).components.securitySchemes).toEqual({});
  });

  test("take a key that came twice, and no two keys", async () => {
    const status = async (authorization: string) =>
      (await fetch(new URL("/v1/models", locked.url), { headers: { authorization } })).status;
    expect(await status("Bearer key, Bearer key")).toBe(200);
    expect(await status("Bearer key, Bearer other")).toBe(401);
    expect(await status("Bearer other, Bearer other")).toBe(401);
  });

  test("refer to schemas that are there", () => {
    const document = openApiDocument(server.context);
    const references = [...JSON.stringify(document).matchAll(/"\$ref":"#\/([^"]+)"/g)].map(([, path]) => path);
    expect(references.length).toBeGreaterThan(50);
    for (const reference of references) {
      const target = reference.split("/").reduce<unknown>((at, key) => (at as Node)?.[key], document);
      expect(`${reference} ${typeof target}`).toBe(`${reference} object`);
    }
  });
});

describe("answers are as described", () => {
  const asked: [string, unknown][] = [
    ["/v1/chat/completions", { messages }],
    ["/v1/chat/completions", { messages, ...everything }],
    ["/v1/chat/completions", { messages, ...everything, stream: true }],
    [
      "/v1/chat/completions",
      { messages, stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } },
    ],
    ["/v1/completions", { prompt: ["a", "b"], ...everything, echo: true }],
    ["/v1/completions", { prompt: [1, 2], ...everything, stream: true }],
    ["/v1/chat/completions", { messages, logprobs: true, top_logprobs: 2, prompt_logprobs: 1 }],
    ["/v1/chat/completions", { messages, logprobs: true, stream: true }],
    ["/v1/completions", { prompt: "abc", echo: true, logprobs: 2, prompt_logprobs: 0 }],
    ["/v1/completions", { prompt: "abc", echo: true, logprobs: 2, stream: true }],
    ["/generate", { text: "abc", return_logprob: true, top_logprobs_num: 2, logprob_start_len: 0 }],
    ["/generate", { text: "a" }],
    ["/generate", { text: ["a", "b"], sampling_params: { n: 2 } }],
    ["/generate", { input_ids: [[1], [2]], stream: true }],
    ["/tokenize", { prompt: "abc", return_token_strs: true }],
    ["/tokenize", { prompt: ["abc", "d"], return_token_strs: true }],
    ["/tokenize", { messages }],
    ["/detokenize", { tokens: [104, 105] }],
    ["/detokenize", { tokens: [[104], [105]] }],
    ["/flush_cache", {}],
    ["/abort_request", { abort_all: true }],
  ];
  test.each(asked)("%s %j", async (path, body) => {
    const response = await post(server, path, body);
    expect(response.status).toBe(200);
    await conforms(response, path);
  });

  const examples = operations.filter(({ request }) => request !== undefined);
  test.each(examples.map(({ path, example }) => [path, example] as const))("%s: the example %j", async (path, body) => {
    expect((await post(server, path, body)).status).toBe(200);
  });

  const gets = operations.filter(({ methods }) => methods.includes("get")).map(({ path }) => path);
  test.each(gets)("GET %s, ready and loading", async (path) => {
    const address = path.replace("{name}", "fake.gguf");
    const ready = await fetch(new URL(address, server.url));
    expect(ready.status).toBe(200);
    await conforms(ready, path);
    await conforms(await fetch(new URL(address, loading.url)), path);
  });

  test("chains of thought, whole and streamed", async () => {
    runtime.thinks = true;
    const pieces = ["<think>", "well", "</think>", "yes"];
    runtime.script = () => ({ pieces, tokens: pieces.map((piece) => [...Buffer.from(piece)]), finishReason: "stop" });
    const asked = { messages, stream_options: { include_usage: true } };
    const whole = await post(server, "/v1/chat/completions", asked);
    expect(await whole.clone().text()).toContain('"reasoning_content":"well"');
    await conforms(whole, "/v1/chat/completions");
    await conforms(await post(server, "/v1/chat/completions", { ...asked, stream: true }), "/v1/chat/completions");
  });

  test("a page for browsers at /", async () => {
    await conforms(await fetch(server.url, { headers: { accept: "text/html" } }), "/");
  });

  const bodies = operations.filter(({ request }) => request !== undefined).map(({ path }) => path);
  test.each(bodies)("%s: errors", async (path) => {
    const expected: [Response, number][] = [
      [await post(server, path, "{"), 400],
      [await post(server, path, { text: "x".repeat(5000) }), 413],
      [await post(loading, path, {}), path === "/abort_request" ? 400 : 503],
      [await post(locked, path, {}), 401],
    ];
    for (const [response, status] of expected) {
      expect(response.status).toBe(status);
      await conforms(response, path);
    }
  });

  test("an unknown model, a full queue, a busy cache", async () => {
    await conforms(await post(server, "/v1/completions", { prompt: "a", model: "b" }), "/v1/completions");
    await conforms(await fetch(new URL("/v1/models/b", server.url)), "/v1/models/{name}");
    runtime.script = () => {
      throw new QueueFull("full");
    };
    const full = await post(server, "/v1/completions", { prompt: "a" });
    expect(full.status).toBe(429);
    await conforms(full, "/v1/completions");
    runtime.flushable = false;
    await conforms(await post(server, "/flush_cache", {}), "/flush_cache");
  });
});

describe("requests are as described", () => {
  const chat = (fields: object) => ["/v1/chat/completions", "ChatCompletionRequest", { messages, ...fields }] as const;
  const completion = (fields: object) => ["/v1/completions", "CompletionRequest", { prompt: "a", ...fields }] as const;
  const given = [
    chat({}),
    chat({ temperature: null, stop: null, stream_options: null, unknown: 1, max_tokens: 5, user: "me" }),
    chat({ temperature: 2.1 }),
    chat({ temperature: "1" }),
    chat({ top_p: 0 }),
    chat({ top_k: 1.5 }),
    chat({ stop: "a" }),
    chat({ stop: ["a", "b"] }),
    chat({ stop: [] }),
    chat({ stop: "" }),
    chat({ stop: [1] }),
    chat({ stop: new Array(65).fill("a") }),
    chat({ stop_token_ids: [1, -1] }),
    chat({ seed: 1.5 }),
    chat({ seed: -3 }),
    chat({ n: 0 }),
    chat({ n: 3 }),
    chat({ max_tokens: 0 }),
    chat({ messages: [] }),
    chat({ messages: [{ role: "robot", content: "a" }] }),
    chat({ messages: [{ role: "user", content: [{ type: "text", text: "a" }] }] }),
    chat({ messages: [{ role: "user", content: 1 }] }),
    chat({ stream_options: { include_usage: "yes" } }),
    chat({ chat_template_kwargs: [] }),
    completion({ prompt: ["a", "b"] }),
    completion({ prompt: [1, 2] }),
    completion({ prompt: [[1, 2], [3]] }),
    completion({ prompt: {} }),
    completion({ prompt: null }),
    completion({ prompt: "" }),
    completion({ prompt: [] }),
    completion({ logit_bias: { 1: 5, 2: -5 } }),
    completion({ logit_bias: { a: 5 } }),
    completion({ logit_bias: { 1: 101 } }),
    completion({ logprobs: 21 }),
    chat({ logprobs: 1 }),
    chat({ repetition_penalty: 0 }),
    completion({ prompt: [1.5] }),
    completion({ echo: 1 }),
    ["/generate", "GenerateRequest", { text: "a", sampling_params: { max_new_tokens: 0 } }] as const,
    ["/generate", "GenerateRequest", { input_ids: [1], sampling_params: { max_new_tokens: 3, seed: 1 } }] as const,
    ["/tokenize", "TokenizeRequest", { prompt: ["a"] }] as const,
    ["/tokenize", "TokenizeRequest", { prompt: 1 }] as const,
    ["/detokenize", "DetokenizeRequest", { tokens: [1] }] as const,
    ["/detokenize", "DetokenizeRequest", { tokens: "a" }] as const,
    ["/abort_request", "AbortRequest", { rid: "a" }] as const,
    ["/abort_request", "AbortRequest", { rid: 1 }] as const,
  ];
  test("bodies that the schema takes are answered, others refused", async () => {
    const { components } = await documentOf(server);
    const verdicts = [];
    for (const [path, name, body] of given) {
      const described = z.fromJSONSchema(components.schemas[name]).safeParse(body).success;
      const { status } = await post(server, path, body);
      expect(`${path} ${JSON.stringify(body).slice(0, 80)} ${status === 200}`).toEndWith(String(described));
      verdicts.push(described);
    }
    expect(new Set(verdicts)).toEqual(new Set([true, false]));
  });

  test("every field has a sentence", async () => {
    const { components } = await documentOf(server);
    const mute = Object.entries(components.schemas)
      .filter(([name]) => name.endsWith("Request"))
      .flatMap(([name, { properties }]) =>
        Object.entries(properties!).map(([field, schema]) => [`${name}.${field}`, (schema as Node).description]),
      )
      .filter(([, description]) => typeof description !== "string");
    expect(mute).toEqual([]);
  });
});

describe("/docs", () => {
  test("comes from this server alone", async () => {
    const response = await fetch(new URL("/docs", server.url));
    const page = await response.text();
    expect(page).not.toMatch(/https?:/);
    for (const [, path] of page.matchAll(/(?:src|href)="(docs\/[^"]+)"/g)) {
      const asset = await fetch(new URL(path, response.url));
      expect(asset.headers.get("content-type")).toMatch(/^text\/(css|javascript)/);
      expect((await asset.text()).length).toBeGreaterThan(100_000);
    }
  });

  test("takes the key as a browser's password, which no other route does", async () => {
    const browser = { headers: { authorization: `Basic ${btoa("anybody:key")}` } };
    for (const path of ["/docs", "/docs/swagger-ui.js", "/openapi.json"]) {
      const url = new URL(path, locked.url);
      expect((await fetch(url)).headers.get("www-authenticate")).toStartWith("Basic ");
      expect((await fetch(url, browser)).status).toBe(200);
      expect((await fetch(url, { headers: { authorization: `Basic ${btoa("key:")}` } })).status).toBe(401);
    }
    const models = await fetch(new URL("/v1/models", locked.url), browser);
    expect(models.status).toBe(401);
    expect(models.headers.get("www-authenticate")).toBe("Bearer");
  });
});
