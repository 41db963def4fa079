import { describe, expect, test } from "bun:test";
import { Finish, type Request, Statistic } from "../../src/message/types.ts";
import { EOS, type LoggedStep, loneRun, type SimulatedOptions } from "./support/simulated-engine.ts";
import { promptOf, request, type Setup, setUp } from "./support/traffic.ts";

/** Steps until nothing is left to do, checking the invariants after each. */
function finish({ scheduler }: Setup): void {
  for (let steps = 0; scheduler.step(); steps++) {
    scheduler.checkInvariants();
    if (steps > 10000) throw new Error("it never ends");
  }
  scheduler.checkInvariants();
}

function steps(setup: Setup, count: number): void {
  for (let i = 0; i < count; i++) {
    setup.scheduler.step();
    setup.scheduler.checkInvariants();
  }
}

/** The answers so far are those of lone runs. */
function expectLone(setup: Setup, requests: Request[]): void {
  for (const asked of requests) {
    const { cachedTokens, ...answer } = setup.output.of(asked.uid);
    expect(answer).toEqual(loneRun(asked, setup.engine.options));
  }
}

const shapes = (log: LoggedStep[]) => log.map(({ rows }) => rows.map(({ count }) => count));
const statistic = ({ scheduler }: Setup, name: keyof typeof Statistic) => scheduler.statistics[Statistic[name]];

describe("a step", () => {
  test("takes whole prompts together while the budget lasts, then the begin of the next", () => {
    const setup = setUp({}, { maxPrefillLength: 10 });
    const requests = [4, 4, 7].map((length, i) => request(i + 1, promptOf(i, length), 3));
    for (const one of requests) setup.scheduler.add(one);
    finish(setup);
    // The third prompt: 2 tokens with the first two, the other 5 after their decode rows.
    expect(shapes(setup.engine.log).slice(0, 3)).toEqual([
      [4, 4, 2],
      [1, 1, 5],
      [1, 1, 1],
    ]);
    expect(setup.engine.log[0].rows.map(({ samples }) => samples)).toEqual([true, true, false]);
    expectLone(setup, requests);
  });

  test("fills its budget, and never exceeds it", () => {
    const setup = setUp({}, { maxPrefillLength: 16 });
    const requests = [40, 3, 25, 30].map((length, i) => request(i + 1, promptOf(i, length), 5));
    for (const one of requests) setup.scheduler.add(one);
    finish(setup);
    const prompts = 40 + 3 + 25 + 30;
    let computed = 0;
    for (const { tokens, rows, decodeRows } of setup.engine.log) {
      computed += rows.slice(decodeRows).reduce((sum, { count }) => sum + count, 0);
      if (computed < prompts) expect(tokens).toBe(16);
      expect(tokens).toBeLessThanOrEqual(16);
    }
    expect(computed).toBe(prompts);
    expectLone(setup, requests);
  });

  test("advances every running stream while a long prompt is computed, its rows first", () => {
    for (const overlap of [true, false]) {
      const setup = setUp({ maxContext: 180 }, { maxPrefillLength: 12, overlap });
      const streams = [1, 2, 3].map((uid) => request(uid, promptOf(uid, 2), 60));
      for (const one of streams) setup.scheduler.add(one);
      steps(setup, 3);
      const long = request(9, promptOf(9, 95), 4);
      setup.scheduler.add(long);
      const from = setup.engine.log.length;
      while (setup.output.of(9).tokens.length === 0) {
        const before = streams.map(({ uid }) => setup.output.of(uid).tokens.length);
        steps(setup, 1);
        streams.forEach(({ uid }, i) => {
          expect(setup.output.of(uid).tokens.length).toBe(before[i] + 1);
        });
      }
      const mixed = setup.engine.log.slice(from).filter(({ rows, decodeRows }) => rows.length > decodeRows);
      expect(mixed).toHaveLength(11);
      for (const { decodeRows, rows } of mixed) {
        expect(decodeRows).toBe(3);
        expect(rows.slice(0, 3).every(({ count, samples }) => count === 1 && samples)).toBe(true);
        expect(rows).toHaveLength(4);
      }
      // Ten chunks of the 9 tokens that the streams leave, and the rest.
      expect(mixed.map(({ rows }) => rows[3].count)).toEqual([...Array(10).fill(9), 5]);
      expect(mixed.map(({ rows }) => rows[3].samples)).toEqual([...Array(10).fill(false), true]);
      finish(setup);
      expectLone(setup, [...streams, long]);
    }
  });

  test("keeps other prompts waiting behind the one that is computed in chunks", () => {
    const setup = setUp({}, { maxPrefillLength: 10 });
    setup.scheduler.add(request(1, promptOf(1, 35), 2));
    setup.scheduler.add(request(2, promptOf(2, 3), 2));
    finish(setup);
    expect(shapes(setup.engine.log).slice(0, 5)).toEqual([[10], [10], [10], [5, 3], [1, 1]]);
  });

  test("has no more rows than may run, and starts the next when one ends", () => {
    const setup = setUp({}, { maxRunningRequests: 2 });
    const requests = [1, 2, 3, 4].map((uid) => request(uid, promptOf(uid, 4), uid + 1));
    for (const one of requests) setup.scheduler.add(one);
    steps(setup, 1);
    expect([statistic(setup, "runningRequests"), statistic(setup, "waitingRequests")]).toEqual([2, 2]);
    finish(setup);
    expect(Math.max(...setup.engine.log.map(({ rows }) => rows.length))).toBe(2);
    expectLone(setup, requests);
  });

  test("lets no more sequences run than the budget has tokens", () => {
    const setup = setUp({}, { maxPrefillLength: 3 });
    const requests = [1, 2, 3, 4, 5].map((uid) => request(uid, promptOf(uid, 4), 6));
    for (const one of requests) setup.scheduler.add(one);
    finish(setup);
    expect(Math.max(...setup.engine.log.map(({ tokens }) => tokens))).toBe(3);
    expectLone(setup, requests);
  });
});

