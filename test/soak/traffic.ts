/** What the soak sends: random requests of every kind, and what must come of each. */
import { connect } from "node:net";

/** Draws of a seeded generator (xorshift32). */
export class Random {
  constructor(private state: number) {
    this.state = state | 1;
  }

  /** 0 .. 1. */
  next(): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return (this.state >>> 0) / 2 ** 32;
  }

  /** An integer, bounds included. */
  integer(least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1));
  }

  pick<T>(values: readonly T[]): T {
    return values[this.integer(0, values.length - 1)];
  }

  chance(share: number): boolean {
    return this.next() < share;
  }
}

type Body = Record<string, unknown>;
type Endpoint = "/v1/chat/completions" | "/v1/completions" | "/generate";

/** Openings that many prompts share, so that the prefix cache has work. */
const openings = ["Once upon a time ", "You are a helpful assistant. ".repeat(3), "A list of words: one, two, three, "];

function text(random: Random): string {
  const length = random.chance(0.05) ? random.integer(200, 320) : random.integer(1, 60);
  const letters = Array.from({ length }, () => String.fromCharCode(random.integer(32, 126))).join("");
  return random.chance(0.5) ? random.pick(openings) + letters : letters;
}

/** Fields that may stand in any request; each is left out more often than not. */
function sampling(random: Random): Body {
  const fields: Body = { ignore_eos: random.chance(0.5) };
  const maybe = (name: string, value: () => unknown) => {
    if (random.chance(0.25)) fields[name] = value();
  };
  maybe("temperature", () => random.pick([0, 0.3, 1, 2]));
  maybe("top_p", () => random.pick([0.1, 0.9, 1]));
  maybe("top_k", () => random.pick([-1, 1, 5, 1000]));
  maybe("min_p", () => random.pick([0, 0.05, 0.5]));
  maybe("seed", () => random.integer(0, 2 ** 31 - 1));
  maybe("stop", () => random.pick(["e", ["the", "\n"], ["never in it", "a b"]]));
  maybe("stop_token_ids", () => [random.integer(3, 112)]);
  maybe("n", () => random.integer(1, 3));
  maybe("presence_penalty", () => random.pick([-1, 0.5, 2]));
  maybe("frequency_penalty", () => random.pick([-1, 0.5, 2]));
  maybe("repetition_penalty", () => random.pick([0.8, 1.3]));
  maybe("logit_bias", () => ({ [random.integer(3, 112)]: random.pick([-100, 5]) }));
  return fields;
}

/** A request that is to be answered with 200. */
function goodRequest(random: Random): { path: Endpoint; body: Body; maxTokens: number } {
  const path = random.pick<Endpoint>(["/v1/chat/completions", "/v1/completions", "/generate"]);
  const maxTokens = random.chance(0.1) ? random.integer(17, 60) : random.integer(1, 16);
  const fields = sampling(random);
  if (path === "/generate") {
    return { path, maxTokens, body: { text: text(random), sampling_params: { ...fields, max_new_tokens: maxTokens } } };
  }
  if (random.chance(0.2)) fields.min_tokens = random.integer(0, maxTokens);
  if (path === "/v1/chat/completions") {
    const messages = [{ role: "user", content: text(random) }];
    if (random.chance(0.1)) Object.assign(fields, { logprobs: true, top_logprobs: random.integer(0, 5) });
    return { path, maxTokens, body: { ...fields, messages, max_tokens: maxTokens } };
  }
  const ids = () => Array.from({ length: random.integer(1, 80) }, () => random.integer(3, 112));
  const prompt = random.pick<() => unknown>([() => text(random), ids, () => [ids(), ids()]])();
  if (random.chance(0.1)) fields.logprobs = random.integer(0, 5);
  if (random.chance(0.1)) fields.echo = true;
  return { path, maxTokens, body: { ...fields, prompt, max_tokens: maxTokens } };
}

const badRequests: readonly [path: string, body: unknown, status: number][] = [
  ["/v1/chat/completions", { messages: [] }, 400],
  ["/v1/chat/completions", { messages: [{ role: "user", content: "a" }], max_tokens: -1 }, 400],
  ["/v1/chat/completions", { messages: [{ role: "user", content: "a" }], model: "nowhere" }, 404],
  ["/v1/completions", { prompt: "" }, 400],
  ["/v1/completions", { prompt: [100000] }, 400],
  ["/v1/completions", { prompt: "x".repeat(3000), max_tokens: 1 }, 400],
  ["/v1/completions", { prompt: "a", temperature: "hot" }, 400],
  ["/v1/completions", { prompt: "a", n: 1e9, stream: true }, 400],
  ["/v1/completions", "{", 400],
  ["/generate", { text: "a", sampling_params: { max_new_tokens: 0.5 } }, 400],
  ["/v1/nothing", {}, 404],
];

/** Sends requests to one server and checks what comes back. */
export class Traffic {
  /** Requests of each kind. */
  readonly counts: Record<string, number> = {};
  private readonly kinds: [share: number, name: string, run: (random: Random) => Promise<void>][] = [
    [40, "complete", (random) => this.complete(random)],
    [25, "stream", (random) => this.stream(random)],
    [10, "left in the stream", (random) => this.leave(random)],
    [8, "left before the answer", (random) => this.leaveEarly(random)],
    [5, "aborted", (random) => this.abort(random)],
    [3, "cut off", (random) => this.cutOff(random)],
    [5, "refused", (random) => this.bad(random)],
    [4, "asked for", (random) => this.look(random)],
  ];

