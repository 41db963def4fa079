/** A producer thread for message.test.ts: pushes `count` records in steps of `perStep`, uid and token counting up. */
import { workerData } from "node:worker_threads";
import { RingProducer } from "../../../src/message/ring.ts";
import { Finish } from "../../../src/message/types.ts";

const { ring, stalls, count, perStep } = workerData as {
  ring: SharedArrayBuffer;
  stalls: SharedArrayBuffer;
  count: number;
  perStep: number;
};
const stallCount = new Int32Array(stalls);
const producer = new RingProducer(ring, () => Atomics.add(stallCount, 0, 1));
for (let pushed = 0; pushed < count; ) {
  producer.reserve(Math.min(perStep, producer.capacity));
  for (let i = 0; i < perStep && pushed < count; i++, pushed++) {
    producer.push(pushed + 1, pushed * 7, pushed === count - 1 ? Finish.length : Finish.none, pushed & 15, 0);
  }
  producer.publish();
}
