import { describe, expect, test } from "bun:test";
import { runClient } from "../../src/bench/client.ts";
import { type Arrival, drive, percentile, type Run, steadyStep } from "../../src/bench/drive.ts";
import { writeDummyModel } from "../../src/bench/dummy-model.ts";
import { benchLatency } from "../../src/bench/latency.ts";
import { plotSvg } from "../../src/bench/plot.ts";
import { formatReport, passes, type Report, reportJson } from "../../src/bench/report.ts";
import { decodeLimit, type Limits, modelCost, prefillLimit, workloadLimit } from "../../src/bench/roofline.ts";
import { offlineItems, randomItems } from "../../src/bench/workload.ts";
import { openCheckpoint } from "../../src/checkpoint/open.ts";
import { FakeRuntime, startServer } from "./support/fake-runtime.ts";

describe("workload", () => {
  const total = (values: number[]) => values.reduce((sum, value) => sum + value, 0);

  test("is that of Nano-vLLM and Mini-SGLang", () => {
    const items = offlineItems(151936);
    expect(items).toHaveLength(256);
    expect(total(items.map(({ tokens }) => tokens.length))).toBe(142827);
    expect(total(items.map(({ maxTokens }) => maxTokens))).toBe(133966);
    expect(items.slice(0, 3).map(({ tokens, maxTokens }) => [tokens.length, maxTokens])).toEqual([
      [964, 845],
      [724, 312],
      [484, 607],
    ]);
  });

  test("can be made smaller", () => {
    const items = offlineItems(151936, 3, 0.1);
    expect(items.map(({ tokens, maxTokens }) => [tokens.length, maxTokens])).toEqual([
      [96, 85],
      [72, 31],
      [48, 61],
    ]);
  });

  test("has the same ids every time, spread over those below 10000, or the vocabulary", () => {
    const shapes = [{ input: 2000, output: 1 }];
    const [first] = randomItems(shapes, 151936);
    expect(randomItems(shapes, 151936)[0]).toEqual(first!);
    expect(randomItems(shapes, 151936, 1)[0]!.tokens).not.toEqual(first!.tokens);
    expect(Math.max(...first!.tokens)).toBeWithin(9900, 10000);
    expect(Math.min(...first!.tokens)).toBeWithin(0, 100);
    expect(total(first!.tokens) / 2000).toBeWithin(4700, 5300);
    expect(Math.max(...randomItems(shapes, 50)[0]!.tokens)).toBe(49);
  });
});

describe("timing", () => {
  test("percentiles", () => {
    expect(percentile([3, 1, 2], 0.5)).toBe(2);
    expect(percentile([1, 2, 3, 4], 0.5)).toBe(2.5);
    expect(percentile([10, 20], 0.99)).toBeCloseTo(19.9);
    expect(percentile([], 0.5)).toBeNaN();
  });

  test("a step is measured while all sequences decode", () => {
    const arrival = (begin: number, step: number, steps: number): Arrival => ({
      times: Array.from({ length: steps }, (_, index) => begin + index * step),
      counts: Array.from({ length: steps }, (_, index) => index + 1),
    });
    // The first sequence is quick until the second has begun, then both take 10 ms.
    const first = arrival(0, 1, 50);
    const both = arrival(50, 10, 20);
    first.times.push(...both.times);
    first.counts.push(...both.counts.map((count) => count + 50));
    const run = { milliseconds: 0, promptTokens: 0, tokens: 0, arrivals: [first, both] } satisfies Run;
    expect(steadyStep(run)).toBe(10);
  });

  test("every token is counted and EOS is ignored", async () => {
    const runtime = new FakeRuntime();
    const run = await drive(
      runtime,
      randomItems(
        [
          { input: 5, output: 3 },
          { input: 7, output: 2 },
        ],
        200,
      ),
      {},
    );
    expect(run).toMatchObject({ promptTokens: 12, tokens: 5 });
    expect(runtime.calls.map(({ parameters }) => parameters)).toMatchObject([
      { maxTokens: 3, ignoreEos: true },
      { maxTokens: 2, ignoreEos: true },
    ]);
  });
});

