/** A typed function for each op of minisgl.h; shapes and types are taken from the tensors. Enqueue and return. */
import { type Pointer, ptr } from "bun:ffi";
import type { Device } from "./device.ts";
import { out } from "./library.ts";
import { MSGL_SAMPLE_FILTER, MSGL_SAMPLE_RANDOM } from "./symbols.ts";
import type { DType, Tensor } from "./tensor.ts";
import type { Weight } from "./weight.ts";

/** Rows of [rows, ...]. */
const rowsOf = (x: Tensor) => x.shape[0] as number;
/** Last dimension. */
const widthOf = (x: Tensor) => x.shape[x.shape.length - 1] as number;

/** Writes `count` runs of words into table [rows, stride] of int32. */
export function tableWrite(device: Device, table: Tensor, patches: Pointer, values: Pointer, count: number): void {
  const { library, handle } = device;
  device.check(library.msgl_table_write(handle, table.pointer, patches, values, count, widthOf(table)));
}

/** What msgl_expand makes of a batch; int32 arrays on the device. */
export interface ExpandedBatch {
  ids: Tensor;
  positions: Tensor;
  cacheRows: Tensor;
  sampleRows: Tensor;
  queryBegin: Tensor;
  pageBegin: Tensor;
  pages: Tensor;
  lastPageLength: Tensor;
}

export function expand(
  device: Device,
  batch: ExpandedBatch,
  sequenceRows: Pointer,
  tokenTable: Tensor,
  pageTable: Tensor,
  sequences: number,
  tokens: number,
  pageSize: number,
): void {
  device.check(
    device.library.msgl_expand(
      device.handle,
      batch.ids.pointer,
      batch.positions.pointer,
      batch.cacheRows.pointer,
      batch.sampleRows.pointer,
      batch.queryBegin.pointer,
      batch.pageBegin.pointer,
      batch.pages.pointer,
      batch.lastPageLength.pointer,
      sequenceRows,
      tokenTable.pointer,
      pageTable.pointer,
      sequences,
      tokens,
      widthOf(tokenTable),
      widthOf(pageTable),
      pageSize,
    ),
  );
}

/** out[tokens, columns] = weight[ids]. */
export function embedding(device: Device, result: Tensor, ids: Tensor, weight: Weight): void {
  const { library, handle } = device;
  device.check(
    library.msgl_embedding(handle, result.pointer, ids.pointer, weight.handle, rowsOf(result), result.dtype),
  );
}

/** out[tokens, rows] = x[tokens, columns] weight^T + bias. */
export function linear(device: Device, result: Tensor, x: Tensor, weight: Weight, bias: Tensor | null): void {
  const status = device.library.msgl_linear(
    device.handle,
    result.pointer,
    x.pointer,
    weight.handle,
    bias ? bias.pointer : null,
    rowsOf(x),
    x.dtype,
    result.dtype,
  );
  device.check(status);
}

/** result += x weight^T + bias. scratch: as result. */
export function linearAdd(
  device: Device,
  result: Tensor,
  scratch: Tensor,
  x: Tensor,
  weight: Weight,
  bias: Tensor | null,
): void {
  const status = device.library.msgl_linear_add(
    device.handle,
    result.pointer,
    scratch.pointer,
    x.pointer,
    weight.handle,
    bias ? bias.pointer : null,
    rowsOf(x),
    x.dtype,
  );
  device.check(status);
}

/** A norm's weight [columns] and epsilon. */
export interface Norm {
  weight: Tensor;
  epsilon: number;
}

/** result = rmsNorm(x) weight^T + bias. normed: scratch, as x. */
export function normLinear(
  device: Device,
  result: Tensor,
  normed: Tensor,
  x: Tensor,
  norm: Norm,
  weight: Weight,
  bias: Tensor | null,
): void {
  const status = device.library.msgl_norm_linear(
    device.handle,
    result.pointer,
    normed.pointer,
    x.pointer,
    norm.weight.pointer,
    weight.handle,
    bias ? bias.pointer : null,
    rowsOf(x),
    norm.epsilon,
    x.dtype,
    result.dtype,
  );
  device.check(status);
}