  constructor(
    private readonly url: string,
    private readonly port: number,
  ) {}

  /** One request of a random kind. */
  async send(random: Random): Promise<void> {
    const [, name, run] = random.pick(this.kinds.flatMap((kind) => new Array<typeof kind>(kind[0]).fill(kind)));
    this.counts[name] = (this.counts[name] ?? 0) + 1;
    await run(random);
  }

  private post(random: Random, path: string, body: unknown, init: RequestInit = {}): Promise<Response> {
    const text = typeof body === "string" ? body : JSON.stringify(body);
    // Some connections are used again, some are not.
    return fetch(this.url + path, { method: "POST", body: text, keepalive: random.chance(0.7), ...init });
  }

  private async complete(random: Random): Promise<void> {
    const { path, body, maxTokens } = goodRequest(random);
    const response = await this.post(random, path, body);
    const answer = (await response.json()) as { usage?: { completion_tokens: number }; choices?: unknown[] };
    check(response.status === 200, `${response.status} for ${JSON.stringify(body)}: ${JSON.stringify(answer)}`);
    if (path === "/generate") return;
    const tokens = answer.usage?.completion_tokens ?? -1;
    const most = maxTokens * (answer.choices?.length ?? 0);
    check(tokens >= 0 && tokens <= most, `${tokens} tokens of at most ${most} for ${JSON.stringify(body)}`);
  }

  private async stream(random: Random): Promise<void> {
    const { path, body } = goodRequest(random);
    const response = await this.post(random, path, { ...body, stream: true });
    const text = await response.text();
    check(response.status === 200, `${response.status} for ${JSON.stringify(body)}: ${text}`);
    check(text.endsWith("data: [DONE]\n\n"), `a stream ends with ${text.slice(-200)}`);
    check(!text.includes('"error"'), `an error within a stream: ${text.slice(-300)}`);
  }

  /** Reads a part of a stream, then drops the connection. */
  private async leave(random: Random): Promise<void> {
    const { path, body } = goodRequest(random);
    const controller = new AbortController();
    const response = await this.post(random, path, { ...body, stream: true }, { signal: controller.signal });
    const reader = (response.body as ReadableStream<Uint8Array>).getReader();
    for (let reads = random.integer(0, 5); reads > 0; reads--) if ((await reader.read()).done) break;
    controller.abort();
    await reader.read().catch(() => {});
  }

  private async leaveEarly(random: Random): Promise<void> {
    const { path, body } = goodRequest(random);
    const signal = AbortSignal.timeout(random.integer(1, 20));
    await this.post(random, path, body, { signal }).then(
      (response) => response.arrayBuffer().catch(() => {}),
      () => {},
    );
  }

  private async abort(random: Random): Promise<void> {
    const id = crypto.randomUUID();
    const { path, body } = goodRequest(random);
    const answered = this.post(random, path, body, { headers: { "x-request-id": id } });
    await Bun.sleep(random.integer(0, 10));
    const aborted = await this.post(random, "/abort_request", { rid: id });
    check(aborted.status === 200, `${aborted.status} for an abort`);
    await aborted.arrayBuffer();
    const response = await answered;
    check(response.status === 200, `${response.status} for an aborted request: ${await response.clone().text()}`);
    await response.arrayBuffer();
  }

  /** Half a request, or a whole one of which nothing is read, on a connection that is torn down. */
  private cutOff(random: Random): Promise<void> {
    const { path, body } = goodRequest(random);
    const json = JSON.stringify({ ...body, stream: random.chance(0.5) });
    const request = `POST ${path} HTTP/1.1\r\nhost: a\r\ncontent-length: ${json.length}\r\n\r\n${json}`;
    const part = random.chance(0.5) ? request : request.slice(0, random.integer(1, request.length - 1));
    return new Promise((resolve) => {
      const socket = connect(this.port, "127.0.0.1", () => {
        socket.write(part);
        setTimeout(() => (random.chance(0.5) ? socket.resetAndDestroy() : socket.destroy()), random.integer(0, 20));
      });
      socket.on("close", () => resolve());
      socket.on("error", () => {});
    });
  }

  private async bad(random: Random): Promise<void> {
    const [path, body, status] = random.pick(badRequests);
    const response = await this.post(random, path, body);
    const text = await response.text();
    check(response.status === status, `${response.status} for ${JSON.stringify(body)}: ${text}`);
    check(typeof JSON.parse(text).error.message === "string", `no reason in ${text}`);
  }

  private async look(random: Random): Promise<void> {
    const path = random.pick(["/metrics", "/v1/loads", "/v1/models", "/health", "/server_info", "/"]);
    const response = await fetch(this.url + path, { keepalive: random.chance(0.7) });
    check(response.status === 200, `${response.status} for ${path}`);
    await response.arrayBuffer();
  }
}

function check(holds: boolean, complaint: string): void {
  if (!holds) throw new Error(complaint);
}