describe("the client", () => {
  const runtime = new FakeRuntime();
  const job = (url: string) => ({ url: url.replace(/\/$/, ""), model: "default", temperature: 0 });

  test("counts tokens and events of streams", async () => {
    const server = startServer(runtime);
    const items = randomItems(
      [
        { input: 5, output: 3 },
        { input: 7, output: 2 },
      ],
      200,
    );
    const result = await runClient({ ...job(server.url), items });
    await server.stop();
    expect(result).toMatchObject({ promptTokens: 12, tokens: 5, counts: [3, 2] });
    expect(result.events).toBeGreaterThanOrEqual(5);
    expect(result.firstTimes[0]!).toBeWithin(0, result.milliseconds + 0.001);
  });

  test("fails where an answer is cut short", async () => {
    const server = startServer(runtime);
    const items = randomItems([{ input: 5, output: 9 }], 200);
    await expect(runClient({ ...job(server.url), items })).rejects.toThrow("a stream ended early");
    await server.stop();
  });

  test("fails where a request is refused", async () => {
    const server = startServer(runtime);
    const items = randomItems([{ input: 5, output: 100000 }], 200);
    await expect(runClient({ ...job(server.url), items })).rejects.toThrow("HTTP 400");
    await server.stop();
  });
});

describe("limits", () => {
  const limits: Limits = { bandwidth: 4.46e12, matrixRate: 790e12 };

  /** Qwen3-0.6B as it was measured by others: 1,192 MB of weights and 114,688 bytes of K and V a token. */
  async function qwen() {
    const dummy = writeDummyModel();
    const { config } = await openCheckpoint(dummy.path, { requireWeights: false });
    dummy.remove();
    const info = { ...new FakeRuntime().info, weightBytes: 1_192_099_840, numPages: 999, poolBytes: 114_688_000 };
    return modelCost(config, info);
  }

  test("one token of Qwen3-0.6B at a context of 1024 moves 1.31 GB", async () => {
    const cost = await qwen();
    expect(cost.kvBytes).toBe(114_688);
    expect(decodeLimit(cost, limits, 1, 1024) * limits.bandwidth).toBeWithin(1.305e9, 1.312e9);
    expect(1000 * decodeLimit(cost, limits, 1, 1024)).toBeCloseTo(0.294, 2);
    expect(1000 * decodeLimit(cost, limits, 8, 8 * 1024)).toBeCloseTo(0.478, 2);
    expect(1000 * decodeLimit(cost, limits, 256, 256 * 1024)).toBeCloseTo(7.0, 1);
  });

  test("the offline workload on an H200 cannot pass 37,400 tokens a second", async () => {
    const items = offlineItems(151936);
    const tokens = items.reduce((sum, { maxTokens }) => sum + maxTokens, 0);
    expect(tokens / workloadLimit(await qwen(), limits, items)).toBeWithin(36_500, 38_500);
  });

  test("many operations are bound by the matrix rate, and a table that is not the head's is not read", async () => {
    const cost = await qwen();
    const slow = { bandwidth: Number.POSITIVE_INFINITY, matrixRate: 1e12 };
    const layers = 28 * (1024 * 128 * (2 * 16 + 2 * 8) + 3 * 1024 * 3072);
    const expected = (2 * layers * 100 + 2 * 151936 * 1024 + 5050 * 4 * 28 * 16 * 128) / 1e12;
    expect(prefillLimit(cost, slow, [100])).toBeCloseTo(expected, 9);
  });
});

describe("a report", () => {
  const report = (value: number): Report => ({
    benchmark: "host",
    description: "words",
    model: null,
    limits: { bandwidth: 4.46e12, matrixRate: 790e12 },
    groups: [
      {
        name: "scheduler",
        figures: [{ key: "step_us", label: "step", value, unit: "us", target: { comparison: "<=", value: 150 } }],
      },
      { name: "server", figures: [{ key: "rate", label: "rate", value: 51234.5, unit: "tokens/s", digits: 0 }] },
    ],
    plots: [],
  });

  test("is a table with verdicts", () => {
    expect(formatReport(report(26.84)).split("\n")).toEqual([
      "host: words",
      "limits: 4460.0 GB/s read, 790 TFLOP/s",
      "  scheduler  step    26.8 us   pass (<= 150)",
      "  server     rate  51,235 tokens/s",
      "",
    ]);
    expect(formatReport(report(151))).toContain("FAIL (<= 150)");
  });

  test("passes where every target is met", () => {
    expect(passes(report(150))).toBe(true);
    expect(passes(report(150.1))).toBe(false);
    expect(passes(report(Number.NaN))).toBe(false);
  });

  test("is data as well", () => {
    expect(reportJson(report(151))).toMatchObject({
      benchmark: "host",
      passed: false,
      results: [
        { name: "scheduler", step_us: 151 },
        { name: "server", rate: 51234.5 },
      ],
    });
  });
});

