/** Chains of thought apart from answers, however the tags come in. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import type { GenerationEvent } from "../../src/runtime/types.ts";
import { ReasoningSplitter, thoughtAfter } from "../../src/server/reasoning.ts";
import { serve } from "../../src/server/server.ts";
import { events, FakeRuntime, post, startServer } from "./support/fake-runtime.ts";
import { startEcho } from "./support/runtime-fixture.ts";

const runtime = new FakeRuntime();
const server = startServer(runtime);
const messages = [{ role: "user", content: "hi" }];

/** One token a byte, one event a piece. */
const script = (pieces: string[]) => ({
  pieces,
  tokens: pieces.map((piece) => [...Buffer.from(piece)]),
  finishReason: "stop" as const,
});
const bytewise = (text: string) => script([...Buffer.from(text)].map((byte) => String.fromCharCode(byte)));

interface Message {
  content: string | null;
  reasoning_content?: string;
  reasoning?: string;
}
interface Completion {
  choices: { message: Message }[];
  usage: { completion_tokens: number; completion_tokens_details?: { reasoning_tokens: number } };
}
const ask = async (fields: object = {}): Promise<Completion> =>
  (await (await post(server, "/v1/chat/completions", { messages, ...fields })).json()) as Completion;

beforeEach(() => {
  runtime.calls = [];
  runtime.thinks = true;
  runtime.encode = FakeRuntime.prototype.encode;
});
afterAll(() => server.stop());

describe("the splitter", () => {
  const cases: [string, "start" | "opened" | "thought" | "answer", string, string, string][] = [
    ["written by the model", "start", "<think>\nwell\n</think>\n\nyes", "well", "yes"],
    ["no thought", "start", " plain < answer", "", " plain < answer"],
    ["a tag later is text", "start", "say <think> a </think>", "", "say <think> a </think>"],
    ["opened by the prompt", "opened", "\nwell\n</think>\n\nyes </think>", "well", "yes </think>"],
    ["opened by both", "opened", "<think>well</think>yes", "well", "yes"],
    ["an empty thought", "start", "<think>\n\n</think>\n\nyes", "", "yes"],
    ["never closed", "start", "<think>well </thi", "well </thi", ""],
    ["closed, and nothing said", "opened", "well</think>\n", "well", ""],
    ["cut within the first tag", "start", " <thi", "", " <thi"],
    ["almost a closing tag", "opened", "a </thin b </think> c", "a </thin b", "c"],
    ["going on with a thought", "thought", " and on </think> c", " and on", "c"],
    ["going on with an answer", "answer", " <think>x</think>", "", " <think>x</think>"],
  ];
  test.each(cases)("%s", (_, begin, text, reasoning, content) => {
    // In one piece, a character a piece, and cut in two at every place.
    const cuts = [[text], [...text], ...Array.from(text, (_, at) => [text.slice(0, at), text.slice(at)])];
    for (const pieces of cuts) {
      const splitter = new ReasoningSplitter(runtime, begin);
      const parts = pieces.map((text, index) => {
        const finishReason: GenerationEvent["finishReason"] = index === pieces.length - 1 ? "stop" : null;
        return splitter.push({ text, tokens: [...Buffer.from(text)], finishReason });
      });
      expect(parts.map((part) => part.reasoning).join("")).toBe(reasoning);
      expect(parts.map((part) => part.content).join("")).toBe(content);
      const close = text.indexOf("</think>");
      const thinks = begin !== "answer" && splitter.thought;
      expect(splitter.reasoningTokens).toBe(!thinks ? 0 : close < 0 ? text.length : close + 8);
    }
  });

  test("a continued message goes on where it stopped", () => {
    expect(thoughtAfter("<think>so far")).toBe("thought");
    expect(thoughtAfter("<think>done</think> yes")).toBe("answer");
    expect(thoughtAfter("yes")).toBe("answer");
  });
});