describe("overlap", () => {
  test("launches the next step before it reads the last, and gives the same tokens without", () => {
    const answers = [true, false].map((overlap) => {
      const setup = setUp({ eosRate: 0.05 }, { overlap });
      const requests = [1, 2, 3].map((uid) => request(uid, promptOf(uid, 5), 20, { ignoreEos: false }));
      for (const one of requests) setup.scheduler.add(one);
      setup.scheduler.step();
      expect(setup.engine.launches - setup.engine.collects).toBe(overlap ? 1 : 0);
      finish(setup);
      expectLone(setup, requests);
      return requests.map(({ uid }) => setup.output.of(uid));
    });
    expect(answers[0]).toEqual(answers[1]);
  });

  test("launches no row beyond the length limit, and one too many after EOS", () => {
    for (const [overlap, surplus] of [
      [true, 1],
      [false, 0],
    ] as const) {
      const limited = setUp({}, { overlap });
      limited.scheduler.add(request(1, promptOf(1, 4), 6));
      finish(limited);
      expect(limited.engine.launches).toBe(6);
      const stopped = setUp({ eosRate: 1 }, { overlap });
      stopped.scheduler.add(request(1, promptOf(1, 4), 6, { ignoreEos: false }));
      finish(stopped);
      expect(stopped.output.of(1)).toMatchObject({ tokens: [EOS], finish: Finish.stop });
      expect(stopped.engine.launches).toBe(1 + surplus);
    }
  });

  test("reads nothing early to evict: a full cache does not stall the device", () => {
    const setup = setUp({ numPages: 40, maxContext: 40 });
    setup.scheduler.add(request(1, promptOf(1, 36), 3));
    finish(setup);
    setup.scheduler.add(request(2, promptOf(2, 4), 30));
    for (let i = 0; i < 30; i++) {
      steps(setup, 1);
      expect(setup.engine.launches - setup.engine.collects).toBe(1);
    }
  });
});

