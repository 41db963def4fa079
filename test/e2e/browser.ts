/** Headless Chromium over its DevTools protocol: as much of it as a person does with a page. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** Path of a Chromium of this machine, or of MINISGL_CHROMIUM; null where there is none. */
export function findChromium(): string | null {
  const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
  const given = process.env.MINISGL_CHROMIUM;
  return given ?? names.map((name) => Bun.which(name)).find((path) => path !== null) ?? null;
}

const flags = [
  "--headless",
  "--remote-debugging-port=0",
  "--no-first-run",
  "--disable-gpu",
  "--disable-quic",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-dev-shm-usage",
];

interface Message {
  id?: number;
  sessionId?: string;
  method?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { message: string };
}

export class Browser {
  private last = 0;
  private readonly waiting = new Map<number, (message: Message) => void>();
  private readonly pages = new Map<string, Page>();

  private constructor(
    private readonly process: Bun.Subprocess,
    private readonly folder: string,
    private readonly socket: WebSocket,
  ) {
    socket.addEventListener("message", ({ data }) => {
      const message = JSON.parse(String(data)) as Message;
      if (message.id !== undefined) this.waiting.get(message.id)?.(message);
      else this.pages.get(message.sessionId ?? "")?.receive(message.method ?? "", message.params ?? {});
    });
  }

  /** Starts a browser with an empty profile. */
  static async launch(path: string): Promise<Browser> {
    const folder = mkdtempSync(join(tmpdir(), "minisgl-browser-"));
    const unboxed = process.getuid?.() === 0 ? ["--no-sandbox"] : [];
    const child = Bun.spawn([path, ...flags, ...unboxed, `--user-data-dir=${folder}`, "about:blank"], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    let output = "";
    let address: string | undefined;
    for await (const text of child.stderr.pipeThrough(new TextDecoderStream())) {
      output += text;
      address = output.match(/DevTools listening on (ws:\S+)/)?.[1];
      if (address !== undefined) break;
    }
    if (address === undefined) throw new Error(`Chromium did not start: ${output}`);
    const socket = new WebSocket(address);
    await new Promise((resolve, reject) => {
      socket.addEventListener("open", resolve);
      socket.addEventListener("error", reject);
    });
    return new Browser(child, folder, socket);
  }

  /** Opens a tab. */
  async open(url: string, { width = 1280, height = 800, dark = false } = {}): Promise<Page> {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.send("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(this, sessionId as string);
    this.pages.set(sessionId as string, page);
    await page.send("Page.enable");
    await page.send("Runtime.enable");
    await page.send("Log.enable");
    await page.send("Network.enable");
    const mobile = width < 600;
    await page.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: mobile ? 2 : 1, mobile });
    const features = [{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }];
    await page.send("Emulation.setEmulatedMedia", { features });
    await page.go(url);
    return page;
  }

  async send(method: string, params: object = {}, sessionId?: string): Promise<Record<string, unknown>> {
    const id = ++this.last;
    const answered = new Promise<Message>((resolve) => this.waiting.set(id, resolve));
    this.socket.send(JSON.stringify({ id, method, params, sessionId }));
    const { result, error } = await answered;
    this.waiting.delete(id);
    if (error !== undefined) throw new Error(`${method}: ${error.message}`);
    return result ?? {};
  }

  async close(): Promise<void> {
    this.socket.close();
    this.process.kill("SIGKILL");
    await this.process.exited;
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

export class Page {
  /** What the browser complained of: uncaught errors, refused scripts and styles, failed requests. */
  readonly complaints: string[] = [];
  /** Addresses of all that was asked for. */
  readonly requests: string[] = [];
  private whenLoaded = (): void => {};

  constructor(
    private readonly browser: Browser,
    private readonly sessionId: string,
  ) {}

  receive(method: string, params: Record<string, unknown>): void {
    if (method === "Runtime.exceptionThrown") this.complaints.push(JSON.stringify(params.exceptionDetails));
    if (method === "Log.entryAdded") this.complaints.push(JSON.stringify(params.entry));
    if (method === "Page.loadEventFired") this.whenLoaded();
    if (method === "Network.requestWillBeSent") this.requests.push((params.request as { url: string }).url);
  }

  send(method: string, params: object = {}): Promise<Record<string, unknown>> {
    return this.browser.send(method, params, this.sessionId);
  }

  /** Opens an address, also the same again; resolves when all of it is loaded. */
  async go(url: string): Promise<void> {
    const loaded = new Promise<void>((resolve) => {
      this.whenLoaded = resolve;
    });
    await this.send("Page.navigate", { url });
    await loaded;
  }

  /** The value of an expression in the page. */
  async evaluate<T>(expression: string): Promise<T> {
    const { result, exceptionDetails } = (await this.send("Runtime.evaluate", {
      expression,
      returnByValue: true,
      awaitPromise: true,
    })) as { result: { value: T }; exceptionDetails?: { exception?: { description?: string } } };
    if (exceptionDetails !== undefined) throw new Error(`${expression}: ${exceptionDetails.exception?.description}`);
    return result.value;
  }

  /** Waits until an expression is true. */
  async until(expression: string, seconds = 20): Promise<void> {
    const deadline = performance.now() + seconds * 1000;
    while (!(await this.evaluate<boolean>(`Boolean(${expression})`))) {
      if (performance.now() > deadline) {
        throw new Error(`never true: ${expression}\n${await this.evaluate<string>("document.body.innerText")}`);
      }
      await Bun.sleep(20);
    }
  }

  /** The text of an element, or of all that match, as it is seen. */
  text(selector: string): Promise<string> {
    const all = `[...document.querySelectorAll(${JSON.stringify(selector)})]`;
    return this.evaluate(`${all}.map((element) => element.innerText).join("\\n")`);
  }

  /** Clicks in the middle of an element, as a mouse does: what lies over it gets the click. */
  async click(selector: string): Promise<void> {
    const element = `document.querySelector(${JSON.stringify(selector)})`;
    await this.evaluate(`${element}.scrollIntoView({ block: "nearest" })`);
    const box = await this.evaluate<{ x: number; y: number; width: number; height: number }>(
      `${element}.getBoundingClientRect().toJSON()`,
    );
    const place = { x: box.x + box.width / 2, y: box.y + box.height / 2, button: "left", clickCount: 1 };
    await this.send("Input.dispatchMouseEvent", { type: "mousePressed", ...place });
    await this.send("Input.dispatchMouseEvent", { type: "mouseReleased", ...place });
  }

  /** Types into what has the focus. */
  async type(text: string): Promise<void> {
    await this.send("Input.insertText", { text });
  }

  /** Presses a key; "Shift+" before it holds that down. */
  async press(name: string): Promise<void> {
    const key = name.replace("Shift+", "");
    const codes: Record<string, number> = { Enter: 13, Escape: 27, Tab: 9 };
    const modifiers = name === key ? 0 : 8;
    const event = { key, code: key, windowsVirtualKeyCode: codes[key], modifiers };
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", text: key === "Enter" ? "\r" : undefined, ...event });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }

  /** Writes what is seen as a PNG. */
  async screenshot(path: string): Promise<void> {
    const { data } = await this.send("Page.captureScreenshot", { format: "png" });
    await Bun.write(path, Buffer.from(data as string, "base64"));
  }
}
