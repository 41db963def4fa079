import { describe, expect, test } from "bun:test";
import { fixturePath, run, startServer } from "./support.ts";

const model = ["--model", fixturePath("qwen3"), "--dtype", "bfloat16"];

interface Completion {
  choices: { token_ids: number[]; finish_reason: string }[];
  usage: { prompt_tokens_details: { cached_tokens: number } };
}

async function complete(url: string, body: object, signal?: AbortSignal): Promise<Completion> {
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ignore_eos: true, return_token_ids: true, ...body }),
    signal,
  });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return response.json() as Promise<Completion>;
}

/** mulberry32: a small seeded generator, so that a failure can be repeated. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let word = Math.imul(state ^ (state >>> 15), 1 | state);
    word = (word + Math.imul(word ^ (word >>> 7), 61 | word)) ^ word;
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  };
}

const prompt = (draw: () => number, length: number) => Array.from({ length }, () => 3 + Math.floor(draw() * 100));

describe("on the device", () => {
  test("every op computes what the CPU library computes", async () => {
    expect(await run("doctor", "--device", process.env.MINISGL_DEVICE ?? "cuda")).toContain(" 0 failed");
  }, 300_000);

  test("a seed gives the same tokens alone, again and beside others", async () => {
    await using server = await startServer(...model);
    const draw = random(1);
    const request = { prompt: prompt(draw, 30), max_tokens: 8, temperature: 0.8, top_p: 0.9, seed: 42 };
    const alone = await complete(server.url, request);
    expect((await complete(server.url, request)).choices[0]?.token_ids).toEqual(
      alone.choices[0]?.token_ids as number[],
    );
    const other = await complete(server.url, { ...request, seed: 43 });
    expect(other.choices[0]?.token_ids).not.toEqual(alone.choices[0]?.token_ids as number[]);
  }, 60_000);

  test("1,000 random requests with aborts in a small pool: all end, no page is lost", async () => {
    await using server = await startServer(...model, "--num-pages", "600", "--max-running-requests", "32");
    const draw = random(Number(process.env.SEED ?? 7));
    const shared = prompt(draw, 60);
    let finished = 0;
    const one = async () => {
      const head = draw() < 0.5 ? shared : [];
      const abort = new AbortController();
      const length = 1 + Math.floor(draw() * 80);
      const body = { prompt: [...head, ...prompt(draw, length)], max_tokens: 1 + Math.floor(draw() * 60) };
      const sampling = {
        temperature: draw() < 0.5 ? 0 : 1,
        top_k: draw() < 0.3 ? 5 : 0,
        min_p: draw() < 0.2 ? 0.1 : 0,
      };
      if (draw() < 0.2) setTimeout(() => abort.abort(), draw() * 40);
      try {
        const { choices } = await complete(server.url, { ...body, ...sampling }, abort.signal);
        expect(choices[0]?.token_ids.length).toBe(body.max_tokens);
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
    const info = (await (await fetch(`${server.url}/server_info`)).json()) as Record<string, number>;
    expect(info.num_running_requests).toBe(0);
    expect(info.num_used_pages).toBe(0);
    expect((await fetch(`${server.url}/flush_cache`, { method: "POST" })).ok).toBe(true);
    const after = (await (await fetch(`${server.url}/server_info`)).json()) as Record<string, number>;
    expect(after.num_cached_pages).toBe(0);
  }, 300_000);
});
