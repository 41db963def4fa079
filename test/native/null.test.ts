import { expect, test } from "bun:test";
import { Device } from "../../src/native/device.ts";
import { openLibrary } from "../../src/native/library.ts";
import { sample } from "../../src/native/ops.ts";
import { DType } from "../../src/native/tensor.ts";
import { libraryFolder, put } from "./harness.ts";

test("the null library moves memory, makes up tokens and is always done", () => {
  const device = new Device(openLibrary(`${libraryFolder}/libminisgl-null.so`));
  const { name, asynchronous } = device.properties();
  expect([name, asynchronous]).toEqual(["null", false]);
  const [count, vocabulary] = [64, 1000];
  const words = Int32Array.from({ length: count * 8 }, (_, i) => [i >> 3, 17, 0, 0, 0, 0, 0, 0][i & 7] as number);
  const logits = device.tensor(DType.F32, [count, vocabulary]);
  const tokens = device.tensor(DType.I32, [count]);
  const host = device.pinned(count * 4);
  const event = device.event();
  sample(device, tokens.pointer, tokens, logits, put(device, words, [words.length], DType.I32).pointer, {
    random: false,
    filtered: false,
  });
  device.copy(host.pointer, tokens.pointer, count * 4);
  device.record(event);
  expect(device.reached(event)).toBe(true);
  const drawn = [...new Int32Array(host.buffer)];
  expect(drawn.every((token) => token >= 0 && token < vocabulary)).toBe(true);
  expect(new Set(drawn).size).toBeGreaterThan(count / 2);
  device.close();
});
