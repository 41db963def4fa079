import { dlopen, ptr } from "bun:ffi";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0x80000;
const MSG_NOSIGNAL = 0x4000;
/** Bytes of sockaddr_un, family and path. */
const ADDRESS_BYTES = 110;

const openLibc = () =>
  dlopen("libc.so.6", {
    socket: { args: ["i32", "i32", "i32"], returns: "i32" },
    sendto: { args: ["i32", "ptr", "u64", "i32", "ptr", "u32"], returns: "i64" },
  }).symbols;

/**
 * Tells systemd how a service fares: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
 * By libc, because Bun has no datagram sockets of the Unix domain. Without $NOTIFY_SOCKET it does nothing.
 */
export class ServiceManager {
  /** Seconds within which WATCHDOG=1 is wanted; 0: not at all. */
  readonly watchdogSeconds: number;
  private readonly address: Uint8Array | null;
  private libc: ReturnType<typeof openLibc> | null = null;
  private socket = -1;

  constructor(environment: Record<string, string | undefined> = process.env) {
    const { NOTIFY_SOCKET = "", WATCHDOG_USEC = "0", WATCHDOG_PID = String(process.pid) } = environment;
    this.address = socketAddress(NOTIFY_SOCKET);
    const microseconds = WATCHDOG_PID === String(process.pid) && this.address !== null ? Number(WATCHDOG_USEC) : 0;
    this.watchdogSeconds = microseconds > 0 ? microseconds / 1e6 : 0;
  }

  /** Sends assignments such as READY=1 in one message. Nobody listening is no reason to fail. */
  notify(...assignments: string[]): void {
    const { address } = this;
    if (address === null) return;
    this.libc ??= openLibc();
    if (this.socket < 0) this.socket = this.libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    const message = new TextEncoder().encode(assignments.join("\n"));
    this.libc.sendto(this.socket, ptr(message), message.length, MSG_NOSIGNAL, ptr(address), address.length);
  }
}

/** A sockaddr_un as long as its path is; null for no path, or one that cannot be a socket's. */
function socketAddress(path: string): Uint8Array | null {
  const bytes = new TextEncoder().encode(path);
  const abstract = path.startsWith("@");
  const length = 2 + bytes.length + (abstract ? 0 : 1);
  if (!(abstract || path.startsWith("/")) || length > ADDRESS_BYTES) return null;
  const address = new Uint8Array(length);
  // The family is a 16-bit number of a little-endian host.
  address[0] = AF_UNIX;
  address.set(bytes, 2);
  if (abstract) address[2] = 0;
  return address;
}