/** result[tokens, rows / 2] = silu(gate) * up, with [gate, up] = rmsNorm(x) weight^T. Scratch: gateUp, normed. */
export function normGatedLinear(
  device: Device,
  result: Tensor,
  gateUp: Tensor,
  normed: Tensor,
  x: Tensor,
  norm: Norm,
  weight: Weight,
): void {
  const status = device.library.msgl_norm_gated_linear(
    device.handle,
    result.pointer,
    gateUp.pointer,
    normed.pointer,
    x.pointer,
    norm.weight.pointer,
    weight.handle,
    rowsOf(x),
    norm.epsilon,
    x.dtype,
  );
  device.check(status);
}

export function rmsNorm(device: Device, result: Tensor, x: Tensor, weight: Tensor, epsilon: number): void {
  const { library, handle } = device;
  device.check(
    library.msgl_rms_norm(handle, result.pointer, x.pointer, weight.pointer, rowsOf(x), widthOf(x), epsilon, x.dtype),
  );
}

/** residual += x; out = rmsNorm(residual). */
export function addRmsNorm(
  device: Device,
  result: Tensor,
  residual: Tensor,
  x: Tensor,
  weight: Tensor,
  epsilon: number,
): void {
  const status = device.library.msgl_add_rms_norm(
    device.handle,
    result.pointer,
    residual.pointer,
    x.pointer,
    weight.pointer,
    rowsOf(x),
    widthOf(x),
    epsilon,
    x.dtype,
  );
  device.check(status);
}

/** out[tokens, size] = silu(gateUp[:, :size]) * gateUp[:, size:]. */
export function siluMul(device: Device, result: Tensor, gateUp: Tensor): void {
  const { library, handle } = device;
  device.check(
    library.msgl_silu_mul(handle, result.pointer, gateUp.pointer, rowsOf(gateUp), widthOf(gateUp) / 2, gateUp.dtype),
  );
}

/** out[count, size] = x[rows]. */
export function gather(device: Device, result: Tensor, x: Tensor, rows: Tensor): void {
  const { library, handle } = device;
  device.check(
    library.msgl_gather(handle, result.pointer, x.pointer, rows.pointer, rowsOf(result), widthOf(x), x.dtype),
  );
}

export interface HeadShape {
  heads: number;
  kvHeads: number;
  headDim: number;
}

/** Head norm (where qNorm and kNorm are given), rotary, and the writing of K and V into their pages. */
export function rotaryStore(
  device: Device,
  query: Tensor,
  keyCache: Tensor,
  valueCache: Tensor,
  qkv: Tensor,
  batch: ExpandedBatch,
  rotary: Tensor,
  qNorm: Tensor | null,
  kNorm: Tensor | null,
  shape: HeadShape,
  epsilon: number,
): void {
  const status = device.library.msgl_rotary_store(
    device.handle,
    query.pointer,
    keyCache.pointer,
    valueCache.pointer,
    qkv.pointer,
    batch.positions.pointer,
    batch.cacheRows.pointer,
    rotary.pointer,
    qNorm ? qNorm.pointer : null,
    kNorm ? kNorm.pointer : null,
    rowsOf(qkv),
    shape.heads,
    shape.kvHeads,
    shape.headDim,
    widthOf(rotary),
    epsilon,
    qkv.dtype,
    keyCache.dtype,
  );
  device.check(status);
}

/** The schedule of a step's attention. backends: msgl_attention_backend. */
export class AttentionPlan {
  readonly handle: Pointer;

