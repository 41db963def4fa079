import { afterAll, afterEach, describe, expect, test } from "bun:test";
import { type ArrivalPlan, parseTrace, poissonArrivals } from "../../src/bench/arrivals.ts";
import { latencies, type OnlineRun, onlineReport, replay } from "../../src/bench/online.ts";
import { baseUrl, firstModel, type PromptContent, stream, type Target } from "../../src/bench/online-client.ts";
import { plotsSvg } from "../../src/bench/plot.ts";
import { textPrompts, tokenPrompts } from "../../src/bench/prompts.ts";
import { formatReport, passes, reportJson } from "../../src/bench/report.ts";

describe("arrivals", () => {
  test("a trace is read in any order, begins at once and can be sped up", () => {
    const text = `{"timestamp": 4000, "input_length": 7, "output_length": 2, "hash_ids": [1]}

{"timestamp": 1000, "input_length": 5, "output_length": 3}\n`;
    expect(parseTrace(text, 2)).toEqual([
      { at: 0, inputLength: 5, outputLength: 3 },
      { at: 1500, inputLength: 7, outputLength: 2 },
    ]);
  });

  test("a line that is no request is named", () => {
    const good = '{"timestamp": 0, "input_length": 5, "output_length": 3}\n';
    expect(() => parseTrace(`${good}nonsense`)).toThrow("line 2 of the trace is not JSON");
    for (const bad of ['{"timestamp": "0", "input_length": 1, "output_length": 1}', "null", '{"timestamp": 1}']) {
      expect(() => parseTrace(`${good}${bad}`)).toThrow("line 2 of the trace must have");
    }
    expect(() => parseTrace(good.replace("5", "0"))).toThrow("at least 1");
    expect(() => parseTrace("\n")).toThrow("no requests");
  });

  const take = (count: number, ...given: Parameters<typeof poissonArrivals>): ArrivalPlan[] =>
    poissonArrivals(...given)
      .take(count)
      .toArray();

  test("random arrivals have the rate, a Poisson process' spread, and lengths within their bounds", () => {
    const plans = take(20_000, 50, [10, 20], [1, 1], 3);
    const gaps = plans.slice(1).map(({ at }, index) => at - plans[index].at);
    const mean = gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length;
    const deviation = Math.sqrt(gaps.reduce((sum, gap) => sum + (gap - mean) ** 2, 0) / gaps.length);
    expect(mean).toBeWithin(19.5, 20.5);
    expect(deviation / mean).toBeWithin(0.95, 1.05);
    expect(new Set(plans.map(({ inputLength }) => inputLength)).size).toBe(11);
    expect(Math.min(...plans.map(({ inputLength }) => inputLength))).toBe(10);
    expect(plans.every(({ outputLength }) => outputLength === 1)).toBe(true);
    expect(take(5, 50, [10, 20], [1, 1], 3)).toEqual(plans.slice(0, 5));
    expect(take(3, Number.POSITIVE_INFINITY, [1, 1], [1, 1], 0).map(({ at }) => at)).toEqual([0, 0, 0]);
  });
});

/** A server as its test wants it: `answer` gets each request's body and says what is sent. */
let answer: (body: Record<string, unknown>, request: Request) => Response | Promise<Response>;
const bodies: Record<string, unknown>[] = [];
let open = 0;
let mostOpen = 0;
const server = Bun.serve({
  port: 0,
  hostname: "127.0.0.1",
  routes: { "/v1/models": Response.json({ data: [{ id: "org/model" }, { id: "other" }] }) },
  async fetch(request) {
    const body = (await request.json()) as Record<string, unknown>;
    bodies.push(body);
    mostOpen = Math.max(mostOpen, ++open);
    try {
      return await answer(body, request);
    } finally {
      open--;
    }
  },
});
afterAll(() => server.stop(true));
afterEach(() => {
  bodies.length = 0;
  mostOpen = 0;
});

const sse = (...events: (object | string)[]) =>
  new Response(
    events.map((event) => `data: ${typeof event === "string" ? event : JSON.stringify(event)}\n\n`).join(""),
    { headers: { "content-type": "text/event-stream" } },
  );
const piece = (text: string, finish_reason: string | null = null) => ({ choices: [{ index: 0, text, finish_reason }] });
const usage = (prompt_tokens: number, completion_tokens: number) => ({
  choices: [],
  usage: { prompt_tokens, completion_tokens },
});
const target: Target = {
  url: baseUrl(server.url.href),
  model: "m",
  apiKey: "secret",
  endpoint: "completions",
  extraBody: {},
};