describe("the prefix cache", () => {
  test("spares what is known of a prompt, in whole pages and all but the last token", () => {
    for (const [pageSize, again, longer] of [
      [1, 19, 22],
      [4, 16, 20],
    ] as const) {
      const setup = setUp({ pageSize });
      const prompt = promptOf(1, 20);
      const first = request(1, prompt, 4);
      setup.scheduler.add(first);
      finish(setup);
      expect(setup.output.of(1).cachedTokens).toBe(0);
      const same = request(2, prompt, 4);
      setup.scheduler.add(same);
      finish(setup);
      expect(setup.output.of(2).cachedTokens).toBe(again);
      // The conversation goes on after the answer, whose last token is not in the cache.
      const next = request(3, [...prompt, ...setup.output.of(1).tokens, 5, 6], 4);
      setup.scheduler.add(next);
      finish(setup);
      expect(setup.output.of(3).cachedTokens).toBe(pageSize === 1 ? longer + 1 : longer);
      expectLone(setup, [first, same, next]);
      expect(statistic(setup, "promptTokens")).toBe(20 + 20 + 26);
      expect(statistic(setup, "cachedTokens")).toBe(again + setup.output.of(3).cachedTokens);
      expect(statistic(setup, "usedPages")).toBe(0);
      expect(statistic(setup, "cachedPages")).toBeGreaterThan(0);
    }
  });

  test("serves a prompt as soon as its prefill is launched", () => {
    const setup = setUp();
    setup.scheduler.add(request(1, promptOf(1, 20), 30));
    steps(setup, 1);
    setup.scheduler.add(request(2, promptOf(1, 20), 3));
    finish(setup);
    expect(setup.output.of(2).cachedTokens).toBe(19);
  });

  test("is not shared within the step that computes it, and duplicates are given back", () => {
    const setup = setUp();
    const requests = [1, 2, 3].map((uid) => request(uid, promptOf(1, 10), 8));
    for (const one of requests) setup.scheduler.add(one);
    steps(setup, 1);
    expect(shapes(setup.engine.log)).toEqual([[10, 10, 10]]);
    expect(statistic(setup, "usedPages")).toBe(30);
    // Their rows now point to the pages of the first, and each has one page more.
    steps(setup, 1);
    expect(statistic(setup, "usedPages")).toBe(10 + 3);
    finish(setup);
    expectLone(setup, requests);
  });

  test("gives duplicates back piece by piece when staging is short", () => {
    const setup = setUp({ pageSize: 4, maxContext: 80, maxPageValues: 20, maxSequences: 16, maxTokens: 200 });
    const others = Array.from({ length: 12 }, (_, i) => request(i + 1, promptOf(i + 1, 1), 18));
    for (const one of others) setup.scheduler.add(one);
    steps(setup, 2);
    const twins = [20, 21].map((uid) => request(uid, promptOf(20, 32), 4));
    for (const one of twins) setup.scheduler.add(one);
    steps(setup, 1);
    expect(statistic(setup, "usedPages")).toBe(12 + 16);
    // Of 20 words, one is kept for each of 14 rows: 6 duplicates go, and the twins take a page each.
    steps(setup, 1);
    expect(statistic(setup, "usedPages")).toBe(12 + 16 + 2 - 6);
    // The other 2 go, and each of the 12 takes a page.
    steps(setup, 1);
    expect(statistic(setup, "usedPages")).toBe(12 + 16 + 2 - 8 + 12);
    finish(setup);
    expectLone(setup, [...others, ...twins]);
  });

  test("naive: keeps nothing", () => {
    const setup = setUp({}, { cache: "naive" });
    for (const uid of [1, 2]) {
      setup.scheduler.add(request(uid, promptOf(1, 10), 3));
      finish(setup);
      expect(setup.output.of(uid).cachedTokens).toBe(0);
      expect(statistic(setup, "cachedPages")).toBe(0);
    }
  });

  test("is flushed only when nothing lives", () => {
    const setup = setUp();
    setup.scheduler.add(request(1, promptOf(1, 10), 3));
    expect(setup.scheduler.flushCache()).toBe(false);
    steps(setup, 1);
    expect(setup.scheduler.flushCache()).toBe(false);
    finish(setup);
    expect(statistic(setup, "cachedPages")).toBeGreaterThan(0);
    expect(setup.scheduler.flushCache()).toBe(true);
    expect(statistic(setup, "cachedPages")).toBe(0);
    setup.scheduler.add(request(2, promptOf(1, 10), 3));
    finish(setup);
    expect(setup.output.of(2).cachedTokens).toBe(0);
  });
});

