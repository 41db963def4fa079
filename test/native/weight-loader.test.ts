import { afterAll, expect, test } from "bun:test";
import type { Checkpoint, TensorInfo } from "../../src/checkpoint/types.ts";
import { bytesOf, DType } from "../../src/native/tensor.ts";
import { WeightLoader } from "../../src/weights/loader.ts";
import { activation, openDevice } from "./harness.ts";

const device = openDevice(1);
afterAll(() => device.close());

const reason = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "none",
    (error: Error) => error.message,
  );

function loaderOf(dummy: boolean, tensors: Checkpoint["tensors"] = new Map()): WeightLoader {
  const checkpoint = {
    path: "/model",
    tensors,
    config: { architecture: "llama" },
  } as Partial<Checkpoint> as Checkpoint;
  return new WeightLoader(device, device.properties(), checkpoint, DType.BF16, activation, dummy);
}

test("the device memory of weights is counted", () => {
  const loader = loaderOf(true);
  expect(loader.matrix([{ name: "w", rows: 1024 }], 1024).bytes).toBe(2 << 20);
  loader.norm("n", 512);
  expect(loader.bytes).toBe((2 << 20) + bytesOf(activation, 512));
});

test("nothing is read of a checkpoint that does not fit the model", async () => {
  const tensor = (name: string): [string, TensorInfo] => [
    name,
    { name, type: "F32", shape: [8, 8], file: "/not/there", offset: 0, bytes: 256, interleavedRows: false },
  ];
  const loader = loaderOf(false, new Map([tensor("a"), tensor("b")]));
  loader.matrix([{ name: "a", rows: 8 }], 8);
  expect(() => loader.matrix([{ name: "c", rows: 8 }], 8)).toThrow('/model: tensor "c" is missing');
  expect(() => loader.matrix([{ name: "b", rows: 9 }], 8)).toThrow("has shape [8, 8], the configuration wants [9, 8]");
  expect(await reason(loader.finish(() => {}))).toBe('/model: tensor "b" belongs to no layer of architecture "llama"');
  loader.skip("b");
  expect(await reason(loader.finish(() => {}))).toContain("/not/there");
});