describe("client", () => {
  test("takes addresses as people write them", () => {
    expect(baseUrl("http://host:8000/v1/")).toBe("http://host:8000");
    expect(baseUrl("host:8000")).toBe("http://host:8000");
    expect(baseUrl("https://host/prefix/v1")).toBe("https://host/prefix");
  });

  test("asks for a stream of fixed length with usage, and adds what it is told", async () => {
    let key: string | null = null;
    answer = (_, request) => {
      key = request.headers.get("authorization");
      return sse(piece("a"), piece("b", "length"), usage(3, 2), "[DONE]");
    };
    const result = await stream({ ...target, extraBody: { temperature: 0.5, min_tokens: 2 } }, [1, 2, 3], 2);
    expect(key!).toBe("Bearer secret");
    expect(bodies[0]).toEqual({
      model: "m",
      prompt: [1, 2, 3],
      max_tokens: 2,
      temperature: 0.5,
      min_tokens: 2,
      ignore_eos: true,
      stream: true,
      stream_options: { include_usage: true },
    });
    expect(result).toMatchObject({ inputTokens: 3, outputTokens: 2 });
    expect(result.times).toHaveLength(2);
    expect(await firstModel(target)).toBe("org/model");
  });

  test("chat: the role's event is no token, reasoning is, and comments and null usage are passed over", async () => {
    const delta = (fields: object, finish_reason: string | null = null) => ({
      choices: [{ index: 0, delta: fields, finish_reason }],
      usage: null,
    });
    answer = () =>
      new Response(
        `: keep-alive\r\n\r\ndata: ${JSON.stringify(delta({ role: "assistant", content: "" }))}\r\n\r\n` +
          `data: ${JSON.stringify(delta({ reasoning_content: "hm" }))}\n\ndata:${JSON.stringify(delta({ content: "ö" }))}\n\n` +
          `data: ${JSON.stringify(delta({}, "stop"))}\n\ndata: [DONE]\n\n`,
      );
    const result = await stream({ ...target, endpoint: "chat" }, "hello", 2);
    expect(bodies[0]).toMatchObject({ messages: [{ role: "user", content: "hello" }] });
    expect(result.times).toHaveLength(2);
    // No usage: events are counted.
    expect(result.outputTokens).toBe(2);
    expect(result.ended).toBeGreaterThanOrEqual(result.times[1]);
  });

  test.each<[string, () => Response]>([
    ["HTTP 429: full", () => Response.json({ error: { message: "full" } }, { status: 429 })],
    ["HTTP 400: bad", () => Response.json({ object: "error", message: "bad" }, { status: 400 })],
    ["HTTP 502: <html>", () => new Response("<html>", { status: 502 })],
    ["error event: broke", () => sse(piece("a"), { error: { message: "broke" } }, "[DONE]")],
    ["the stream ended early", () => sse(piece("a"))],
  ])("failure: %s", async (reason, failing) => {
    answer = failing;
    await expect(stream(target, [1], 2)).rejects.toThrow(reason);
  });
});

describe("prompts", () => {
  test("of token ids have their length, and no two begin alike", () => {
    const make = tokenPrompts(500, 0);
    const prompts = Array.from({ length: 50 }, (_, index) => make(20 + index, index) as number[]);
    expect(prompts.map((prompt) => prompt.length)).toEqual(prompts.map((_, index) => 20 + index));
    expect(Math.max(...prompts.flat())).toBeLessThan(500);
    expect(new Set(prompts.map((prompt) => prompt.slice(0, 4).join())).size).toBe(50);
    expect(make(20, 0)).toEqual(prompts[0]);
    expect(tokenPrompts(500, 1)(20, 0)).not.toEqual(prompts[0]);
  });

  test("of text are fitted to the server's template and tokenizer", async () => {
    const count = (prompt: PromptContent) => 31 + 2 * String(prompt).split(" ").length;
    answer = ({ messages }) =>
      sse(piece("a", "length"), usage(count((messages as { content: string }[])[0].content), 1));
    const make = await textPrompts({ ...target, endpoint: "chat" }, 0);
    for (const length of [33, 101, 2001]) expect(count(make(length, length))).toBe(length);
    expect(count(make(5, 0))).toBe(33);
    expect(make(101, 1)).not.toBe(make(101, 2));
  });

  test("cannot be made of text where nothing is counted", async () => {
    answer = () => sse(piece("a", "length"));
    await expect(textPrompts({ ...target, endpoint: "chat" }, 0)).rejects.toThrow("no usage");
  });
});

