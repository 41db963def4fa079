/** Penalties, biases, min_tokens and logprobs against transformers' logits processors: see scripts/make-fixtures.py. */
import { describe, expect, test } from "bun:test";
import { runLone } from "../../src/engine/lone.ts";
import type { StepLogprobs } from "../../src/engine/types.ts";
import type { Request } from "../../src/message/types.ts";
import { checkParameters } from "../../src/runtime/parameters.ts";
import type { GenerationParameters } from "../../src/runtime/types.ts";
import { Sequence } from "../../src/scheduler/sequence.ts";
import { fixturePath, openEngine } from "./support.ts";

const MODEL = "llama-tied-llama3";

interface Rows {
  logprobs: number[];
  topIds: number[][];
  topLogprobs: number[][];
}

interface Changed {
  prompt: number[];
  /** Ids that end an answer where minTokens is given. */
  ends: number[];
  top: number;
  promptLogprobs: Rows;
  cases: ({ parameters: Record<string, unknown>; tokens: number[] } & Rows)[];
}

const reference: Changed = await Bun.file(`${fixturePath(MODEL)}/changed.json`).json();
const { prompt, ends, top } = reference;

function toRequest(parameters: Record<string, unknown>, vocabularySize: number): Request {
  const bias = Object.entries((parameters.logitBias ?? {}) as Record<string, number>);
  const asked: GenerationParameters = {
    ...parameters,
    temperature: 0,
    logitBias: new Map(bias.map(([id, value]) => [Number(id), value])),
    ignoreEos: true,
    stopTokenIds: "minTokens" in parameters ? ends : [],
    logprobs: top,
    promptLogprobs: top,
  };
  const checked = checkParameters(asked, { defaults: {}, vocabularySize, hasText: false });
  return { ...checked, uid: 1, tokens: Int32Array.from(prompt), maxTokens: 24, queuedAt: 0 };
}

/** Equal ids, and logprobs within 1e-5. */
function expectRows(actual: readonly StepLogprobs[], expected: Rows): void {
  const flat = (kind: "logprobs" | "topIds" | "topLogprobs") => actual.flatMap((step) => [...step[kind]]);
  expect(flat("topIds")).toEqual(expected.topIds.flat());
  for (const kind of ["logprobs", "topLogprobs"] as const) {
    const wanted = expected[kind].flat();
    const given = flat(kind);
    expect(given).toHaveLength(wanted.length);
    given.forEach((value, i) => {
      expect(Math.abs(value - wanted[i])).toBeLessThan(1e-5);
    });
  }
}

describe("as transformers computes it", () => {
  test.each(reference.cases.map((one) => [JSON.stringify(one.parameters), one] as const))("%s", async (_, one) => {
    using engine = await openEngine(MODEL);
    const request = toRequest(one.parameters, 131);
    const { logits } = new Sequence(request, engine.eosTokenIds, 0);
    const options = { logits: logits!, promptLogprobs: top, chunk: 40 };
    const { tokens, logprobs } = runLone(engine, prompt, one.tokens.length, options);
    expect(tokens).toEqual(one.tokens);
    // The first step has the prompt's rows, then that of the first token.
    const [first, ...later] = logprobs;
    const cut = prompt.length - 1;
    const part = (from: number, to: number): StepLogprobs => ({
      top,
      logprobs: first.logprobs.slice(from, to),
      topIds: first.topIds.slice(from * top, to * top),
      topLogprobs: first.topLogprobs.slice(from * top, to * top),
    });
    expectRows([part(0, cut)], reference.promptLogprobs);
    expectRows([part(cut, cut + 1), ...later], one);
  });

  test("the cases differ, and the answers that end do so after min_tokens", () => {
    expect(new Set(reference.cases.map(({ tokens }) => tokens.join())).size).toBe(reference.cases.length);
    for (const { parameters, tokens } of reference.cases) {
      if (!("minTokens" in parameters)) continue;
      const at = tokens.findIndex((token) => ends.includes(token));
      expect(at === -1 || at >= (parameters.minTokens as number)).toBe(true);
    }
  });
});
