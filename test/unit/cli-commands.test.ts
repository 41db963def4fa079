/** The commands over a runtime that answers from a script, and the keyboard's way to them. */
import { afterAll, beforeEach, describe, expect, spyOn, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UserError } from "../../src/cli/errors.ts";
import { describeSpeed, describeTotal, generate, prepareJob, readPrompts } from "../../src/cli/generate.ts";
import { Conversation } from "../../src/cli/shell.ts";
import { KeyFilter } from "../../src/cli/terminal.ts";
import { FakeRuntime, hello } from "./support/fake-runtime.ts";

const folder = mkdtempSync(join(tmpdir(), "minisgl-cli-"));
const runtime = new FakeRuntime();
const never = new AbortController().signal;
beforeEach(() => {
  runtime.calls = [];
  runtime.script = () => hello;
  runtime.hasChatTemplate = true;
});
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

describe("prompts of a file", () => {
  test("are the lines of a text, empty ones left out", () => {
    expect(readPrompts(file("a.txt", "one\r\n\n two \n"), false)).toEqual([{ text: "one" }, { text: " two " }]);
  });

  test("are the records of a .jsonl", () => {
    const message = { role: "user", content: "hi" };
    const lines = ['"one"', '{"prompt": "two"}', '{"tokens": [1, 2]}', JSON.stringify({ messages: [message] })];
    expect(readPrompts(file("a.jsonl", lines.join("\n")), false)).toEqual([
      { text: "one" },
      { text: "two" },
      { tokens: [1, 2] },
      { messages: [message] },
    ]);
  });

  test("become messages with --chat", () => {
    expect(readPrompts(file("b.txt", "hi"), true)).toEqual([{ messages: [{ role: "user", content: "hi" }] }]);
  });

  test.each(["{", "1", "null", "{}", '{"tokens": ["a"]}', '{"messages": []}', '{"messages": [{"role": "user"}]}'])(
    "%s is refused with its line",
    (line) => {
      expect(() => readPrompts(file("c.jsonl", `"fine"\n\n${line}\n`), false)).toThrow(/c\.jsonl:3: expected/);
    },
  );

  test("are UTF-8, with a byte order mark or without", () => {
    expect(readPrompts(file("e.jsonl", '\ufeff"ö"'), false)).toEqual([{ text: "ö" }]);
    expect(() => readPrompts(file("f.txt", Uint8Array.of(0xff, 0xfe)), false)).toThrow("f.txt is not a text in UTF-8");
  });

  test("that is missing or empty is an error of the user", () => {
    expect(() => readPrompts(join(folder, "none.txt"), false)).toThrow(UserError);
    expect(() => readPrompts(file("d.txt", "\n\n"), false)).toThrow("holds no prompts");
  });
});

describe("generate", () => {
  const read = (path: string) =>
    readFileSync(path, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));

  test("writes one answer as it is", async () => {
    const output = join(folder, "answer.txt");
    await generate(runtime, await prepareJob("hi", { output }), { temperature: 0 }, never);
    expect(readFileSync(output, "utf8")).toBe("Hello wörld");
    expect(runtime.calls[0]).toMatchObject({ prompt: { text: "hi" }, parameters: { temperature: 0 } });
  });

  test("answers a file in its order, however the answers come", async () => {
    const prompts = file("many.txt", Array.from({ length: 20 }, (_, index) => `p${index}`).join("\n"));
    const output = join(folder, "many.jsonl");
    runtime.script = (prompt) => {
      const wait = prompt === "p0" ? 30 : 0;
      return { ...hello, pieces: [prompt, "!"], before: () => Bun.sleep(wait), cachedTokens: 1 };
    };
    await generate(runtime, await prepareJob(undefined, { prompts, output }), {}, never);
    const lines = read(output);
    expect(lines.map(({ index, text }) => [index, text])).toEqual(lines.map((_, index) => [index, `p${index}!`]));
    expect(lines).toHaveLength(20);
    expect(lines[12]).toEqual({
      index: 12,
      text: "p12!",
      tokens: [0, 1],
      finish_reason: "stop",
      prompt_tokens: 3,
      cached_tokens: 1,
      completion_tokens: 2,
    });
  });

  test("tells which prompts failed and answers the others", async () => {
    const prompts = file("bad.jsonl", '"one"\n{"tokens": [999]}\n"three"');
    const output = join(folder, "bad.out");
    const job = await prepareJob(undefined, { prompts, output });
    await expect(generate(runtime, job, {}, never)).rejects.toThrow("1 of 3 prompts failed");
    const lines = read(output);
    expect(lines.map(({ text }) => text)).toEqual(["Hello wörld", undefined, "Hello wörld"]);
    expect(lines[1]).toEqual({ index: 1, error: "token id 999 is not within the vocabulary" });
  });
});