/** The echo model answers with its own prompt, one byte a token: with what the user said, then, thoughts included. */
describe("over a runtime with tokenizer and template", () => {
  const template = (end: string) =>
    `{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}${end}{% endif %}`;
  const cases: [string, string, { content: string | null; reasoning_content?: string }][] = [
    ["|<think>\n", "wéll</think> yés", { reasoning_content: "wéll", content: "yés|<think>\n" }],
    ["{# </think> #}", "<think>wéll</think>yés", { reasoning_content: "wéll", content: "yés" }],
    ["<think>\n\n</think>\n\n", "yés", { content: "yés<think>\n\n</think>\n\n" }],
    ["", "<think>a</think>b", { content: "<think>a</think>b" }],
  ];
  test.each(cases)("a template that ends with %j, and %j", async (end, said, message) => {
    const runtime = await startEcho({}, { template: template(end) });
    const echo = serve(() => runtime, { hostname: "127.0.0.1", port: 0 });
    const max_tokens = Buffer.byteLength(said + end.replace(/\{#.*#\}/, ""));
    const body = { messages: [{ role: "user", content: said }], max_tokens };
    const answer = (await (await post(echo, "/v1/chat/completions", body)).json()) as Completion;
    expect(answer.choices[0].message).toMatchObject(message);
    expect("reasoning_content" in answer.choices[0].message).toBe("reasoning_content" in message);
    await echo.stop();
    await runtime.stop();
  });
});

describe("chat", () => {
  test("the thought comes under both names, and its tokens are counted", async () => {
    runtime.script = () => bytewise("<think>\nwell\n</think>\n\nyes");
    const { choices, usage } = await ask();
    expect(choices[0].message).toMatchObject({ content: "yes", reasoning_content: "well", reasoning: "well" });
    expect(usage.completion_tokens_details).toEqual({ reasoning_tokens: "<think>\nwell\n</think>".length });
  });

  test("a prompt that ends with <think> is in a thought from the start", async () => {
    runtime.encode = async () => [...Buffer.from("Assistant: <think>\n")];
    runtime.script = () => bytewise("well</think>yes");
    expect((await ask()).choices[0].message).toMatchObject({ content: "yes", reasoning_content: "well" });
    runtime.encode = async () => [...Buffer.from("Assistant: <think>\n\n</think>\n\n")];
    runtime.script = () => bytewise("yes");
    expect((await ask()).choices[0].message).toEqual({ role: "assistant", content: "yes", refusal: null } as never);
  });

  test("a thought that is all there is leaves no content", async () => {
    runtime.script = () => bytewise("<think>wel");
    expect((await ask()).choices[0].message).toMatchObject({ content: null, reasoning_content: "wel" });
  });

  test("streams tell thought and answer apart, for each choice", async () => {
    runtime.script = (_, choice) => bytewise(choice === 0 ? "<think>\nab\n</think>\n\nyes" : "no thought");
    type Chunk = { choices: { index: number; delta: Partial<Message> }[]; usage?: Completion["usage"] };
    const body = { messages, n: 2, stream: true, stream_options: { include_usage: true } };
    const chunks = await events<Chunk>(await post(server, "/v1/chat/completions", body));
    const texts = [0, 1].map((choice) => {
      const deltas = chunks.flatMap(({ choices }) => choices.filter(({ index }) => index === choice));
      const join = (field: keyof Message) => deltas.map(({ delta }) => delta[field] ?? "").join("");
      return [join("reasoning_content"), join("reasoning"), join("content")];
    });
    expect(texts).toEqual([
      ["ab", "ab", "yes"],
      ["", "", "no thought"],
    ]);
    expect(chunks.at(-1)!.usage!.completion_tokens_details).toEqual({
      reasoning_tokens: "<think>\nab\n</think>".length,
    });
  });

  test("separate_reasoning: false leaves the text as it is, include_reasoning: false drops the thought", async () => {
    runtime.script = () => bytewise("<think>well</think>yes");
    const whole = await ask({ separate_reasoning: false });
    expect(whole.choices[0].message.content).toBe("<think>well</think>yes");
    expect(whole.usage).not.toHaveProperty("completion_tokens_details");
    const dropped = (await ask({ include_reasoning: false })).choices[0].message;
    expect(dropped.content).toBe("yes");
    expect(dropped).not.toHaveProperty("reasoning_content");
  });

  test("models whose template knows no thought may say what they like", async () => {
    runtime.thinks = false;
    runtime.script = () => bytewise("<think>well</think>yes");
    const { choices, usage } = await ask();
    expect(choices[0].message.content).toBe("<think>well</think>yes");
    expect(usage).not.toHaveProperty("completion_tokens_details");
  });

  test("earlier thoughts reach the template under either name", async () => {
    const thoughts = [
      { role: "assistant", content: "yes", reasoning: "well" },
      { role: "assistant", content: "no", reasoning_content: "hm" },
    ];
    await ask({ messages: [...messages, ...thoughts, ...messages] });
    expect(runtime.calls[0].prompt).toMatchObject({
      messages: [{}, { reasoning_content: "well" }, { reasoning_content: "hm" }, {}],
    });
  });
});
