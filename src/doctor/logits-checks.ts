/** Checks of what is done to logits before a token is drawn, and told of them afterwards. */
import * as ops from "../native/ops.ts";
import { MSGL_MAX_TOP_LOGPROBS } from "../native/symbols.ts";
import { DType } from "../native/tensor.ts";
import { type Check, check, EXACT, type Lab, randomValues } from "./lab.ts";

export const logitsChecks: Check[] = [
  bias(200, 64, 32001),
  penalties(64, 32001, 1000),
  penalties(1, 49152, 131072),
  ...[0, 1, MSGL_MAX_TOP_LOGPROBS].map((top) => logprobs(64, 32001, top)),
  logprobs(2, 151936, MSGL_MAX_TOP_LOGPROBS),
];

/** In steps of 1/16, so that many logits are equal, the largest among them. */
const logitsIn = (lab: Lab, rows: number, vocabulary: number) => {
  const values = randomValues(5, rows * vocabulary, 6).map((value) => Math.round(value * 16) / 16);
  return lab.put(values, [rows, vocabulary], DType.F32);
};

function bias(count: number, rows: number, vocabulary: number): Check {
  return check("logit_bias", `${count} of [${rows}, ${vocabulary}]`, (lab) => {
    const logits = logitsIn(lab, rows, vocabulary);
    const words = new Int32Array(count * 3);
    const values = new Float32Array(words.buffer);
    for (let i = 0; i < count; i++) {
      words.set([i % rows, (i * 7919) % vocabulary], i * 3);
      values[i * 3 + 2] = i % 4 === 3 ? Number.NEGATIVE_INFINITY : i / 7 - 9;
    }
    const entries = lab.ints(words).pointer;
    return { run: () => ops.logitBias(lab.device, logits, entries, count), results: [lab.result(logits, EXACT)] };
  });
}

/** Every second row has all penalties, the others one of them each. */
function penalties(count: number, vocabulary: number, length: number): Check {
  return check("penalize", `[${count}, ${vocabulary}], contexts of ${length}`, (lab) => {
    const logits = logitsIn(lab, count, vocabulary);
    const table = Int32Array.from({ length: count * length }, (_, i) => Math.imul(i % 700, 40503) % vocabulary);
    const words = new Int32Array(count * 8);
    const values = new Float32Array(words.buffer);
    for (let i = 0; i < count; i++) {
      const has = (kind: number) => i % 2 === 0 || (i >> 1) % 3 === kind;
      words.set([count - 1 - i, i, length >> 2, length - i], i * 8);
      values.set([has(0) ? 1.2 : 1, has(1) ? 0.7 : 0, has(2) ? 0.3 : 0], i * 8 + 4);
    }
    const tokens = lab.put(table, [count, length], DType.I32);
    const [rows, seen] = [lab.ints(words), lab.ints(new Int32Array(count * 2 * Math.ceil(vocabulary / 32)))];
    return {
      run: () => ops.penalize(lab.device, logits, seen.pointer, tokens, rows.pointer, count),
      results: [lab.result(logits, EXACT), lab.result(seen, EXACT, new Int32Array(seen.size))],
    };
  });
}

function logprobs(count: number, vocabulary: number, top: number): Check {
  return check("logprobs", `[${count}, ${vocabulary}], the first ${top}`, (lab) => {
    const logits = logitsIn(lab, count, vocabulary);
    const wanted = Array.from({ length: count }, (_, i) => [count - 1 - i, i % 2 === 0 ? -1 : i * 31]);
    const sampled = lab.ints(wanted.map((_, i) => i * 77)).pointer;
    const rows = lab.ints(wanted.flat()).pointer;
    const [own, best] = [lab.output([count, 1], DType.F32), lab.output([count, Math.max(top, 1)], DType.F32)];
    const ids = lab.output(best.shape, DType.I32);
    const results = { logprobs: own.pointer, topIds: ids.pointer, topLogprobs: best.pointer };
    return {
      run: () => ops.logprobs(lab.device, results, logits, sampled, rows, count, top),
      results: [lab.result(own, 1), ...(top > 0 ? [lab.result(ids, EXACT), lab.result(best, 1)] : [])],
    };
  });
}
