/** Penalties, biases, min_tokens and logprobs over HTTP: half precision follows transformers, overlap changes nothing. */
import { expect, test } from "bun:test";
import { bounds, type Choice, complete, fixturePath, startServer } from "./support.ts";

const MODEL = "llama-tied-llama3";

interface Rows {
  tokens: number[];
  logprobs: number[];
}

/** What transformers computed: see scripts/make-fixtures.py. */
interface Changed {
  prompt: number[];
  ends: number[];
  top: number;
  promptLogprobs: Rows;
  cases: ({ parameters: Record<string, number | Record<string, number>> } & Rows)[];
}

const { prompt, ends, top, promptLogprobs, cases }: Changed = await Bun.file(
  `${fixturePath(MODEL)}/changed.json`,
).json();

const ask = async (url: string, body: object) =>
  (await complete(url, { temperature: 0, ...body })).choices[0] as Choice;

/** The parameters under the API's names. */
const asBody = (parameters: Changed["cases"][number]["parameters"]) =>
  Object.fromEntries(
    Object.entries(parameters).map(([name, value]) => [name.replace(/[A-Z]/g, (a) => `_${a.toLowerCase()}`), value]),
  );

const serve = (...flags: string[]) => startServer("--model", fixturePath(MODEL), "--dtype", "bfloat16", ...flags);

test("logprobs of prompt and answer are those of transformers, whatever changes the logits", async () => {
  await using server = await serve();
  let [compared, largest] = [0, 0];
  const compare = (logprob: number | undefined, wanted: number | undefined) => {
    largest = Math.max(largest, Math.abs((logprob as number) - (wanted as number)));
    compared++;
  };
  for (const { parameters, tokens, logprobs } of cases) {
    const body = { ...asBody(parameters), ...("minTokens" in parameters && { stop_token_ids: ends }) };
    const asked = { prompt, max_tokens: tokens.length, logprobs: top, prompt_logprobs: top, ...body };
    const choice = await ask(server.url, asked);
    promptLogprobs.logprobs.forEach((wanted, i) => {
      compare(choice.prompt_logprobs[i + 1]?.[prompt[i + 1] as number]?.logprob, wanted);
    });
    // Where two logits are close, another token may be drawn: from there on the answers have nothing in common.
    const parted = choice.token_ids.findIndex((token, i) => token !== tokens[i]);
    const alike = parted < 0 ? choice.token_ids.length : parted;
    for (let i = 0; i < alike; i++) compare(choice.logprobs.token_logprobs[i], logprobs[i]);
  }
  console.log(`over HTTP: ${compared} logprobs differ from transformers' by at most ${largest.toFixed(4)}`);
  expect(largest).toBeLessThan(bounds.bfloat16);
  expect(compared).toBeGreaterThan((promptLogprobs.logprobs.length + 4) * cases.length);
}, 60_000);

test("a bias forces and forbids tokens, min_tokens keeps the end away, each among others", async () => {
  await using server = await serve();
  const both = { logit_bias: { 9: 100, 5: -100 }, max_tokens: 12, prompt };
  const answers = await Promise.all([
    ask(server.url, { ...both, logprobs: 1 }),
    ask(server.url, { ...both, stop_token_ids: [9], min_tokens: 7 }),
    ask(server.url, { prompt, max_tokens: 12, presence_penalty: 2, frequency_penalty: 2, repetition_penalty: 5 }),
  ]);
  const [forced, late, varied] = answers.map(({ token_ids }) => token_ids) as [number[], number[], number[]];
  expect(forced).toEqual(Array(12).fill(9));
  expect(late.slice(0, 7)).not.toContain(9);
  expect(late.slice(7)).toEqual([9]);
  expect(new Set(varied).size).toBe(12);
}, 60_000);

test("overlap gives the same tokens and logprobs", async () => {
  const answer = async (...flags: string[]) => {
    await using server = await serve(...flags);
    const drawn = { prompt, max_tokens: 40, temperature: 0.9, top_p: 0.95, seed: 5, logprobs: 3 };
    const changed = { repetition_penalty: 1.2, frequency_penalty: 0.3, logit_bias: { 9: 2 }, min_tokens: 30 };
    const { token_ids, logprobs } = await ask(server.url, { ...drawn, ...changed, stop_token_ids: ends });
    return { token_ids, logprobs };
  };
  expect(await answer()).toEqual(await answer("--disable-overlap"));
}, 60_000);
