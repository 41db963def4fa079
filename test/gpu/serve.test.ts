import { describe, expect, test } from "bun:test";
import { writeDummyModel } from "../../src/bench/dummy-model.ts";
import { gumbel } from "../native/philox.ts";
import { random } from "../random.ts";
import {
  type Choice,
  complete,
  type Drawn,
  device,
  expectAlike,
  fixturePath,
  randomPrompt,
  rounding,
  serverInfo,
  startServer,
} from "./support.ts";

const model = ["--model", fixturePath("qwen3"), "--dtype", "bfloat16"];

describe("a seed", () => {
  const [topK, temperature, length] = [10, 0.8, 30];
  interface Seeded {
    prompt: number[];
    seed: number;
  }

  /** The likeliest tokens in place i of an answer with what decides among them: logprob over temperature, and noise. */
  const scores = ({ seed }: Seeded, { logprobs }: Drawn, i: number): [id: number, score: number][] =>
    Object.entries(logprobs.top_logprobs[i] as Record<string, number>)
      .sort(([, a], [, b]) => b - a)
      .map(([name, logprob]) => {
        const id = Number(name.slice("token_id:".length));
        return [id, logprob / temperature + gumbel(BigInt(seed), id, length + i)];
      });

  const ask = async (url: string, { prompt, seed }: Seeded) => {
    const body = { prompt, seed, max_tokens: 24, temperature, top_k: topK, logprobs: 2 * topK };
    return (await complete(url, body)).choices[0] as Choice;
  };

  test("draws the same alone, again and beside others", async () => {
    await using server = await startServer(...model, "--num-pages", "16384");
    const draw = random(1);
    const requests = Array.from({ length: 21 }, (_, i) => ({ prompt: randomPrompt(draw, length), seed: 42 + i }));
    const [request] = requests as [Seeded];
    const alone = await ask(server.url, request);
    const again = await ask(server.url, request);
    const [beside, ...others] = await Promise.all(requests.map((one) => ask(server.url, one)));

    // Each token of each is the one that seed, position and its own logits decide on.
    let decided = 0;
    for (const [index, choice] of [alone, again, beside as Choice, ...others].entries()) {
      const asked = requests[Math.max(0, index - 2)] as Seeded;
      for (const [i, token] of choice.token_ids.entries()) {
        const [[best, top], [, next]] = scores(asked, choice, i)
          .slice(0, topK)
          .sort(([, a], [, b]) => b - a) as [[number, number], [number, number]];
        if (top - next < 1e-3) continue; // here it is computed in float64
        expect(token).toBe(best);
        decided++;
      }
    }
    expect(decided).toBeGreaterThan(0.95 * 23 * 24);

    // So tokens part only where logits that are rounded otherwise decide otherwise.
    for (const choice of [again, beside as Choice]) {
      const parted = choice.token_ids.findIndex((token, i) => token !== alone.token_ids[i]);
      if (parted < 0) continue;
      const all = new Map(scores(request, alone, parted));
      const [drawn, other] = [alone, choice].map(({ token_ids }) => all.get(token_ids[parted] as number) as number);
      expect((drawn as number) - (other as number)).toBeLessThan((2 * rounding) / temperature);
    }
    expect((await ask(server.url, { ...request, seed: 43 })).token_ids).not.toEqual(alone.token_ids);
  }, 60_000);
});

describe("on the device", () => {
  test("1,000 random requests with aborts in a small pool: all end, no page is lost", async () => {
    await using server = await startServer(...model, "--num-pages", "600", "--max-running-requests", "32");
    const draw = random(Number(process.env.SEED ?? 7));
    const shared = randomPrompt(draw, 60);
    let finished = 0;
    const greedy: { body: object; choice: Choice }[] = [];
    const one = async () => {
      const head = draw() < 0.5 ? shared : [];
      const abort = new AbortController();
      const length = 1 + Math.floor(draw() * 80);
      const body = { prompt: [...head, ...randomPrompt(draw, length)], max_tokens: 1 + Math.floor(draw() * 60) };
      const sampling = {
        temperature: draw() < 0.5 ? 0 : 1,
        top_k: draw() < 0.3 ? 5 : 0,
        min_p: draw() < 0.2 ? 0.1 : 0,
        ...(draw() < 0.5 && { logprobs: 1 }),
      };
      if (draw() < 0.2) setTimeout(() => abort.abort(), draw() * 40);
      try {
        const { choices } = await complete(server.url, { ...body, ...sampling }, abort.signal);
        const choice = choices[0] as Choice;
        expect(choice.token_ids.length).toBe(body.max_tokens);
        if (sampling.temperature === 0 && "logprobs" in sampling)
          greedy.push({ body: { ...body, ...sampling }, choice });
        finished++;
      } catch (error) {
        if (!abort.signal.aborted) throw error;
      }
    };
    let left = 1000;
    const client = async () => {
      while (left-- > 0) await one();
    };
    await Promise.all(Array.from({ length: 64 }, client));
    expect(finished).toBeGreaterThan(700);
    await Bun.sleep(300);
    const info = await serverInfo(server.url);
    expect(info.num_running_requests).toBe(0);
    expect(info.num_used_pages).toBe(0);
    expect(info.num_preemptions).toBeGreaterThan(0);
    // Pages were evicted: the tree would hold all tokens if it could.
    expect(info.num_prompt_tokens).toBeGreaterThan(600 + (info.num_cached_tokens as number));
    expect((await fetch(`${server.url}/flush_cache`, { method: "POST" })).ok).toBe(true);
    expect((await serverInfo(server.url)).num_cached_pages).toBe(0);

    await using roomy = await startServer(...model, "--num-pages", "16384", "--cache", "naive");
    const wanted = await Promise.all(greedy.map(({ body }) => complete(roomy.url, body)));
    expect((await serverInfo(roomy.url)).num_preemptions).toBe(0);
    const answers = greedy.map(({ choice }) => choice);
    const expected = wanted.map(({ choices }) => choices[0] as Choice);
    expectAlike("preempted", answers, expected, 1000);
  }, 300_000);

  test.skipIf(device !== "cuda")(
    "graphs of every size of a real model are captured in two seconds",
    async () => {
      const { path, remove } = writeDummyModel();
      try {
        await using server = await startServer("--model", path, "--dummy-weight", "--num-pages", "16384");
        const { capture_seconds } = await serverInfo(server.url);
        expect(capture_seconds).toBeGreaterThan(0);
        expect(capture_seconds).toBeLessThan(2);
      } finally {
        remove();
      }
    },
    60_000,
  );
});
