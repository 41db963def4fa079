/**
 * An answer alone and the same among 200 others, over HTTP in float32: every token, logprob and reason is the same to
 * the last bit, whatever the request does to its logits. The models are those of the parity tests, which have no text.
 */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { random } from "../random.ts";
import { Installation, type TestServer } from "./support.ts";

setDefaultTimeout(120_000);
const installation = new Installation();
afterAll(() => installation.remove());

const fixture = (name: string) => join(import.meta.dir, "../parity/fixtures", name);
const vocabulary = 97;

type Body = Record<string, unknown>;

/** A request that may ask for anything. Some prompts begin alike, so that the prefix cache has something to give. */
function randomBody(draw: () => number): Body {
  const integer = (least: number, most: number) => least + Math.floor(draw() * (most - least + 1));
  const maybe = (name: string, value: () => unknown): Body => (draw() < 0.4 ? { [name]: value() } : {});
  const shared = Array.from({ length: integer(0, 2) * 20 }, (_, index) => (index * 7) % vocabulary);
  const own = Array.from({ length: integer(1, 60) }, () => integer(0, vocabulary - 1));
  const greedy = draw() < 0.3;
  return {
    prompt: [...shared, ...own],
    max_tokens: integer(1, 80),
    temperature: greedy ? 0 : 0.5 + draw(),
    return_token_ids: true,
    seed: integer(0, 2 ** 31),
    ...maybe("top_k", () => integer(1, vocabulary)),
    ...maybe("top_p", () => 0.5 + draw() / 2),
    ...maybe("min_p", () => draw() / 4),
    ...maybe("repetition_penalty", () => 0.8 + draw()),
    ...maybe("presence_penalty", () => draw() * 4 - 2),
    ...maybe("frequency_penalty", () => draw() * 4 - 2),
    ...maybe("logit_bias", () => ({ [integer(0, vocabulary - 1)]: draw() * 10 - 5, 2: 3 })),
    ...maybe("min_tokens", () => 1),
    ...maybe("stop_token_ids", () => [integer(0, vocabulary - 1), integer(0, vocabulary - 1)]),
    ...maybe("logprobs", () => integer(0, 20)),
    ...maybe("echo", () => true),
    ...maybe("prompt_logprobs", () => integer(0, 5)),
    ...maybe("n", () => integer(2, 3)),
    ...maybe("priority", () => integer(-2, 2)),
    ...maybe("cache_salt", () => `salt ${integer(0, 1)}`),
    ...maybe("ignore_eos", () => true),
  };
}

/** What is asked alone and among others: everything at once, and each thing by itself. */
const watched: Body[] = [
  { temperature: 0, logprobs: 5 },
  { temperature: 0, logprobs: 2, repetition_penalty: 1.3, presence_penalty: 0.7, frequency_penalty: 0.4 },
  { seed: 11, logprobs: 0 },
  { seed: 12, temperature: 1.3, top_p: 0.8, top_k: 40, logprobs: 20, repetition_penalty: 1.2 },
  { seed: 13, logprobs: 3, logit_bias: { 5: 4.5, 9: -100 }, min_tokens: 10 },
  { seed: 14, logprobs: 1, echo: true, presence_penalty: -1.5 },
  { seed: 15, prompt_logprobs: 2, n: 3, frequency_penalty: 1.9, min_p: 0.02 },
  { seed: 16, logprobs: 1, stop_token_ids: Array.from({ length: 40 }, (_, id) => id * 2) },
].map((body, index) => ({
  prompt: Array.from({ length: 5 + 17 * index }, (_, position) => (position * 31 + index) % vocabulary),
  max_tokens: 20,
  return_token_ids: true,
  ...body,
}));

/** The answer as it was written, less what is new every time and what tells of the cache. */
async function ask(server: TestServer, body: Body): Promise<string> {
  const response = await server.post("/v1/completions", body);
  const text = await response.text();
  if (response.status !== 200) throw new Error(`${response.status} for ${JSON.stringify(body)}: ${text}`);
  return text.slice(text.indexOf('"choices"'), text.indexOf('"prompt_tokens_details"'));
}

test.each([
  ["llama-untied", []],
  // Chunks, eviction and preemption.
  ["qwen3", ["--num-pages", "600", "--max-prefill-length", "32"]],
])("%s %j", async (name, options) => {
  const server = await installation.serveModel(fixture(name), "--dtype", "float32", "--device", "cpu", ...options);
  const alone: string[] = [];
  for (const body of watched) alone.push(await ask(server, body));
  // A prompt's logprobs and an answer's are there to be compared.
  expect(alone[5].match(/"token_logprobs":\[null(,-?[\d.e-]+)+\]/)).not.toBeNull();
  expect(new Set(alone).size).toBe(watched.length);

  await server.post("/flush_cache", "");
  const draw = random(7);
  const others = Array.from({ length: 200 }, () => ask(server, randomBody(draw)));
  const among = watched.map((body) => ask(server, body));
  const more = Array.from({ length: 50 }, () => ask(server, randomBody(draw)));
  expect(await Promise.all(among)).toEqual(alone);
  expect(new Set(await Promise.all([...others, ...more])).size).toBeGreaterThan(240);
  const { num_preemptions, num_cached_tokens } = (await server.info()) as unknown as Record<string, number>;
  expect(num_cached_tokens).toBeGreaterThan(0);
  if (options.length > 0) expect(num_preemptions).toBeGreaterThan(0);
  await server.untilIdle();
  server.process.kill("SIGTERM");
});
