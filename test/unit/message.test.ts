import { describe, expect, test } from "bun:test";
import { Doorbell } from "../../src/message/doorbell.ts";
import { createRing, NO_TOKEN, RingConsumer, RingProducer } from "../../src/message/ring.ts";
import { readScored, ScoredWriter } from "../../src/message/scored.ts";
import { createStatistics, readStatistics } from "../../src/message/statistics.ts";
import { Finish, type FinishCode, type ScoredOutput, Statistic } from "../../src/message/types.ts";

type RingRecord = [uid: number, token: number, finish: number, cachedTokens: number, waited: number];

function collector(): { records: RingRecord[]; accept: (...record: RingRecord) => void } {
  const records: RingRecord[] = [];
  return { records, accept: (...record) => records.push(record) };
}

describe("ring", () => {
  test("gives records in order, only once they are published", () => {
    const ring = createRing(8);
    const producer = new RingProducer(ring);
    const consumer = new RingConsumer(ring);
    const { records, accept } = collector();
    producer.push(1, 100, Finish.none, 3, 250);
    producer.push(2, NO_TOKEN, Finish.abort, 0, 0);
    expect(consumer.drain(accept)).toBe(0);
    producer.publish();
    expect(consumer.drain(accept)).toBe(2);
    expect(consumer.drain(accept)).toBe(0);
    expect(records).toEqual([
      [1, 100, Finish.none, 3, 250],
      [2, NO_TOKEN, Finish.abort, 0, 0],
    ]);
  });

  test("has room for exactly its capacity, and again after a drain", () => {
    const ring = createRing(4);
    let stalls = 0;
    const producer = new RingProducer(ring, () => stalls++);
    const consumer = new RingConsumer(ring);
    const { records, accept } = collector();
    for (let round = 0; round < 5; round++) {
      expect(producer.room).toBe(4);
      for (let i = 0; i < 4; i++) producer.push(round + 1, i, Finish.none, 0, 0);
      expect(producer.room).toBe(0);
      producer.publish();
      consumer.drain(accept);
    }
    expect(records.map(([uid, token]) => uid * 10 + token)).toEqual(
      Array.from({ length: 20 }, (_, i) => (Math.floor(i / 4) + 1) * 10 + (i % 4)),
    );
    expect(stalls).toBe(0);
  });

  test("survives the wrap of its 32-bit counters", () => {
    const ring = createRing(8);
    const words = new Int32Array(ring);
    words[0] = words[16] = 2 ** 31 - 3;
    const producer = new RingProducer(ring);
    const consumer = new RingConsumer(ring);
    const { records, accept } = collector();
    for (let i = 0; i < 20; i += 5) {
      for (let j = 0; j < 5; j++) producer.push(1, i + j, Finish.none, 0, 0);
      expect(producer.room).toBe(3);
      producer.publish();
      expect(consumer.drain(accept)).toBe(5);
    }
    expect(records.map(([, token]) => token)).toEqual(Array.from({ length: 20 }, (_, i) => i));
  });

  test("refuses a capacity that is no power of two", () => {
    expect(() => createRing(6)).toThrow(RangeError);
  });

  for (const [capacity, perStep] of [
    [32768, 256],
    [64, 64],
    [16, 50],
    [1, 1],
  ] as const) {
    test(`loses nothing between two threads: capacity ${capacity}, ${perStep} a step`, async () => {
      const count = 20_000;
      const ring = createRing(capacity);
      const stalls = new SharedArrayBuffer(4);
      const consumer = new RingConsumer(ring);
      const worker = new Worker(new URL("support/ring-producer.ts", import.meta.url).href, {
        workerData: { ring, stalls, count, perStep },
      } as WorkerOptions);
      let next = 0;
      let drains = 0;
      let wrong = 0;
      const ended = new Promise((resolve) => worker.addEventListener("close", resolve));
      await consumer.run(
        (uid, token, finish, cachedTokens) => {
          if (uid !== next + 1 || token !== next * 7 || cachedTokens !== (next & 15)) wrong++;
          next++;
          if (finish !== Finish.none) consumer.close();
        },
        () => drains++,
      );
      await ended;
      expect({ next, wrong }).toEqual({ next: count, wrong: 0 });
      if (capacity >= count) expect(Atomics.load(new Int32Array(stalls), 0)).toBe(0);
      if (capacity === 16) expect(Atomics.load(new Int32Array(stalls), 0)).toBeGreaterThan(0);
      expect(drains).toBeGreaterThan(0);
    });
  }

  test("wakes a consumer that sleeps, and close() ends it", async () => {
    const ring = createRing(8);
    const producer = new RingProducer(ring);
    const consumer = new RingConsumer(ring);
    const { records, accept } = collector();
    const drained = Promise.withResolvers<void>();
    const running = consumer.run(accept, drained.resolve);
    await Bun.sleep(5);
    producer.push(9, 1, Finish.none, 0, 0);
    producer.publish();
    await drained.promise;
    expect(records).toHaveLength(1);
    await Bun.sleep(5);
    consumer.close();
    await running;
  });
});

test("scored records come out of the words as they went in, however many", () => {
  const rows = (count: number, top: number) => ({
    tokens: Int32Array.from({ length: count }, (_, i) => i),
    logprobs: Float32Array.from({ length: count }, (_, i) => -i / 3),
    top,
    topIds: Int32Array.from({ length: count * top }, (_, i) => 7 * i),
    topLogprobs: Float32Array.from({ length: count * top }, (_, i) => -i / 7),
  });
  const record = (uid: number, token: number, finish: FinishCode) => ({
    uid,
    token,
    finish,
    cachedTokens: 5,
    waited: 6,
  });
  const outputs: ScoredOutput[] = [
    { ...record(1, 9, Finish.none), logprobs: rows(1, 20), promptLogprobs: null },
    { ...record(2, NO_TOKEN, Finish.none), logprobs: null, promptLogprobs: rows(64, 3) },
    { ...record(3, NO_TOKEN, Finish.abort), logprobs: null, promptLogprobs: null },
    { ...record(2 ** 31 - 1, 0, Finish.stop), logprobs: rows(1, 0), promptLogprobs: rows(500, 20) },
  ];
  const writer = new ScoredWriter();
  expect(writer.take()).toBeNull();
  for (const count of [2, 4]) {
    for (const output of outputs.slice(0, count)) writer.add(output);
    const words = writer.take()!;
    expect(words.buffer.byteLength).toBe(words.byteLength);
    const read: ScoredOutput[] = [];
    readScored(words, (output) => read.push(output));
    expect(read).toEqual(outputs.slice(0, count));
  }
});

test("a doorbell that rang before the sleep does not let it begin", () => {
  const doorbell = new Doorbell();
  const { rings } = doorbell;
  new Doorbell(doorbell.buffer).ring();
  doorbell.sleep(rings);
  expect(doorbell.rings).toBe(rings + 1);
});

test("statistics come out under their names", () => {
  const buffer = createStatistics();
  new Int32Array(buffer)[Statistic.usedPages] = 7;
  const statistics = readStatistics(new Int32Array(buffer));
  expect(statistics.usedPages).toBe(7);
  expect(statistics.steps).toBe(0);
  expect(Object.keys(statistics)).not.toContain("words");
});