test.each([
  ["two\nlines\n", "two\nlines"],
  ["blank\r\n\r\n", "blank\r\n"],
  ["none", "none"],
])("standard input %j is the prompt %j", async (input, text) => {
  const stdin = spyOn(Bun.stdin, "text").mockResolvedValue(input);
  try {
    expect((await prepareJob("-", {})).prompts).toEqual([{ text }]);
    expect((await prepareJob(undefined, {})).prompts).toEqual([{ text }]);
    stdin.mockResolvedValue("\n");
    await expect(prepareJob("-", { chat: true })).rejects.toThrow("the prompt is empty");
  } finally {
    stdin.mockRestore();
  }
});

test("the speed of a file of prompts counts all its answers", async () => {
  const job = await prepareJob(undefined, {
    prompts: file("speed.txt", "one\nthree"),
    output: join(folder, "speed.jsonl"),
    stats: true,
  });
  const write = spyOn(process.stderr, "write").mockImplementation(() => true);
  try {
    await generate(runtime, job, {}, never);
    expect(write.mock.calls.join("")).toMatch(
      /^8 prompt tokens \(0 cached\), 6 tokens in \d+\.\d\d s, [\d.]+ a second\n$/,
    );
  } finally {
    write.mockRestore();
  }
  expect(describeTotal({ promptTokens: 12, cachedTokens: 3, completionTokens: 34 }, 0.5)).toBe(
    "12 prompt tokens (3 cached), 34 tokens in 0.50 s, 68.0 a second",
  );
});

test("an output that cannot be written is told before a model is loaded", async () => {
  await expect(prepareJob("hi", { output: join(folder, "none", "x") })).rejects.toThrow("cannot write the answers");
});

test("speed is that of the tokens after the first", () => {
  const answer = { promptTokens: [1, 2, 3], cachedTokens: 2, completionTokens: 11 };
  expect(describeSpeed(answer, 1000, 1500, 2500)).toBe(
    "3 prompt tokens (2 cached), 11 tokens at 10.0 a second, the first after 0.50 s",
  );
});