describe("replay", () => {
  const plans = (...times: number[]): ArrivalPlan[] => times.map((at) => ({ at, inputLength: 3, outputLength: 2 }));
  const run = (given: ArrivalPlan[], options: Partial<Parameters<typeof replay>[1]> = {}) =>
    replay(given, {
      target,
      makePrompt: tokenPrompts(100, 0),
      requests: Number.POSITIVE_INFINITY,
      duration: Number.POSITIVE_INFINITY,
      concurrency: Number.POSITIVE_INFINITY,
      signal: new AbortController().signal,
      ...options,
    });
  const good = () => sse(piece("a"), piece("b", "length"), usage(3, 2), "[DONE]");
  const slow = async () => {
    await Bun.sleep(50);
    return good();
  };

  test("sends when it is due, and measures from when it was sent", async () => {
    answer = slow;
    const { samples, milliseconds } = await run(plans(0, 100, 200));
    expect(samples.map(({ sent, due }) => sent - due).every((late) => late >= -1 && late < 500)).toBe(true);
    expect(latencies(samples).firstToken.every((time) => time >= 49 && time < 1000)).toBe(true);
    expect(milliseconds).toBeWithin(245, 1500);
  });

  test("keeps to the number of requests, the concurrency and the duration", async () => {
    answer = slow;
    const limited = await run(plans(...new Array(20).fill(0)), { requests: 9, concurrency: 3 });
    expect(limited).toMatchObject({ sent: 9, running: 0 });
    expect(mostOpen).toBe(3);
    expect(latencies(limited.samples).late.filter((late) => late > 45).length).toBeGreaterThanOrEqual(6);
    const brief = await run(plans(0, 50, 5000), { duration: 1 });
    expect(brief.sent).toBe(2);
    const long = await run(plans(...new Array(1000).fill(0)), { duration: 0.2, concurrency: 2 });
    expect(long.sent).toBeWithin(2, 12);
    expect(long.samples).toHaveLength(long.sent);
  });

  test("counts failures by reason and goes on; a report with failures does not pass", async () => {
    let count = 0;
    answer = () => (++count % 3 === 0 ? Response.json({ error: { message: "full" } }, { status: 429 }) : good());
    const result = await run(plans(...new Array(9).fill(0)), { concurrency: 1 });
    expect(Object.fromEntries(result.errors)).toEqual({ "HTTP 429: full": 3 });
    const report = onlineReport(result, target, "nine");
    expect(passes(report)).toBe(false);
    expect(formatReport(report)).toContain("3 times: HTTP 429: full");
    expect(reportJson(report)).toMatchObject({ passed: false, errors: { "HTTP 429: full": 3 } });
  });

  test("what is under way when it is broken off is not counted, nor is it a failure", async () => {
    const end = new AbortController();
    answer = ({ prompt }) => ((prompt as number[]).length === 3 ? good() : new Promise<Response>(() => {}));
    const hanging = { at: 0, inputLength: 9, outputLength: 2 };
    setTimeout(() => end.abort(), 100);
    const result = await run([...plans(0, 0), hanging, ...plans(60_000)], { signal: end.signal });
    expect(result.samples).toHaveLength(2);
    const [{ figures }] = onlineReport(result, target, "").groups;
    const value = (key: string) => figures.find((figure) => figure.key === key)!.value;
    expect([value("completed"), value("failed"), value("unfinished")]).toEqual([2, 0, 1]);
  });
});

test("a report has the percentiles of each time, throughput, and four charts", () => {
  const samples = Array.from({ length: 101 }, (_, index) => {
    const times = [100 + index, 150 + index, 300 + index];
    return { due: 0, sent: 0, times, ended: 300 + index, inputTokens: 10, outputTokens: 5 };
  });
  const run: OnlineRun = { milliseconds: 2000, sent: 101, running: 0, samples, errors: new Map(), wrongLengths: 0 };
  const report = onlineReport(run, target, "described");
  const { results } = reportJson(report) as { results: Record<string, unknown>[] };
  expect(results[0]).toMatchObject({
    completed: 101,
    requests_per_second: 50.5,
    input_tokens_per_second: 505,
    output_tokens_per_second: 252.5,
  });
  const times = { "first token": [150, 190, 199], "end to end": [350, 390, 399], "between events": [100, 150, 150] };
  for (const [name, [p50, p90, p99]] of Object.entries(times)) {
    expect(results.find((group) => group.name === name)).toMatchObject({ p50_ms: p50, p90_ms: p90, p99_ms: p99 });
  }
  expect(results.find(({ name }) => String(name).startsWith("between tokens"))).toMatchObject({ p50_ms: 50 });
  expect(formatReport(report)).toMatch(/first token +mean 150\.0 {2}p50 150\.0 {2}p90 190\.0 {2}p99 199\.0 ms/);
  const svg = plotsSvg(report.plots);
  expect(svg.match(/<polyline/g)).toHaveLength(4);
  expect(svg).not.toContain("NaN");
  expect(passes(report)).toBe(true);
});
