/** Random traffic: `SEED=7` runs one seed, `SEEDS=50000` more of them. */
import { expect, test } from "bun:test";
import { drive } from "./support/traffic.ts";

const only = Number(process.env.SEED ?? 0);
const seeds = only > 0 ? 1 : Number(process.env.SEEDS ?? 5000);

test(`${seeds} random traffic patterns end as lone runs do, with every page accounted for`, () => {
  let preempted = 0;
  for (let i = 0; i < seeds; i++) {
    if (drive(only > 0 ? only : i + 1).preemptions > 0) preempted++;
  }
  // The traffic is worth something only if memory does run out.
  if (seeds > 1000) expect(preempted).toBeGreaterThan(seeds / 20);
}, 600_000);
