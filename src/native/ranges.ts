import { type Pointer, ptr } from "bun:ffi";
import type { Library } from "./library.ts";

/** What a step consists of, as profilers show it. */
export type RangeName = "schedule" | "step" | "prefill" | "decode" | "layer" | "sample";

/** Whether a profiler that shows NVTX ranges is attached to this process. */
export const isProfiled = (environment: Record<string, string | undefined>): boolean =>
  environment.NVTX_INJECTION64_PATH !== undefined || environment.MINISGL_NVTX === "1";

/** Named ranges of the calling thread, one within the other. Free where nobody looks. */
export class Ranges {
  /** Names as C strings, which the library reads in place. */
  private readonly names = new Map<RangeName, { bytes: Uint8Array; pointer: Pointer }>();

  constructor(
    private readonly library: Library,
    private readonly enabled: boolean,
  ) {}

  push(name: RangeName): void {
    if (!this.enabled) return;
    let text = this.names.get(name);
    if (text === undefined) {
      const bytes = new TextEncoder().encode(`${name}\0`);
      text = { bytes, pointer: ptr(bytes) };
      this.names.set(name, text);
    }
    this.library.msgl_range_push(text.pointer);
  }

  pop(): void {
    if (this.enabled) this.library.msgl_range_pop();
  }
}