  constructor(
    private readonly device: Device,
    shape: HeadShape,
    pageSize: number,
    maxSequences: number,
    maxTokens: number,
    dtype: DType,
    cacheDtype: DType,
    backends: { prefill: number; decode: number },
  ) {
    const { library, handle } = device;
    const { heads, kvHeads, headDim } = shape;
    this.handle = out(library, (cell) =>
      library.msgl_attention_plan_create(
        handle,
        cell,
        heads,
        kvHeads,
        headDim,
        pageSize,
        maxSequences,
        maxTokens,
        dtype,
        cacheDtype,
        backends.prefill,
        backends.decode,
      ),
    ) as Pointer;
  }

  /** Schedules the next step from host arrays, which are read before it returns. */
  update(
    queryLengths: Int32Array,
    contextLengths: Int32Array,
    sequences: number,
    decodeSequences: number,
    graph: boolean,
  ): void {
    const { library, handle } = this.device;
    this.device.check(
      library.msgl_attention_plan_update(
        handle,
        this.handle,
        ptr(queryLengths),
        ptr(contextLengths),
        sequences,
        decodeSequences,
        graph ? 1 : 0,
      ),
    );
  }
}

/** Causal attention over pages: out[tokens, heads * headDim]. */
export function attention(
  device: Device,
  result: Tensor,
  query: Tensor,
  keyCache: Tensor,
  valueCache: Tensor,
  plan: AttentionPlan,
  batch: ExpandedBatch,
  scale: number,
): void {
  const status = device.library.msgl_attention(
    device.handle,
    result.pointer,
    query.pointer,
    keyCache.pointer,
    valueCache.pointer,
    plan.handle,
    batch.queryBegin.pointer,
    batch.pageBegin.pointer,
    batch.pages.pointer,
    batch.lastPageLength.pointer,
    rowsOf(query),
    scale,
  );
  device.check(status);
}

/** Draws a token a row of logits[count, vocabulary]; also written to the token table. */
export function sample(
  device: Device,
  tokens: Pointer,
  tokenTable: Tensor,
  logits: Tensor,
  sampling: Pointer,
  needs: { random: boolean; filtered: boolean },
): void {
  const flags = (needs.random ? MSGL_SAMPLE_RANDOM : 0) | (needs.filtered ? MSGL_SAMPLE_FILTER : 0);
  const status = device.library.msgl_sample(
    device.handle,
    tokens,
    tokenTable.pointer,
    logits.pointer,
    sampling,
    rowsOf(logits),
    widthOf(logits),
    widthOf(tokenTable),
    flags,
  );
  device.check(status);
}

/** logits[row, id] += value for each of entries[count, 3]. */
export function logitBias(device: Device, logits: Tensor, entries: Pointer, count: number): void {
  const { library, handle } = device;
  device.check(library.msgl_logit_bias(handle, logits.pointer, entries, count, widthOf(logits)));
}

/** Applies penalties[count] (msgl_penalties) to rows of the logits. seen [count, 2, ceil(vocabulary / 32)]: zero. */
export function penalize(
  device: Device,
  logits: Tensor,
  seen: Pointer,
  tokenTable: Tensor,
  penalties: Pointer,
  count: number,
): void {
  const { library, handle } = device;
  const [ids, strides] = [widthOf(logits), widthOf(tokenTable)];
  device.check(library.msgl_penalize(handle, logits.pointer, seen, tokenTable.pointer, penalties, count, ids, strides));
}

/** Log-softmax of a token of each of rows[count] (msgl_logprob_row), and of the `top` most probable. */
export function logprobs(
  device: Device,
  result: { logprobs: Pointer; topIds: Pointer; topLogprobs: Pointer },
  logits: Tensor,
  tokens: Pointer,
  rows: Pointer,
  count: number,
  top: number,
): void {
  const { library, handle } = device;
  const { logprobs: own, topIds, topLogprobs } = result;
  const ids = widthOf(logits);
  device.check(library.msgl_logprobs(handle, own, topIds, topLogprobs, logits.pointer, tokens, rows, count, ids, top));
}
