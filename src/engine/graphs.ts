import type { Device, Graph } from "../native/device.ts";
import type { Tensor } from "../native/tensor.ts";

/** Batch sizes with a graph of their own: dense where a row more costs most. */
export function graphSizes(largest: number): number[] {
  const sizes = [1, 2, 4, 8, 12];
  for (let size = 16; size <= largest; size += size < 64 ? 8 : 16) sizes.push(size);
  const fitting = sizes.filter((size) => size < largest);
  return largest > 0 ? [...fitting, largest] : [];
}

interface Captured {
  graph: Graph;
  /** [size, vocabulary] */
  logits: Tensor;
}

/** Decode forwards captured for some batch sizes; a batch is padded to the next. They end at the logits. */
export class DecodeGraphs {
  private readonly captured = new Map<number, Captured>();
  /** For each batch size the size of the graph that serves it; 0: none. */
  private readonly sizeFor: Int32Array;

  /**
   * prepare: plans for a number of decode rows, outside the capture. forward: enqueues the expansion and the model's
   * forward for as many.
   */
  constructor(
    private readonly device: Device,
    largest: number,
    prepare: (size: number) => void,
    forward: (size: number) => Tensor,
  ) {
    const sizes = graphSizes(largest);
    this.sizeFor = new Int32Array(largest + 1);
    // The largest first: whatever a library sets up for it serves the others.
    for (const size of sizes.toReversed()) {
      let logits: Tensor | undefined;
      prepare(size);
      const graph = device.capture(() => {
        logits = forward(size);
      });
      this.captured.set(size, { graph, logits: logits as Tensor });
      this.sizeFor.fill(size, 1, size + 1);
    }
  }

  /** Rows to pad a batch of `sequences` decode rows to; 0 where no graph serves it. */
  paddedSize(sequences: number): number {
    return this.sizeFor[sequences] ?? 0;
  }

  /** Enqueues the forward of `size` rows, a value of paddedSize. */
  replay(size: number): Tensor {
    const { graph, logits } = this.captured.get(size) as Captured;
    this.device.replay(graph);
    return logits;
  }
}
