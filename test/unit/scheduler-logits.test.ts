/** Requests that want more than tokens: who starts first, who shares prefixes, what is told of a prompt. */
import { describe, expect, test } from "bun:test";
import { Finish, MAX_LOGIT_ENTRIES, type Request, Statistic } from "../../src/message/types.ts";
import { EOS, loneRun } from "./support/simulated-engine.ts";
import { promptOf, request, type Setup, setUp } from "./support/traffic.ts";

/** Steps until nothing is left to do; returns the uids in the order in which they ended. */
function finish({ scheduler, output }: Setup, requests: readonly Request[]): number[] {
  const ended: number[] = [];
  for (let more = true; more; ) {
    more = scheduler.step();
    scheduler.checkInvariants();
    for (const { uid } of requests) {
      if (output.of(uid).finish !== Finish.none && !ended.includes(uid)) ended.push(uid);
    }
  }
  return ended;
}

function expectLone(setup: Setup, requests: readonly Request[]): void {
  for (const asked of requests) {
    const { cachedTokens, ...answer } = setup.output.of(asked.uid);
    expect(answer).toEqual(loneRun(asked, setup.engine.options));
  }
}

describe("priority", () => {
  test("the lower starts first, of equal ones the earlier", () => {
    const setup = setUp({}, { maxRunningRequests: 1 });
    const priorities = [0, 5, -3, 0, -3, 7];
    const requests = priorities.map((priority, i) => request(i + 1, promptOf(i, 5), 4, { priority }));
    for (const one of requests) setup.scheduler.add(one);
    expect(finish(setup, requests)).toEqual([3, 5, 1, 4, 2, 6]);
    expectLone(setup, requests);
  });

  test("one that comes first starts though the one before it in time does not fit", () => {
    const setup = setUp({ numPages: 60, maxContext: 60 });
    const requests = [
      request(1, promptOf(1, 30), 25),
      request(2, promptOf(2, 40), 5),
      request(3, promptOf(3, 5), 5, { priority: -1 }),
    ];
    for (const one of requests.slice(0, 2)) setup.scheduler.add(one);
    setup.scheduler.step();
    setup.scheduler.add(requests[2]);
    expect(finish(setup, requests)).toEqual([3, 1, 2]);
    expectLone(setup, requests);
  });

  test("the higher is preempted first, however early it started", () => {
    const setup = setUp({ numPages: 40, maxContext: 40 });
    const requests = [
      request(1, promptOf(1, 10), 20, { priority: 4 }),
      request(2, promptOf(2, 10), 20),
      request(3, promptOf(3, 10), 20),
    ];
    setup.scheduler.add(requests[0]);
    setup.scheduler.step();
    for (const one of requests.slice(1)) setup.scheduler.add(one);
    expect(finish(setup, requests).at(-1)).toBe(1);
    expect(setup.scheduler.statistics[Statistic.preemptions]).toBeGreaterThan(0);
    expectLone(setup, requests);
  });
});

test("a salt keeps prefixes apart", () => {
  const setup = setUp();
  const cached = (["", "a", "b", "a", ""] as const).map((namespace, i) => {
    const asked = request(i + 1, promptOf(1, 20), 2, { namespace });
    setup.scheduler.add(asked);
    finish(setup, [asked]);
    expectLone(setup, [asked]);
    return setup.output.of(asked.uid).cachedTokens;
  });
  expect(cached).toEqual([0, 0, 0, 19, 19]);
});

describe("logprobs of the prompt", () => {
  test("leave the prefix cache aside, and are computed as many at a time as there is room", () => {
    const setup = setUp({ maxSequences: 4, maxSamples: 6 });
    const tokens = promptOf(1, 20);
    const requests = [
      request(1, tokens, 3),
      request(2, tokens, 3, { promptLogprobs: 2, logprobs: 1 }),
      request(3, tokens, 3),
    ];
    for (const asked of requests) {
      setup.scheduler.add(asked);
      finish(setup, [asked]);
    }
    expect(requests.map(({ uid }) => setup.output.of(uid).cachedTokens)).toEqual([0, 0, 19]);
    const chunks = setup.engine.log.flatMap(({ rows }) => rows.map(({ count }) => count)).filter((count) => count > 1);
    expect(chunks).toEqual([20, 6, 6, 6, 2]);
    expect(setup.output.of(2).promptLogprobs.map(({ token }) => token)).toEqual([...tokens.slice(1)]);
    expectLone(setup, requests);
  });

  test("of a single token are none", () => {
    const setup = setUp();
    const asked = request(1, [7], 2, { promptLogprobs: 3 });
    setup.scheduler.add(asked);
    finish(setup, [asked]);
    expect(setup.output.of(1).promptLogprobs).toEqual([]);
    expectLone(setup, [asked]);
  });
});

test("min_tokens bans what would end the answer until they are generated", () => {
  for (const minTokens of [0, 5, 12]) {
    const setup = setUp({ eosRate: 1 });
    const asked = request(1, promptOf(1, 3), 12, { ignoreEos: false, stopTokenIds: [1, EOS + 2], minTokens });
    setup.scheduler.add(asked);
    finish(setup, [asked]);
    const { tokens, finish: end } = setup.output.of(1);
    expect(tokens).toEqual([...Array(minTokens).fill(3), ...(minTokens < 12 ? [EOS] : [])]);
    expect(end).toBe(minTokens < 12 ? Finish.stop : Finish.length);
  }
});

test("what changes more logits than are staged is refused", () => {
  const setup = setUp();
  const ids = Int32Array.from({ length: MAX_LOGIT_ENTRIES }, (_, i) => i);
  const logitBias = { ids, values: new Float32Array(ids.length).fill(1) };
  setup.scheduler.add(request(1, [1], 2, { logitBias, minTokens: 1 }));
  expect(setup.output.of(1).finish).toBe(Finish.error);
  expect(setup.output.refusals.get(1)).toInclude(`${MAX_LOGIT_ENTRIES + 1} logits`);
});
