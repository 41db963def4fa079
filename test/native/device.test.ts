import type { Pointer } from "bun:ffi";
import { afterAll, describe, expect, test } from "bun:test";
import { deviceCount, NativeError, openLibrary } from "../../src/native/library.ts";
import { attention } from "../../src/native/ops.ts";
import { advance, DType } from "../../src/native/tensor.ts";
import { activation, exact, expandStep, get, library, openDevice, planFor, put, putInts } from "./harness.ts";

const device = openDevice();
afterAll(() => device.close());

/** Enqueues some tens of milliseconds of work. */
function keepBusy(on = device): void {
  const bytes = 64 << 20;
  const block = on.alloc(bytes);
  for (let i = 0; i < 10; i++) on.fill(block, i, bytes);
  on.free(block);
}

test("properties describe the device", () => {
  const properties = device.properties();
  expect(deviceCount(library)).toBeGreaterThan(0);
  expect(properties.name.length).toBeGreaterThan(0);
  expect(properties.totalMemory).toBeGreaterThanOrEqual(properties.freeMemory);
  expect(properties.freeMemory).toBeGreaterThan(2 ** 20);
  expect(properties.computeUnits).toBeGreaterThan(0);
  expect(properties.computes(DType.BF16)).toBe(true);
  expect(properties.computes(DType.Q4_K)).toBe(false);
  expect(properties.keeps(DType.BF16)).toBe(true);
});

test("a library or a device that is not there is an error with a reason", () => {
  expect(() => openLibrary("/nowhere/libminisgl.so")).toThrow(NativeError);
  expect(() => new (device.constructor as new (...all: unknown[]) => unknown)(library, 99)).toThrow(/99/);
});

describe("memory", () => {
  test("is copied in any direction and filled", () => {
    const [host, back] = [device.pinned(1024), device.pinned(1024)];
    expect(new Uint8Array(back.buffer).every((byte) => byte === 0)).toBe(true);
    new Uint8Array(host.buffer).set(Uint8Array.from({ length: 1024 }, (_, i) => i * 7));
    const [first, second] = [device.alloc(1024), device.alloc(1024)];
    device.copy(first, host.pointer, 1024);
    device.fill(second, 0xab, 1024);
    device.copy(advance(second, 16), advance(first, 32), 100);
    device.copy(back.pointer, second, 1024);
    device.synchronize();
    const source = new Uint8Array(host.buffer);
    const expected = new Uint8Array(1024).fill(0xab);
    expected.set(source.subarray(32, 132), 16);
    expect(Buffer.from(back.buffer).equals(expected)).toBe(true);
  });

  test("lies on multiples of 256 bytes", () => {
    for (const bytes of [1, 100, 4096, 5_000_000]) {
      const pointer = device.alloc(bytes);
      expect(pointer % 256).toBe(0);
      device.free(pointer);
    }
  });

  test("may be freed while ops that are enqueued still use it", () => {
    const kept = device.alloc(1 << 20);
    for (let i = 0; i < 20; i++) {
      const block = device.alloc(1 << 20);
      device.fill(block, i, 1 << 20);
      device.copy(kept, block, 1 << 20);
      device.free(block);
    }
    expect(new Uint8Array(device.download(kept, 1 << 20)).every((byte) => byte === 19)).toBe(true);
    device.free(kept);
  });

  test("that is not there is refused with the sizes", () => {
    expect(() => device.alloc(2 ** 50)).toThrow(/1125899906842624/);
    expect(() => device.free(12345 as Pointer)).toThrow();
  });
});