describe("when pages run out", () => {
  const small: Partial<SimulatedOptions> = { numPages: 30, maxContext: 30 };

  test("the youngest is preempted, waits at the front, and comes back before those behind it", () => {
    for (const overlap of [true, false]) {
      const setup = setUp(small, { overlap });
      const requests = [1, 2, 3, 4].map((uid) => request(uid, promptOf(uid, 6), 16));
      for (const one of requests) setup.scheduler.add(one);
      const ends: number[] = [];
      const preempted: number[] = [];
      const { scheduler } = setup;
      const internals = scheduler as unknown as { preempt(sequence: { uid: number }): void };
      const preempt = internals.preempt.bind(scheduler);
      internals.preempt = (sequence) => {
        preempted.push(sequence.uid);
        preempt(sequence as never);
      };
      while (ends.length < requests.length) {
        steps(setup, 1);
        for (const { uid } of requests) {
          if (setup.output.of(uid).finish !== Finish.none && !ends.includes(uid)) ends.push(uid);
        }
      }
      expect(preempted.slice(0, 2)).toEqual([4, 3]);
      expect(preempted).not.toContain(1);
      expect(statistic(setup, "preemptions")).toBe(preempted.length);
      expect(ends).toEqual([1, 2, 3, 4]);
      expectLone(setup, requests);
    }
  });

  test("a sequence does not start before its prompt and a page for each running one fit", () => {
    const setup = setUp(small);
    setup.scheduler.add(request(1, promptOf(1, 10), 12));
    setup.scheduler.add(request(2, promptOf(2, 20), 4));
    steps(setup, 5);
    expect([statistic(setup, "runningRequests"), statistic(setup, "waitingRequests")]).toEqual([1, 1]);
    finish(setup);
    expect(statistic(setup, "preemptions")).toBe(0);
    expectLone(setup, [request(1, promptOf(1, 10), 12), request(2, promptOf(2, 20), 4)]);
  });

  test("nobody overtakes the first in the queue", () => {
    const setup = setUp(small);
    setup.scheduler.add(request(1, promptOf(1, 10), 12));
    setup.scheduler.add(request(2, promptOf(2, 20), 4));
    setup.scheduler.add(request(3, promptOf(3, 1), 1));
    steps(setup, 5);
    expect(setup.output.of(3).tokens).toHaveLength(0);
    finish(setup);
    expect(setup.output.of(3).tokens).toHaveLength(1);
  });

  test("one sequence may fill the whole pool, cached twin and all", () => {
    for (const pageSize of [1, 3]) {
      const setup = setUp({ numPages: 12 / pageSize, maxContext: 12, pageSize });
      const requests = [1, 2].map((uid) => request(uid, promptOf(1, 10), 2));
      for (const one of requests) {
        setup.scheduler.add(one);
        finish(setup);
      }
      expectLone(setup, requests);
    }
  });

  test("a request that can never fit is refused with a reason, and the next one works", () => {
    const setup = setUp(small);
    setup.scheduler.add(request(1, promptOf(1, 20), 11));
    setup.scheduler.add(request(2, [], 3));
    setup.scheduler.add(request(3, [1], 0));
    for (const uid of [1, 2, 3]) expect(setup.output.of(uid)).toMatchObject({ tokens: [], finish: Finish.error });
    expect(setup.output.refusals.get(1)).toContain("20 tokens");
    expect(setup.output.refusals.get(1)).toContain("30");
    expect(setup.scheduler.step()).toBe(false);
    const good = request(4, promptOf(4, 20), 10);
    setup.scheduler.add(good);
    finish(setup);
    expectLone(setup, [good]);
  });

  test("a uid that lives is not taken twice", () => {
    const setup = setUp();
    setup.scheduler.add(request(1, [1, 2], 3));
    expect(() => setup.scheduler.add(request(1, [1, 2], 3))).toThrow("lives already");
    finish(setup);
    setup.scheduler.add(request(2, [1, 2], 3));
    finish(setup);
  });
});

