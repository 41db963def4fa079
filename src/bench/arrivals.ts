/** Which requests the online benchmark sends, and when: a trace that was recorded, or random arrivals. */
import { uniform } from "./workload.ts";

/** A request to come. */
export interface ArrivalPlan {
  /** Milliseconds after the begin at which it is due. */
  at: number;
  inputLength: number;
  outputLength: number;
}

/** A length, or the bounds of uniformly drawn ones, both included. */
export type LengthRange = readonly [least: number, most: number];

/**
 * Reads a trace: a line of JSON a request, {"timestamp", "input_length", "output_length"} with the timestamp in
 * milliseconds, as Mooncake's traces have it. The first request is due at once; lines may be in any order.
 * @param speed factor on the rate of arrivals
 * @throws Error naming the first line that is not such an object
 */
export function parseTrace(text: string, speed = 1): ArrivalPlan[] {
  const plans = text.split("\n").flatMap((line, index) => (line.trim() === "" ? [] : [parseLine(line, index + 1)]));
  if (plans.length === 0) throw new Error("the trace has no requests");
  plans.sort((a, b) => a.at - b.at);
  const begin = plans[0].at;
  return plans.map((plan) => ({ ...plan, at: (plan.at - begin) / speed }));
}

function parseLine(line: string, number: number): ArrivalPlan {
  let fields: Record<string, unknown>;
  try {
    fields = Object(JSON.parse(line));
  } catch {
    throw new Error(`line ${number} of the trace is not JSON`);
  }
  const { timestamp, input_length, output_length } = fields;
  const isLength = (value: unknown): value is number => Number.isInteger(value) && (value as number) > 0;
  if (typeof timestamp !== "number" || !isLength(input_length) || !isLength(output_length)) {
    throw new Error(
      `line ${number} of the trace must have a numeric timestamp, and an input_length and output_length of at least 1`,
    );
  }
  return { at: timestamp, inputLength: input_length, outputLength: output_length };
}

/**
 * Requests without end, as a Poisson process of `rate` a second; Infinity makes all of them due at once. The same for
 * the same seed.
 */
export function* poissonArrivals(
  rate: number,
  input: LengthRange,
  output: LengthRange,
  seed: number,
): Generator<ArrivalPlan, never> {
  const draw = uniform(seed);
  const length = ([least, most]: LengthRange) => least + Math.floor(draw() * (most - least + 1));
  for (let at = 0; ; at += (-1000 * Math.log(1 - draw())) / rate) {
    yield { at, inputLength: length(input), outputLength: length(output) };
  }
}
