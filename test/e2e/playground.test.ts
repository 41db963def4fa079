/** The page at `/` in a real browser, over the compiled executable; and its ways of failing, over a server made here. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { FakeRuntime, hello, startServer } from "../unit/support/fake-runtime.ts";
import { Browser, findChromium, type Page } from "./browser.ts";
import { Installation, type TestServer } from "./support.ts";

setDefaultTimeout(60_000);
const chromium = findChromium();
if (chromium === null) {
  console.warn("playground: skipped, there is no Chromium here (Debian's package chromium, or MINISGL_CHROMIUM=path)");
}

const installation = new Installation();
let browser: Browser;

beforeAll(async () => {
  if (chromium !== null) browser = await Browser.launch(chromium);
});
afterAll(async () => {
  await browser?.close();
  await installation.remove();
});

const idle = "document.querySelector('#stop').hidden";
/** Writes a message and sends it with Enter. */
async function say(page: Page, text: string): Promise<void> {
  await page.evaluate("document.querySelector('#input').focus()");
  await page.type(text);
  await page.press("Enter");
}

/** Fills a field of the settings. */
async function set(page: Page, name: string, value: string): Promise<void> {
  await page.evaluate(`document.querySelector("#settings [name=${name}]").focus()`);
  await page.type(value);
}

describe.skipIf(chromium === null)("over the executable", () => {
  let server: TestServer;
  let page: Page;

  beforeAll(async () => {
    server = await installation.serve();
    page = await browser.open(server.url);
  });

  test("it shows the model, and the load as it is", async () => {
    await page.until("document.querySelector('#state').textContent === 'ready'");
    expect(await page.text("#model-name")).toBe("SmolLM2-135M-Instruct.Q4_1.gguf");
    expect(await page.text("#metric-running")).toBe("0");
    expect(await page.text("#metric-kv")).toBe("0%");
  });

  test("Shift+Enter begins a line, Enter sends, and the answer streams with its figures", async () => {
    await set(page, "temperature", "0");
    await set(page, "max_tokens", "40");
    await page.evaluate("document.querySelector('#input').focus()");
    await page.type("What is the capital");
    await page.press("Shift+Enter");
    await page.type("of France?");
    await page.press("Enter");
    await page.until(`${idle} && document.querySelector('.assistant .figures')`);
    expect(await page.text(".user .body")).toBe("What is the capital\nof France?");
    const answer = await server.client.chat.completions.create({
      model: "default",
      messages: [{ role: "user", content: "What is the capital\nof France?" }],
      temperature: 0,
      max_tokens: 40,
    });
    expect(await page.text(".assistant .body")).toBe(answer.choices[0].message.content!.trim());
    const { prompt_tokens, completion_tokens } = answer.usage!;
    const figures = await page.text(".assistant .figures");
    expect(figures).toStartWith(`${prompt_tokens} + ${completion_tokens} tokens`);
    expect(figures).toMatch(/first after \d+\.\d\d s · \d+\.\d tokens\/s/);
  });

  test("the conversation goes along, with the system prompt", async () => {
    await set(page, "system", "Answer in one word.");
    await say(page, "And of Italy?");
    await page.until(`${idle} && document.querySelectorAll('.assistant .figures').length === 2`);
    const [first, second] = (await page.evaluate<string>("sessionStorage['minisgl.messages']").then(JSON.parse)).filter(
      ({ role }: { role: string }) => role === "assistant",
    );
    const answer = await server.client.chat.completions.create({
      model: "default",
      messages: [
        { role: "system", content: "Answer in one word." },
        { role: "user", content: "What is the capital\nof France?" },
        { role: "assistant", content: first.content },
        { role: "user", content: "And of Italy?" },
      ],
      temperature: 0,
      max_tokens: 40,
    });
    expect(second.content).toBe(answer.choices[0].message.content);
  });

  test("Stop ends the answer on both sides and keeps what was said; the load shows it running", async () => {
    await page.evaluate("document.querySelector('#settings [name=max_tokens]').value = '2000'");
    // What was said becomes the likeliest to be said again: this does not end by itself.
    await page.evaluate("document.querySelector('#settings [name=frequency_penalty]').value = '-2'");
    await say(page, "Write a very long story.");
    await page.until("document.querySelector('#metric-running').textContent === '1'");
    await page.until("Number(document.querySelector('#metric-throughput').textContent) > 0");
    await page.until("document.querySelector('article:last-of-type .body').textContent.length > 20");
    await page.click("#stop");
    await page.until(idle);
    await server.untilIdle();
    expect(await page.text("article:last-of-type .figures")).toStartWith("stopped · ");
    expect((await page.text("article:last-of-type .body")).length).toBeGreaterThan(20);
  });

  test("what was said and set is there after a reload, and gone in a new tab", async () => {
    await page.go(server.url);
    await page.until("document.querySelectorAll('article').length === 6");
    expect(await page.evaluate<string>("document.querySelector('#settings [name=system]').value")).toBe(
      "Answer in one word.",
    );
    const other = await browser.open(server.url);
    expect(await other.evaluate<number>("document.querySelectorAll('article').length")).toBe(0);
  });

  test("nothing is asked of another host, and the browser has nothing to complain of", async () => {
    expect(page.complaints).toEqual([]);
    const hosts = page.requests.filter((url) => !url.startsWith("data:")).map((url) => new URL(url).origin);
    expect([...new Set(hosts)]).toEqual([server.url]);
  });

  test("on a phone nothing is wider than the screen, and the settings open and close", async () => {
    const phone = await browser.open(server.url, { width: 360, height: 640, dark: true });
    await phone.until("document.querySelector('#state').textContent === 'ready'");
    const tooWide = `[...document.querySelectorAll("body *")]
      .filter((element) => element.getBoundingClientRect().right > innerWidth + 0.5)
      .map((element) => element.outerHTML.slice(0, 80))`;
    expect(await phone.evaluate<string[]>(tooWide)).toEqual([]);
    await phone.click("#toggle-settings");
    await phone.until("document.querySelector('#api-key').getBoundingClientRect().width > 200");
    expect(await phone.evaluate<string[]>(tooWide)).toEqual([]);
    await set(phone, "max_tokens", "4");
    await phone.click("#toggle-settings");
    await say(phone, "Hello");
    await phone.until(`${idle} && document.querySelector('.assistant .figures')`);
    expect(await phone.text(".assistant .figures")).toContain(" + 4 tokens");
    expect(await phone.evaluate<string>("getComputedStyle(document.body).backgroundColor")).toBe("rgb(20, 23, 28)");
  });

  test("every field and button has a name that is read out", async () => {
    const { nodes } = (await page.send("Accessibility.getFullAXTree")) as {
      nodes: { role?: { value: string }; name?: { value: string }; ignored: boolean }[];
    };
    const roles = ["textbox", "button", "spinbutton", "combobox", "log"];
    const controls = nodes.filter(({ ignored, role }) => !ignored && roles.includes(role?.value ?? ""));
    expect(controls.length).toBeGreaterThan(15);
    expect(controls.filter(({ name }) => !name?.value)).toEqual([]);
  });
});

