/** Prints a digest of products of every weight type, for linear.test.ts, which sets MINISGL_ISA. */
import { linear } from "../../src/native/ops.ts";
import { DType } from "../../src/native/tensor.ts";
import { bytes, openDevice, put, randomValues } from "./harness.ts";
import { blockTypes, floatTypes, randomWeight } from "./weights.ts";

const device = openDevice(2);
const hash = new Bun.CryptoHasher("sha256");
for (const dtype of [...floatTypes, ...blockTypes]) {
  const k = blockTypes.includes(dtype as (typeof blockTypes)[number]) ? 512 : 333;
  const weight = randomWeight(device, [{ rows: 93, dtype }], k);
  for (const m of [1, 2, 3, 4, 5, 6, 11, 13, 31, 50]) {
    const result = device.tensor(DType.F32, [m, 93]);
    linear(
      device,
      result,
      put(device, randomValues(m, m * k), [m, k]),
      weight,
      put(device, randomValues(93, 93), [93]),
    );
    hash.update(bytes(device, result));
  }
}
device.close();
console.log(hash.digest("hex"));