describe("an abort", () => {
  test("of what waits ends it at once", () => {
    const setup = setUp({}, { maxRunningRequests: 1 });
    setup.scheduler.add(request(1, promptOf(1, 5), 5));
    setup.scheduler.add(request(2, promptOf(2, 5), 5));
    setup.scheduler.add(request(3, promptOf(3, 5), 5));
    setup.scheduler.step();
    setup.scheduler.abort(2);
    expect(setup.output.of(2)).toMatchObject({ tokens: [], finish: Finish.abort, cachedTokens: 0 });
    finish(setup);
    expect(setup.output.of(2).tokens).toHaveLength(0);
    expectLone(setup, [request(1, promptOf(1, 5), 5), request(3, promptOf(3, 5), 5)]);
  });

  test("frees the pages by the end of the next step, in prefill and in decode", () => {
    for (const overlap of [true, false]) {
      for (const before of [1, 2, 7, 9]) {
        const setup = setUp({}, { maxPrefillLength: 10, overlap, cache: "naive" });
        setup.scheduler.add(request(1, promptOf(1, 50), 20));
        steps(setup, before);
        expect(statistic(setup, "usedPages")).toBeGreaterThan(0);
        setup.scheduler.abort(1);
        setup.scheduler.abort(1);
        steps(setup, 1);
        expect(statistic(setup, "usedPages")).toBe(0);
        expect(setup.output.of(1).finish).toBe(Finish.abort);
        expect(setup.scheduler.step()).toBe(false);
        expect(setup.scheduler.flushCache()).toBe(true);
      }
    }
  });

  test("of a long prompt lets the next one start, and keeps what was computed for the cache", () => {
    const setup = setUp({}, { maxPrefillLength: 10 });
    setup.scheduler.add(request(1, promptOf(1, 50), 20));
    setup.scheduler.add(request(2, promptOf(1, 30), 5));
    steps(setup, 2);
    setup.scheduler.abort(1);
    steps(setup, 1);
    finish(setup);
    expect(setup.output.of(1).finish).toBe(Finish.abort);
    expectLone(setup, [request(2, promptOf(1, 30), 5)]);
    setup.scheduler.add(request(3, promptOf(1, 20), 1));
    finish(setup);
    expect(setup.output.of(3).cachedTokens).toBe(19);
  });

  test("of unknown and ended requests is ignored", () => {
    const setup = setUp();
    setup.scheduler.abort(77);
    setup.scheduler.add(request(1, promptOf(1, 5), 2));
    finish(setup);
    const before = structuredClone(setup.output.of(1));
    setup.scheduler.abort(1);
    setup.scheduler.step();
    expect(setup.output.of(1)).toEqual(before);
    expect(setup.output.received.has(77)).toBe(false);
  });
});

describe("an answer ends", () => {
  test("by EOS, by a stop token even past EOS, or by its length", () => {
    const options = { eosRate: 0.2 };
    const free = request(1, promptOf(1, 5), 40);
    const setup = setUp(options);
    const alone = loneRun(free, setup.engine.options).tokens;
    const eos = alone.indexOf(EOS);
    const stop = alone.findLast((token) => token !== EOS)!;
    const requests = [
      free,
      request(2, free.tokens, 40, { ignoreEos: false }),
      request(3, free.tokens, 40, { stopTokenIds: [stop] }),
    ];
    expect(eos).toBeGreaterThan(0);
    for (const one of requests) setup.scheduler.add(one);
    finish(setup);
    expect(setup.output.of(1)).toMatchObject({ tokens: alone, finish: Finish.length });
    expect(setup.output.of(2)).toMatchObject({ tokens: alone.slice(0, eos + 1), finish: Finish.stop });
    expect(setup.output.of(3)).toMatchObject({ tokens: alone.slice(0, alone.indexOf(stop) + 1), finish: Finish.stop });
    expectLone(setup, requests);
  });
});