describe.skipIf(chromium === null)("where something is wrong", () => {
  test("a server that wants a key: the page says so, takes it, and keeps it for the tab", async () => {
    const server = startServer(new FakeRuntime(), { apiKeys: ["secret"] });
    const page = await browser.open(server.url);
    await page.until("document.querySelector('#state').textContent === 'wants an API key'");
    await say(page, "hi");
    await page.until("document.querySelector('.error')");
    expect(await page.text(".error")).toContain("this server wants an API key");
    expect(await page.evaluate<string>("document.activeElement.id")).toBe("api-key");
    const asked = page.requests.length;
    await Bun.sleep(1500);
    expect(page.requests).toHaveLength(asked);
    await page.type("secret");
    await page.press("Tab");
    await page.until("document.querySelector('#state').textContent === 'ready'");
    await page.click(".assistant .foot button:last-child");
    await page.until("!document.querySelector('.error')");
    await page.until(idle);
    expect(await page.text(".assistant .body")).toBe("Hello wörld");
    await page.go(server.url);
    expect(await page.evaluate<string>("document.querySelector('#api-key').value")).toBe("secret");
    expect(await page.evaluate<string>("JSON.stringify(localStorage) + document.cookie")).toBe("{}");
    await server.stop();
  });

  test("markup in an answer stays text, and code is set apart", async () => {
    const runtime = new FakeRuntime();
    runtime.script = () => ({
      ...hello,
      pieces: ["<img src=x onerror=alert(1)>", "\n```js\n<b>1</b>\n```\n", "**end**"],
    });
    const server = startServer(runtime);
    const page = await browser.open(server.url);
    await say(page, "<i>hi</i>");
    await page.until(`${idle} && document.querySelector('.assistant .figures')`);
    expect(await page.text(".user .body")).toBe("<i>hi</i>");
    expect(await page.text(".assistant .body")).toContain("<img src=x onerror=alert(1)>");
    expect(await page.text(".assistant pre")).toBe("<b>1</b>");
    expect(await page.text(".assistant strong")).toBe("end");
    expect(page.complaints).toEqual([]);
    await server.stop();
  });

  test("an answer that a lost connection cuts keeps what came, and says so", async () => {
    const runtime = new FakeRuntime();
    runtime.script = () => ({ ...hello, before: (index) => (index === 2 ? new Promise(() => {}) : undefined) });
    const server = startServer(runtime);
    const page = await browser.open(server.url);
    await say(page, "hi");
    await page.until("document.querySelector('.assistant .body')?.textContent === 'Hello'");
    await server.stop();
    await page.until("document.querySelector('.error')");
    expect(await page.text(".error")).toBe("The connection was lost before the answer's end.");
    expect(await page.text(".assistant .body")).toBe("Hello");
  });

  test("a refused field is told with the server's reason, and the next try is good", async () => {
    const server = startServer(new FakeRuntime());
    const page = await browser.open(server.url);
    await set(page, "max_tokens", "100000000");
    await say(page, "hi");
    await page.until("document.querySelector('.error')");
    expect(await page.text(".error")).toBe("longer than the context (HTTP 400)");
    await page.evaluate("document.querySelector('#settings [name=max_tokens]').value = ''");
    await page.click(".assistant .foot button:last-child");
    await page.until(`${idle} && !document.querySelector('.error')`);
    await server.stop();
    await page.until("document.querySelector('#state').textContent === 'unreachable'");
    await say(page, "still there?");
    await page.until("document.querySelector('.error')");
    expect(await page.text(".error")).toBe("The server cannot be reached.");
  });
});
