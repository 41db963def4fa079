import type { RuntimeInterface, RuntimeStatistics } from "../runtime/types.ts";
import type { Figure } from "./report.ts";

/** Finds what share of its time the device had nothing to do while requests ran: it waited for the host. */
export class IdleMeter {
  private readonly begin: RuntimeStatistics;

  constructor(private readonly runtime: Pick<RuntimeInterface, "statistics">) {
    this.begin = runtime.statistics();
  }

  /** The share since the meter was made; none where the device cannot tell. */
  figures(): Figure[] {
    const end = this.runtime.statistics();
    // The counters begin anew at 2^31.
    const since = (field: "busyMicroseconds" | "idleMicroseconds") => (end[field] - this.begin[field]) & 0x7fffffff;
    const [busy, idle] = [since("busyMicroseconds"), since("idleMicroseconds")];
    if (busy === 0) return [];
    return [{ key: "idle_share", label: "device waits for host", value: idle / (busy + idle), unit: "", digits: 4 }];
  }
}