describe("a conversation", () => {
  let output = "";
  const start = (flags = {}) => {
    output = "";
    return new Conversation(runtime, flags, {}, (text) => {
      output += text;
    });
  };
  const messages = () => (runtime.calls.at(-1)!.prompt as { messages: { role: string; content: string }[] }).messages;

  test("sends what was said before", async () => {
    const conversation = start({ system: "be kind" });
    await conversation.handle("one", never);
    await conversation.handle("two\nlines", never);
    expect(output).toBe("Hello wörld\nHello wörld\n");
    expect(messages().slice(0, 4)).toEqual([
      { role: "system", content: "be kind" },
      { role: "user", content: "one" },
      { role: "assistant", content: "Hello wörld" },
      { role: "user", content: "two\nlines" },
    ]);
  });

  test("starts anew with /reset, and keeps the system message", async () => {
    const conversation = start({ system: "be kind" });
    await conversation.handle("one", never);
    await conversation.handle("/reset", never);
    await conversation.handle("two", never);
    expect(
      messages()
        .slice(0, 2)
        .map(({ content }) => content),
    ).toEqual(["be kind", "two"]);
  });

  test("keeps the part of an answer that was stopped", async () => {
    const abort = new AbortController();
    runtime.script = () => ({
      ...hello,
      before: (index) => (index === 2 ? Promise.resolve(abort.abort()) : undefined),
    });
    const conversation = start();
    expect(await conversation.handle("one", abort.signal)).toBe(true);
    runtime.script = () => hello;
    await conversation.handle("two", never);
    expect(
      messages()
        .map(({ content }) => content)
        .slice(0, 3),
    ).toEqual(["one", "Hello", "two"]);
  });

  test("forgets a message that was refused", async () => {
    const conversation = start();
    await conversation.handle("x".repeat(5000), never);
    expect(output).toContain("longer than the context");
    await conversation.handle("two", never);
    expect(messages()[0]).toEqual({ role: "user", content: "two" });
  });

  test("obeys commands, and only /exit and /quit end it", async () => {
    const conversation = start();
    expect(await conversation.handle("/help", never)).toBe(true);
    expect(output).toContain("/reset");
    expect(await conversation.handle("/bogus", never)).toBe(true);
    expect(output).toContain("unknown command /bogus");
    await conversation.handle("/stats", never);
    expect(output).toContain("no answer yet");
    await conversation.handle("  ", never);
    expect(runtime.calls).toHaveLength(0);
    await conversation.handle("/usr/bin is a folder", never);
    expect(runtime.calls).toHaveLength(1);
    expect(await conversation.handle("/exit", never)).toBe(false);
    expect(await conversation.handle(" /quit ", never)).toBe(false);
  });

  test("shows tokens per second with --stats", async () => {
    await start({ stats: true }).handle("one", never);
    expect(output).toMatch(/\n\[\d+ prompt tokens \(0 cached\), 3 tokens at [\d.]+ a second, .*\]\n$/);
  });

  test("tells when an answer was cut", async () => {
    runtime.script = () => ({ ...hello, finishReason: "length" });
    await start().handle("one", never);
    expect(output).toBe("Hello wörld\n[The answer ends at its limit of tokens.]\n");
  });

  test("joins messages where there is no chat template", async () => {
    runtime.hasChatTemplate = false;
    const conversation = start();
    await conversation.handle("one", never);
    await conversation.handle("two", never);
    expect(runtime.calls[1]?.prompt).toEqual({ text: "one\nHello wörld\ntwo" });
  });
});

describe("keys", () => {
  /** What reaches the line editor when these chunks are typed. */
  async function typed(...chunks: string[]): Promise<string> {
    const filter = new KeyFilter();
    let text = "";
    filter.on("data", (chunk: string) => {
      text += chunk;
    });
    for (const chunk of chunks) filter.write(chunk);
    await Bun.sleep(0);
    return text;
  }

  test("newlines within a paste do not send the message, however it is cut", async () => {
    const whole = "a\x1b[200~one\r\ntwo\nthree\x1b[201~b\r";
    const expected = "aone\u2424two\u2424threeb\r";
    expect(await typed(whole)).toBe(expected);
    for (let cut = 1; cut < whole.length; cut++) {
      // Not between a carriage return and its newline, nor after the first escape, which alone is a key.
      if (whole[cut - 1] === "\r" || cut === whole.indexOf("\x1b") + 1) continue;
      expect(await typed(whole.slice(0, cut), whole.slice(cut))).toBe(expected);
    }
  });

  test("an escape and arrows pass at once", async () => {
    expect(await typed("\x1b")).toBe("\x1b");
    expect(await typed("\x1b[A")).toBe("\x1b[A");
  });

  test("wait while an answer is written, but for Ctrl-C, which drops them", async () => {
    const filter = new KeyFilter();
    let text = "";
    let interrupts = 0;
    filter.on("data", (chunk: string) => {
      text += chunk;
    });
    filter.onInterrupt = () => interrupts++;
    filter.busy = true;
    filter.write("next\r");
    await Bun.sleep(0);
    expect(text).toBe("");
    filter.busy = false;
    await Bun.sleep(0);
    expect(text).toBe("next\r");
    filter.busy = true;
    filter.write("dropped");
    filter.write("\x03");
    await Bun.sleep(0);
    filter.busy = false;
    await Bun.sleep(0);
    expect(text).toBe("next\r");
    expect(interrupts).toBe(1);
    filter.write("\x03");
    await Bun.sleep(0);
    expect(text).toBe("next\r\x03");
  });
});
