import { describe, expect, test } from "bun:test";
import { StopMatcher } from "../../src/tokenizer/stop.ts";

/** Pushes the pieces; gives what came out of each, the stop string, and what flush gave. */
function run(stops: string[], pieces: string[]) {
  const matcher = new StopMatcher(stops);
  const texts: string[] = [];
  let stopped: string | null = null;
  for (const piece of pieces) {
    const result = matcher.push(piece);
    texts.push(result.text);
    stopped = result.stopped;
  }
  return { texts, stopped, rest: matcher.flush() };
}

describe("holding back", () => {
  test("nothing without stop strings", () => {
    expect(run([], ["a", "b"])).toEqual({ texts: ["a", "b"], stopped: null, rest: "" });
    expect(run([""], ["a"])).toEqual({ texts: ["a"], stopped: null, rest: "" });
  });

  test("only what could be the beginning of one", () => {
    expect(run(["END"], ["abc E", "N", "x", "EN"])).toEqual({
      texts: ["abc ", "", "ENx", ""],
      stopped: null,
      rest: "EN",
    });
  });

  test("and no more of it than may still become one", () => {
    expect(run(["aab"], ["a", "a", "a", "a"])).toEqual({ texts: ["", "", "a", "a"], stopped: null, rest: "aa" });
    expect(run(["abcX", "bcY"], ["abc", "Y"])).toEqual({ texts: ["", "a"], stopped: "bcY", rest: "" });
  });
});

describe("stopping", () => {
  test("over the borders of pieces, without the stop string", () => {
    expect(run(["\n\nUser:"], ["Hi.\n", "\nUs", "er: more"])).toEqual({
      texts: ["Hi.", "", ""],
      stopped: "\n\nUser:",
      rest: "",
    });
    expect(run(["b"], ["abc"])).toEqual({ texts: ["a"], stopped: "b", rest: "" });
  });

  test("at the first stop string to be complete; of those that end together, the longest", () => {
    expect(run(["cd", "b"], ["abcd"])).toMatchObject({ texts: ["a"], stopped: "b" });
    expect(run(["abcd", "bc"], ["abcd"])).toMatchObject({ texts: ["a"], stopped: "bc" });
    expect(run(["c", "bc"], ["abc"])).toMatchObject({ texts: ["a"], stopped: "bc" });
    expect(run(["bc", "c"], ["abc"])).toMatchObject({ texts: ["a"], stopped: "bc" });
  });

  test("once: what comes later is dropped", () => {
    expect(run(["."], ["a.b", "c.d"])).toEqual({ texts: ["a", ""], stopped: ".", rest: "" });
  });

  test("works on any characters", () => {
    expect(run(["😀!"], ["x😀", "!"])).toEqual({ texts: ["x", ""], stopped: "😀!", rest: "" });
  });
});

test("agrees with looking through the whole text, for random texts and stop strings", () => {
  let state = 5;
  const random = (limit: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % limit;
  };
  const word = (length: number) => Array.from({ length }, () => "ab"[random(2)]).join("");
  for (let round = 0; round < 3000; round++) {
    const stops = Array.from({ length: 1 + random(4) }, () => word(1 + random(6)));
    const text = word(random(24));
    let end = text.length + 1;
    let stop: string | null = null;
    for (const candidate of stops) {
      const at = text.indexOf(candidate) + candidate.length;
      if (!text.includes(candidate) || at > end || (at === end && candidate.length <= stop!.length)) continue;
      end = at;
      stop = candidate;
    }
    const expected = stop === null ? text : text.slice(0, end - stop.length);

    const matcher = new StopMatcher(stops);
    let out = "";
    let stopped: string | null = null;
    for (let at = 0; at < text.length && stopped === null; ) {
      const piece = text.slice(at, at + 1 + random(4));
      at += piece.length;
      const result = matcher.push(piece);
      out += result.text;
      stopped = result.stopped;
      if (stopped !== null) continue;
      // As early as possible: what is held is the longest end of the text so far that begins a stop string.
      let held = Math.min(at, 5);
      while (held > 0 && !stops.some((s) => s.length > held && s.startsWith(text.slice(at - held, at)))) held--;
      expect(out).toBe(text.slice(0, at - held));
    }
    expect({ text: out + matcher.flush(), stopped }).toEqual({ text: expected, stopped: stop });
  }
});

test("many and long stop strings cost a step a character", () => {
  const stops = Array.from({ length: 5000 }, (_, i) => `stop ${i} ${"a".repeat(i % 50)}`);
  stops.push("a".repeat(200_000), "xy".repeat(1_000_000));
  const started = performance.now();
  const matcher = new StopMatcher(stops);
  let length = 0;
  for (let i = 0; i < 100_000; i++) length += matcher.push(i % 1000 === 999 ? "b" : "aa").text.length;
  length += matcher.flush().length;
  expect(length).toBe(199_900);
  // Quadratic matching would take minutes.
  expect(performance.now() - started).toBeLessThan(10_000);
});