describe("the stream", () => {
  test("runs after the call returns, in order", () => {
    const event = device.event();
    expect(device.reached(event)).toBe(true);
    keepBusy();
    device.record(event);
    expect(device.reached(event)).toBe(!device.properties().asynchronous);
    device.wait(event);
    expect(device.reached(event)).toBe(true);
  });

  test("keeps its order under random delays", () => {
    const slow = openDevice(2, true);
    const counter = slow.pinned(400);
    const seen = slow.pinned(400);
    const cell = slow.alloc(4);
    new Int32Array(counter.buffer).set(Array.from({ length: 100 }, (_, i) => i));
    for (let i = 0; i < 100; i++) {
      slow.copy(cell, advance(counter.pointer, 4 * i), 4);
      slow.copy(advance(seen.pointer, 4 * i), cell, 4);
    }
    slow.synchronize();
    expect([...new Int32Array(seen.buffer)]).toEqual(Array.from({ length: 100 }, (_, i) => i));
    slow.close();
  });

  test("takes more ops than it can hold at once", () => {
    const target = device.pinned(4);
    const values = device.pinned(4 * 10_000);
    new Int32Array(values.buffer).set(Array.from({ length: 10_000 }, (_, i) => i));
    keepBusy();
    for (let i = 0; i < 10_000; i++) device.copy(target.pointer, advance(values.pointer, 4 * i), 4);
    device.synchronize();
    expect(new Int32Array(target.buffer)[0]).toBe(9999);
  });

  test("events measure time and may be recorded again", () => {
    const [begin, end] = [device.event(), device.event()];
    for (let i = 0; i < 3; i++) {
      device.record(begin);
      keepBusy();
      device.record(end);
      device.wait(end);
      const milliseconds = device.elapsed(begin, end);
      expect(milliseconds).toBeGreaterThan(0.01);
      expect(milliseconds).toBeLessThan(10_000);
    }
  });

  test("closing waits for what is enqueued", () => {
    const [source, target] = [device.pinned(4), device.pinned(4)];
    new Int32Array(source.buffer)[0] = 7;
    const other = openDevice(1);
    other.event();
    put(other, [1, 2, 3], [3]);
    keepBusy(other);
    other.copy(target.pointer, source.pointer, 4);
    other.close();
    expect(new Int32Array(target.buffer)[0]).toBe(7);
  });
});

describe("graphs", () => {
  test("record without running and replay with what memory holds then", () => {
    const [input, output] = [device.pinned(64), device.pinned(64)];
    const middle = device.alloc(64);
    const graph = device.capture(() => {
      device.copy(middle, input.pointer, 64);
      device.fill(advance(middle, 16), 9, 16);
      device.copy(output.pointer, middle, 64);
    });
    device.synchronize();
    expect(new Uint8Array(output.buffer).every((byte) => byte === 0)).toBe(true);
    for (const value of [3, 5]) {
      new Uint8Array(input.buffer).fill(value);
      device.replay(graph);
      device.synchronize();
      const bytes = new Uint8Array(output.buffer);
      expect([bytes[0], bytes[16], bytes[31], bytes[32]]).toEqual([value, 9, 9, value]);
    }
  });

  test("a capture that fails gives its error and leaves the device usable", () => {
    expect(() =>
      device.capture(() => {
        throw new Error("stopped");
      }),
    ).toThrow("stopped");
    device.synchronize();
  });

  test("waiting for the device and nesting are refused during a capture", () => {
    const graph = device.capture(() => {
      expect(() => device.synchronize()).toThrow(/captur/);
      expect(() => device.check(library.msgl_capture_begin(device.handle))).toThrow(/captur/);
    });
    device.replay(graph);
    device.synchronize();
  });
});

// A GPU's stream meets none after which the device could still be used.
test.if(exact)("an error that the stream meets comes with the next wait, once", () => {
  const shape = { heads: 1, kvHeads: 1, headDim: 64 };
  const batch = expandStep(device, [{ slot: 0, start: 0, count: 4, pages: [0], samples: 0 }], 16);
  const plan = planFor(device, shape, batch, 16, activation);
  const cache = device.tensor(activation, [16, 64]);
  const x = device.tensor(activation, [2, 64]);
  attention(device, x, x, cache, cache, plan, batch, 1);
  expect(() => device.synchronize()).toThrow(/2 tokens for a plan of 4/);
  device.synchronize();
  expect([...get(device, putInts(device, [7]))]).toEqual([7]);
});