test("a plot draws its lines to scale and escapes its words", () => {
  const svg = plotSvg({
    title: "a < b",
    xLabel: "x",
    yLabel: "y",
    series: [
      {
        name: "one",
        points: [
          [0, 0],
          [50, 200],
          [100, 400],
        ],
      },
    ],
  });
  expect(svg).toContain("a &#60; b");
  // The axes end at 100 and 400: left-bottom corner, middle, right-top corner of the area.
  expect(svg).toContain('points="80,350 390,203 700,56"');
  // Its name stands above the area.
  expect(svg).toMatch(/<text x="700" y="44"[^>]*><tspan[^>]*>one</);
});

describe("a plot", () => {
  const draw = (points: [number, number][], xScale?: "log2") =>
    plotSvg({ title: "", xLabel: "", yLabel: "", xScale, series: [{ name: "", points }] });
  const circles = (svg: string) => [...svg.matchAll(/<circle cx="(\S+)" cy="(\S+)"/g)].map(([, x, y]) => `${x},${y}`);

  test("shows a single point, and each of a few", () => {
    expect(circles(draw([[100, 400]]))).toEqual(["700,56"]);
    expect(circles(draw([[8, 1]], "log2"))).toEqual(["80,56"]);
    expect(circles(draw(Array.from({ length: 100 }, (_, x) => [x, x])))).toEqual([]);
  });

  test("by doublings gives each the same width", () => {
    const svg = draw(
      [
        [1, 0],
        [4, 1],
        [16, 2],
      ],
      "log2",
    );
    expect(circles(svg)).toEqual(["80,350", "390,203", "700,56"]);
    for (const tick of [1, 2, 4, 8, 16]) expect(svg).toContain(`>${tick}</text>`);
  });

  test("leaves out what was not measured, even if that is all", () => {
    expect(
      circles(
        draw(
          [
            [1, Number.NaN],
            [4, 1],
          ],
          "log2",
        ),
      ),
    ).toHaveLength(1);
    for (const svg of [draw([[0, 0]]), draw([[1, Number.NaN]]), draw([], "log2"), draw([])]) {
      expect(svg).not.toMatch(/NaN|Infinity/);
    }
  });
});

describe("latency is refused", () => {
  const options = { batches: [1, 8], context: 64, tokens: 16, repeats: 1 };
  test.each([
    [{ batches: [1, 9] }, "--batch 9 needs --max-running-requests 9: 8 run at a time"],
    [{ context: 8 }, "--context 8 cannot be the middle of --tokens 16: it has to be at least 9"],
    [{ tokens: 2 }, "--batch 8: the sequences never decoded together; they need more --tokens"],
  ])("with %j", async (change, reason) => {
    await expect(benchLatency(new FakeRuntime(), { ...options, ...change }, null)).rejects.toThrow(reason);
  });
});

test("the made-up model has the tokenizer that its config promises", async () => {
  const dummy = writeDummyModel();
  const { config, tokenizer } = await openCheckpoint(dummy.path, { requireWeights: false });
  dummy.remove();
  const vocab = (tokenizer!.tokenizerJson.model as { vocab: Record<string, number> }).vocab;
  expect(Object.keys(vocab)).toHaveLength(config.vocabularySize);
  expect(new Set(Object.values(vocab)).size).toBe(config.vocabularySize);
  expect(config).toMatchObject({ architecture: "qwen3", numLayers: 28, headDim: 128, tieWordEmbeddings: true });
});
