/** The clients that people have, unchanged: each completes, streams, counts tokens and understands a refusal. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import type { BaseMessageChunk } from "@langchain/core/messages";
import { ChatOpenAI, OpenAI as CompletionOpenAI } from "@langchain/openai";
import { generateText, type LanguageModel, streamText } from "ai";
import OpenAI, { BadRequestError } from "openai";
import { PythonPackages } from "./python.ts";
import { Installation, type TestServer } from "./support.ts";

setDefaultTimeout(120_000);
const python = await PythonPackages.install(["openai==3.57.0"]);
const installation = new Installation();
let server: TestServer;
let baseURL: string;

const model = "smollm";
const question = "What is the capital of France? Answer in one short sentence.";
const messages = [{ role: "user" as const, content: question }];
const prompt = "The capital of France is";
const apiKey = "none";
/** What the server itself says to the question, greedily. */
let expected: { text: string; prompt: number; completion: number };

beforeAll(async () => {
  server = await installation.serve("--served-model-name", model);
  baseURL = `${server.url}/v1`;
  const response = await server.post("/v1/chat/completions", { messages, temperature: 0, max_tokens: 24 });
  const { choices, usage } = (await response.json()) as OpenAI.ChatCompletion;
  expected = {
    text: choices[0].message.content!,
    prompt: usage!.prompt_tokens,
    completion: usage!.completion_tokens,
  };
  expect(expected.text).toContain("Paris");
});
afterAll(() => installation.remove());

describe("npm's openai", () => {
  const chat = { model, messages, temperature: 0, max_tokens: 24 };
  const client = () => new OpenAI({ baseURL, apiKey, maxRetries: 0 });

  test("completes and counts", async () => {
    const answer = await client().chat.completions.create({ ...chat, logprobs: true, top_logprobs: 2 });
    expect(answer.choices[0].message.content).toBe(expected.text);
    expect(answer.usage).toMatchObject({ prompt_tokens: expected.prompt, completion_tokens: expected.completion });
    const { content } = answer.choices[0].logprobs!;
    expect(content!.map(({ token }) => token).join("")).toStartWith(expected.text);
    for (const { token, top_logprobs } of content!) expect(top_logprobs[0].token).toBe(token);
    const { choices } = await client().completions.create({ model, prompt, temperature: 0, max_tokens: 3 });
    expect(choices[0].text).toContain("Paris");
  });

  test("streams with its helper", async () => {
    const stream = client().chat.completions.stream({ ...chat, stream_options: { include_usage: true } });
    let pieces = 0;
    stream.on("content", () => pieces++);
    expect(await stream.finalContent()).toBe(expected.text);
    expect((await stream.totalUsage()).completion_tokens).toBe(expected.completion);
    expect(pieces).toBeGreaterThan(3);
  });

  test("understands a refusal, and lists the model", async () => {
    const refused = await client()
      .chat.completions.create({ ...chat, temperature: -1 })
      .catch((error) => error);
    expect(refused).toBeInstanceOf(BadRequestError);
    expect(refused).toMatchObject({ status: 400, param: "temperature" });
    const names = [];
    for await (const { id } of client().models.list()) names.push(id);
    expect(names).toEqual([model]);
  });
});

test.skipIf(python === null)("PyPI's openai completes, streams, counts and understands a refusal", async () => {
  const { code, output } = await python!.run(join(import.meta.dir, "sdk.py"), baseURL, model);
  expect(`${code === 0 ? "" : output}${code}`).toBe("0");
  const answer = JSON.parse(output);
  const usage = { prompt_tokens: expected.prompt, completion_tokens: expected.completion };
  expect(answer).toMatchObject({ text: expected.text, streamed: expected.text, models: [model] });
  expect(answer.usage).toMatchObject(usage);
  expect(answer.streamed_usage).toMatchObject(usage);
  expect(answer.logprobs).toHaveLength(expected.completion);
  expect(answer.pieces).toBeGreaterThan(3);
  expect(answer.completion).toContain("Paris");
  expect(answer.refused).toMatchObject({ status: 400, param: "temperature" });
});

describe("LangChain.js", () => {
  const configuration = () => ({ baseURL });

  test("completes and counts", async () => {
    const chat = new ChatOpenAI({ model, apiKey, temperature: 0, maxTokens: 24, configuration: configuration() });
    const answer = await chat.invoke([["human", question]]);
    expect(answer.content).toBe(expected.text);
    expect(answer.usage_metadata).toMatchObject({ input_tokens: expected.prompt, output_tokens: expected.completion });
    const legacy = new CompletionOpenAI({
      model,
      apiKey,
      temperature: 0,
      maxTokens: 3,
      configuration: configuration(),
    });
    expect(await legacy.invoke(prompt)).toContain("Paris");
  });

  test("streams", async () => {
    const chat = new ChatOpenAI({ model, apiKey, temperature: 0, maxTokens: 24, configuration: configuration() });
    let whole: BaseMessageChunk | undefined;
    let pieces = 0;
    for await (const chunk of await chat.stream(question)) {
      pieces++;
      whole = whole === undefined ? chunk : whole.concat(chunk);
    }
    expect(whole!.content).toBe(expected.text);
    expect(pieces).toBeGreaterThan(3);
    expect(whole).toMatchObject({ usage_metadata: { output_tokens: expected.completion } });
  });
});

describe("the Vercel AI SDK", () => {
  const providers: [string, () => LanguageModel][] = [
    ["openai-compatible", () => createOpenAICompatible({ name: "minisgl", baseURL, includeUsage: true })(model)],
    ["openai", () => createOpenAI({ baseURL, apiKey }).chat(model)],
  ];

  test.each(providers)("%s completes and counts", async (_, language) => {
    const answer = await generateText({ model: language(), prompt: question, temperature: 0, maxOutputTokens: 24 });
    expect(answer.text).toBe(expected.text);
    expect(answer.finishReason).toBe("stop");
    expect(answer.usage).toMatchObject({ inputTokens: expected.prompt, outputTokens: expected.completion });
  });

  test.each(providers)("%s streams", async (_, language) => {
    const answer = streamText({ model: language(), prompt: question, temperature: 0, maxOutputTokens: 24 });
    let text = "";
    let pieces = 0;
    for await (const piece of answer.textStream) {
      text += piece;
      pieces++;
    }
    expect(text).toBe(expected.text);
    expect(pieces).toBeGreaterThan(3);
    expect(await answer.usage).toMatchObject({ inputTokens: expected.prompt, outputTokens: expected.completion });
  });

  test("understands a refusal", async () => {
    const asked = { model: providers[0][1](), prompt: question, temperature: -1, maxRetries: 0 };
    const refused = await generateText(asked).catch((error) => error);
    expect(refused).toMatchObject({ statusCode: 400, message: expect.stringContaining("temperature must be") });
  });
});
