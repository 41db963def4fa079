/** Philox4x32-10 in plain TypeScript, after Salmon et al. (2011): what the libraries are compared with. */
export function philox(counter: readonly number[], key: readonly number[]): number[] {
  let [a, b, c, d] = counter as [number, number, number, number];
  let [low, high] = key as [number, number];
  for (let round = 0; round < 10; round++) {
    const x = 0xd2511f53n * BigInt(a);
    const y = 0xcd9e8d57n * BigInt(c);
    a = (Number(y >> 32n) ^ b ^ low) >>> 0;
    b = Number(y & 0xffffffffn);
    c = (Number(x >> 32n) ^ d ^ high) >>> 0;
    d = Number(x & 0xffffffffn);
    low = (low + 0x9e3779b9) >>> 0;
    high = (high + 0xbb67ae85) >>> 0;
  }
  return [a, b, c, d];
}

/** The noise that msgl_sample adds to a token id, in float64. */
export function gumbel(seed: bigint, id: number, position: number): number {
  const key = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  const word = philox([Math.floor(id / 4), position, 0, 0], key)[id % 4] as number;
  return -Math.log(-Math.log(((word >>> 9) + 0.5) * 2 ** -23));
}
