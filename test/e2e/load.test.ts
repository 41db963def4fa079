/** Many requests at once, in float32, where a batch must not change an answer. */
import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { Installation, type TestServer } from "./support.ts";

setDefaultTimeout(120_000);
const installation = new Installation();
let server: TestServer;
const model = "default";

beforeAll(async () => {
  // A small pool and small prefill steps, so that chunking, eviction and preemption happen.
  server = await installation.serve("--dtype", "float32", "--num-pages", "1000", "--max-prefill-length", "48");
});
afterEach(() => server.untilIdle());
afterAll(() => installation.remove());

const prompts = Array.from({ length: 16 }, (_, index) => {
  const opening = index % 2 === 0 ? "Once upon a time there was" : "The history of mathematics begins with";
  return `${opening} ${"a very long road and ".repeat(index)}number ${index}`;
});

const complete = async (prompt: string, seeded: boolean): Promise<string> => {
  const sampling = seeded ? { temperature: 0.9, top_p: 0.9, seed: prompt.length } : { temperature: 0 };
  return (await server.client.completions.create({ model, prompt, max_tokens: 12, ...sampling })).choices[0].text;
};

test("an answer is the same alone and among others, greedy and seeded", async () => {
  const sample = prompts.filter((_, index) => index % 5 === 1);
  const alone: string[] = [];
  for (const prompt of sample) alone.push(await complete(prompt, false), await complete(prompt, true));
  await server.post("/flush_cache", "");
  const all = await Promise.all(prompts.flatMap((prompt) => [complete(prompt, false), complete(prompt, true)]));
  const among = prompts.flatMap((prompt, index) =>
    sample.includes(prompt) ? [all[2 * index], all[2 * index + 1]] : [],
  );
  expect(among).toEqual(alone);
});

test("a running stream goes on while a long prompt is computed", async () => {
  const long = Array.from({ length: 120 }, (_, index) => `item ${index}`).join(", ");
  const stream = await server.client.completions.create({
    model,
    prompt: "Write a list of words:",
    max_tokens: 200,
    stream: true,
    ...({ ignore_eos: true } as object),
  });
  let answered = false;
  let during = 0;
  let prompt: Promise<number> | null = null;
  for await (const _ of stream) {
    prompt ??= server.client.completions.create({ model, prompt: long, max_tokens: 1 }).then(({ usage }) => {
      answered = true;
      return usage!.prompt_tokens;
    });
    if (answered) break;
    during++;
  }
  // One decode in each step of the prompt, give or take what lies between the two HTTP connections.
  const steps = Math.ceil((await prompt!) / 48);
  expect(steps).toBeGreaterThan(10);
  expect(during).toBeGreaterThan(steps / 2);
});

test("more requests than memory are all answered", async () => {
  const requests = Array.from({ length: 12 }, (_, index) =>
    server.client.completions.create({
      model,
      prompt: `${index}: ${"many words in a row ".repeat(25)}`,
      max_tokens: 8,
      ...({ ignore_eos: true } as object),
    }),
  );
  const answers = await Promise.all(requests);
  expect(answers.map(({ usage }) => usage!.completion_tokens)).toEqual(answers.map(() => 8));
  expect(answers.reduce((sum, { usage }) => sum + usage!.prompt_tokens, 0)).toBeGreaterThan(1400);
});

test("memory after 1,000 requests is that after 100", async () => {
  const memoryAfter = async (count: number) => {
    for (let done = 0; done < count; done += 50) {
      await Promise.all(
        Array.from({ length: 50 }, (_, index) =>
          server.client.completions.create({ model, prompt: `${index} times`, max_tokens: 2, temperature: 0 }),
        ),
      );
    }
    return server.memoryAtRest();
  };
  const early = await memoryAfter(100);
  expect((await memoryAfter(900)) / early).toBeLessThan(1.05);
});
