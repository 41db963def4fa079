/** Checks of what works on the KV cache: rotary and store, attention, and a whole decode step in a graph. */
import * as ops from "../native/ops.ts";
import { MSGL_ATTENTION_AUTO, MSGL_ATTENTION_FI } from "../native/symbols.ts";
import { DType } from "../native/tensor.ts";
import { type HostBatch, hostBatch, type Row, STEPS } from "./batch.ts";
import { type Check, check, EPSILON, EXACT, nameOf } from "./lab.ts";

/** The checks for models of a type; caches: other types to keep keys and values in. flashinfer: --attn fi is there. */
export function attentionChecks(model: DType, caches: readonly DType[], flashinfer: boolean): Check[] {
  return [
    ...HEADS.flatMap((shape) => [rotary(shape, false, model), rotary(shape, true, model)]),
    ...caches.map((cache) => rotary(HEADS[1], true, cache)),
    ...attentions([1, 2, 5, 8], model, MSGL_ATTENTION_AUTO),
    ...caches.flatMap((cache) => attentions([2], cache, MSGL_ATTENTION_AUTO)),
    ...(flashinfer ? attentions([2, 5], model, MSGL_ATTENTION_FI) : []),
    graphs(model),
  ];
}

const HEADS: readonly ops.HeadShape[] = [
  { heads: 9, kvHeads: 3, headDim: 64 },
  { heads: 16, kvHeads: 8, headDim: 128 },
  { heads: 8, kvHeads: 1, headDim: 256 },
];
const headText = ({ heads, kvHeads, headDim }: ops.HeadShape) => `${heads}/${kvHeads} heads of ${headDim}`;

/** cos and sin of [positions, dim / 2] angles, [positions, dim]. */
const rotaryTable = (positions: number, dim: number) =>
  Float32Array.from({ length: positions * dim }, (_, i) => {
    const angle = Math.floor(i / dim) * 10000 ** ((-2 * (i % (dim / 2))) / dim);
    return i % dim < dim / 2 ? Math.cos(angle) : Math.sin(angle);
  });

function rotary(shape: ops.HeadShape, norm: boolean, cache: DType): Check {
  const { heads, kvHeads, headDim } = shape;
  const host = hostBatch(STEPS.mixed, 16);
  const how = `${norm ? ", head norm" : ""}, cache ${nameOf(cache)}`;
  return check("rotary_store", `${host.tokens} tokens, ${headText(shape)}${how}`, (lab) => {
    const qkv = lab.input(1, [host.tokens, (heads + 2 * kvHeads) * headDim], 2);
    const [qNorm, kNorm] = norm ? [lab.input(2, [headDim], 2), lab.input(3, [headDim], 2)] : [null, null];
    const table = lab.put(rotaryTable(1024, headDim), [1024, headDim], DType.F32);
    const q = lab.output([host.tokens, heads * headDim]);
    const [keys, values] = [4, 5].map((seed) => lab.input(seed, [host.poolRows, kvHeads * headDim], 1, cache));
    const batch = lab.batch(host);
    return {
      run: () => ops.rotaryStore(lab.device, q, keys, values, qkv, batch, table, qNorm, kNorm, shape, EPSILON),
      // The whole cache, so that rows which are not to be written stand in it as well.
      results: [lab.result(q, 1), lab.result(keys, 1), lab.result(values, 1)],
    };
  });
}

/** Every step with every head_dim and group; page sizes 1 and 16 alternate, so that each step and head_dim has both. */
function attentions(groups: readonly number[], cache: DType, backend: number): Check[] {
  return [64, 128, 256].flatMap((headDim, dim) =>
    groups.flatMap((group, index) =>
      (Object.keys(STEPS) as (keyof typeof STEPS)[]).map((step, at) => {
        const kvHeads = group < 5 ? 2 : 1;
        const shape = { heads: group * kvHeads, kvHeads, headDim };
        return attention(step, shape, (dim + index + at) % 2 === 0 ? 1 : 16, cache, backend);
      }),
    ),
  );
}

function attention(step: keyof typeof STEPS, shape: ops.HeadShape, pageSize: number, cache: DType, backend: number) {
  const { heads, kvHeads, headDim } = shape;
  const how = `pages of ${pageSize}, cache ${nameOf(cache)}${backend === MSGL_ATTENTION_FI ? ", fi" : ""}`;
  return check("attention", `${step}, ${headText(shape)}, ${how}`, (lab) => {
    const host = hostBatch(STEPS[step], pageSize);
    const q = lab.input(1, [host.tokens, heads * headDim], 4);
    // All of the pool: what lies beside a sequence's tokens must not count.
    const [keys, values] = [2, 3].map((seed) => lab.input(seed, [host.poolRows, kvHeads * headDim], 1, cache));
    const batch = lab.batch(host);
    const plan = lab.plan(shape, host, cache, backend);
    plan.update(host.queryLengths, host.contextLengths, host.sequences, host.decodeSequences, false);
    const out = lab.output([host.tokens, heads * headDim]);
    return {
      run: () => ops.attention(lab.device, out, q, keys, values, plan, batch, headDim ** -0.5),
      // Two roundings: of the probabilities, which tensor cores take in the model's type, and of the result.
      results: [lab.result(out, 2)],
    };
  });
}

/** A decode step captured at some contexts and replayed at others: the bits of running it there without a graph. */
const graphs = (model: DType) =>
  check("graph", "decode of 5 sequences, replayed at other contexts", (lab) => {
    const { device } = lab;
    const at = (...starts: number[]) =>
      hostBatch(
        starts.map((start): Row => [start, 1]),
        16,
      );
    const [captured, asked] = [at(7, 20, 63, 16, 299), at(31, 1, 500, 17, 64)];
    const shape = { heads: 8, kvHeads: 4, headDim: 64 };
    const [x, norm] = [lab.input(1, [5, 512]), lab.input(2, [512], 2)];
    const [project, head] = [lab.weight(1024, 512), lab.weight(4000, 512)];
    const table = lab.put(rotaryTable(512, 64), [512, 64], DType.F32);
    const [keys, values] = [3, 4].map((seed) => lab.input(seed, [asked.poolRows, 256], 1, model));
    const [normed, qkv, q, attended] = [512, 1024, 512, 512].map((width) => lab.output([5, width]));
    const logits = lab.output([5, 4000], DType.F32);
    const batch = lab.batch(asked); // the longer one: room for both
    const plan = lab.plan(shape, asked, model, MSGL_ATTENTION_AUTO);
    const set = ({ expanded, queryLengths, contextLengths }: HostBatch, graph: boolean) => {
      for (const part of Object.keys(batch) as (keyof typeof batch)[]) {
        device.upload(batch[part].pointer, Int32Array.from(expanded[part]));
      }
      plan.update(queryLengths, contextLengths, 5, 5, graph);
    };
    const forward = () => {
      ops.rmsNorm(device, normed, x, norm, EPSILON);
      ops.linear(device, qkv, normed, project, null);
      ops.rotaryStore(device, q, keys, values, qkv, batch, table, null, null, shape, EPSILON);
      ops.attention(device, attended, q, keys, values, plan, batch, 0.125);
      ops.linear(device, logits, attended, head, null);
    };
    set(asked, false);
    forward();
    const expected = lab.read(logits);
    set(captured, true);
    const graph = lab.graph(forward);
    device.fill(logits.pointer, 0xff, logits.bytes);
    set(asked, true);
    return { run: () => device.replay(graph), results: [lab.result(logits, EXACT, expected)] };
  });
