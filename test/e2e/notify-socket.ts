/** The other end of sd_notify: a datagram socket of the Unix domain, by path or, with "@" before it, by abstract name. */
import { dlopen, ptr } from "bun:ffi";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const MSG_DONTWAIT = 0x40;

const libc = dlopen("libc.so.6", {
  socket: { args: ["i32", "i32", "i32"], returns: "i32" },
  bind: { args: ["i32", "ptr", "u32"], returns: "i32" },
  recv: { args: ["i32", "ptr", "u64", "i32"], returns: "i64" },
  close: { args: ["i32"], returns: "i32" },
}).symbols;

export class NotifySocket {
  private readonly socket = libc.socket(AF_UNIX, SOCK_DGRAM, 0);
  /** Every message so far, as its assignments, and when it came in milliseconds of performance.now(). */
  readonly messages: { at: number; assignments: string[] }[] = [];
  private readonly timer: Timer;

  constructor(readonly address: string) {
    const path = new TextEncoder().encode(address.replace(/^@/, "\0"));
    const name = new Uint8Array(2 + path.length + (address.startsWith("@") ? 0 : 1));
    name[0] = AF_UNIX;
    name.set(path, 2);
    if (libc.bind(this.socket, ptr(name), name.length) !== 0) throw new Error(`cannot bind ${address}`);
    this.timer = setInterval(() => this.receive(), 5);
  }

  /** Whether an assignment has come, or one that begins so. */
  has(assignment: string): boolean {
    return this.messages.some(({ assignments }) => assignments.some((one) => one.startsWith(assignment)));
  }

  /** When WATCHDOG=1 came. */
  get pings(): number[] {
    return this.messages.filter(({ assignments }) => assignments.includes("WATCHDOG=1")).map(({ at }) => at);
  }

  close(): void {
    clearInterval(this.timer);
    libc.close(this.socket);
  }

  private receive(): void {
    const bytes = new Uint8Array(4096);
    for (;;) {
      const length = Number(libc.recv(this.socket, ptr(bytes), bytes.length, MSG_DONTWAIT));
      if (length <= 0) return;
      const assignments = new TextDecoder().decode(bytes.slice(0, length)).split("\n");
      this.messages.push({ at: performance.now(), assignments });
    }
  }
}
