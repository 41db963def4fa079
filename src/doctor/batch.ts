import type { ExpandedBatch } from "../native/ops.ts";

/** A step on the host: what goes into msgl_expand, and what must come out by its definition in minisgl.h. */
export interface HostBatch {
  sequences: number;
  tokens: number;
  decodeSequences: number;
  queryLengths: Int32Array;
  contextLengths: Int32Array;
  pageSize: number;
  /** Rows of the KV pool. */
  poolRows: number;
  /** [sequences, 7] */
  sequenceRows: number[];
  /** [sequences, tokenStride] and [sequences, pageStride] */
  tokenTable: Int32Array;
  pageTable: Int32Array;
  tokenStride: number;
  pageStride: number;
  expanded: Record<keyof ExpandedBatch, number[]>;
}

/** A sequence of a step. */
export type Row = readonly [start: number, count: number];

/** Steps of every kind; those sequences that decode stand first. */
export const STEPS = {
  decode: [0, 16, 63, 332, 999].map((start): Row => [start, 1]),
  prefill: [2, 5, 64, 130].map((count): Row => [0, count]),
  mixed: [
    [0, 1],
    [500, 1],
    [47, 1],
    [0, 33],
    [100, 20],
  ] as Row[],
  chunk: [[1000, 96]] as Row[],
};

/**
 * A step whose pages lie scattered over the pool, of whose sequences every third has no logits and every
 * second those of its last two tokens.
 */
export function hostBatch(rows: readonly Row[], pageSize: number): HostBatch {
  const sequences = rows.length;
  const contextLengths = Int32Array.from(rows, ([start, count]) => start + count);
  const pageCounts = contextLengths.map((length) => Math.ceil(length / pageSize));
  const poolPages = 2 ** Math.ceil(Math.log2(pageCounts.reduce((sum, count) => sum + count, 1)));
  const [tokenStride, pageStride] = [Math.max(...contextLengths) + 5, Math.max(...pageCounts) + 3];
  const tokenTable = Int32Array.from({ length: sequences * tokenStride }, (_, i) => (i * 7919) % 32000);
  const pageTable = new Int32Array(sequences * pageStride).fill(-1);
  const sequenceRows: number[] = [];
  const [ids, positions, cacheRows, sampleRows, pages, lastPageLength]: number[][] = [[], [], [], [], [], []];
  const [queryBegin, pageBegin] = [[0], [0]];
  rows.forEach(([start, count], index) => {
    const slot = sequences - 1 - index;
    const sampleCount = index % 3 === 2 ? 0 : Math.min(count, 1 + (index % 2));
    const sampleIndex = sampleCount === 0 ? -1 : sampleRows.length;
    sequenceRows.push(slot, start, count, ids.length, pages.length, sampleIndex, sampleCount);
    for (let page = 0; page < pageCounts[index]; page++) {
      pageTable[slot * pageStride + page] = (pages.length * 40503 + 1) % poolPages; // an odd factor: each page once
      pages.push(pageTable[slot * pageStride + page]);
    }
    for (let position = start; position < start + count; position++) {
      const page = pageTable[slot * pageStride + Math.floor(position / pageSize)];
      ids.push(tokenTable[slot * tokenStride + position]);
      positions.push(position);
      cacheRows.push(page * pageSize + (position % pageSize));
    }
    for (let left = sampleCount; left > 0; left--) sampleRows.push(ids.length - left);
    queryBegin.push(ids.length);
    pageBegin.push(pages.length);
    lastPageLength.push(((start + count - 1) % pageSize) + 1);
  });
  return {
    sequences,
    tokens: ids.length,
    decodeSequences: rows.filter(([, count]) => count === 1).length,
    queryLengths: Int32Array.from(rows, ([, count]) => count),
    contextLengths,
    pageSize,
    poolRows: poolPages * pageSize,
    sequenceRows,
    tokenTable,
    pageTable,
    tokenStride,
    pageStride,
    expanded: { ids, positions, cacheRows, sampleRows, queryBegin, pageBegin, pages, lastPageLength },
  };
}
