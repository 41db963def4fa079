/** What befalls single threads of another process: ptrace stops one, or makes it end without a word. */
import { CString, dlopen, ptr, read } from "bun:ffi";
import { readdirSync, readFileSync } from "node:fs";

const PTRACE_GETREGS = 12;
const PTRACE_SETREGS = 13;
const PTRACE_DETACH = 17;
const PTRACE_SEIZE = 0x4206;
const PTRACE_INTERRUPT = 0x4207;
const WALL = 0x40000000;
const SYS_EXIT = 60;
/** 8-byte words of user_regs_struct. */
const REGISTERS = 27;
const RAX = 10;
const RDI = 14;
const ORIG_RAX = 15;
const RIP = 16;

const libc = dlopen("libc.so.6", {
  ptrace: { args: ["i64", "i64", "ptr", "ptr"], returns: "i64" },
  waitpid: { args: ["i32", "ptr", "i32"], returns: "i32" },
  __errno_location: { args: [], returns: "ptr" },
  strerror: { args: ["i32"], returns: "ptr" },
}).symbols;

/** Registers are changed by number. */
export const canChangeThreads = process.arch === "x64";

/** The first thread of that name: a worker's JavaScript, before the threads that it has started itself. */
export function findThread(pid: number, name: string): number {
  const threads = readdirSync(`/proc/${pid}/task`)
    .map(Number)
    .sort((a, b) => a - b);
  const found = threads.find((thread) => readFileSync(`/proc/${pid}/task/${thread}/comm`, "utf8").trim() === name);
  if (found === undefined) throw new Error(`process ${pid} has no thread ${name}`);
  return found;
}

/** Stops a thread where it is; the others go on. Returns what lets go of it. */
export function stopThread(thread: number): () => void {
  request(PTRACE_SEIZE, thread);
  request(PTRACE_INTERRUPT, thread);
  wait(thread);
  return () => request(PTRACE_DETACH, thread);
}

/** Makes a thread call exit(2) for itself: it is gone, and nothing in its process is told. */
export function killThread(thread: number): void {
  const release = stopThread(thread);
  const registers = new BigInt64Array(REGISTERS);
  request(PTRACE_GETREGS, thread, registers);
  // It waits in a system call, or was about to go on after one: the instruction before is SYSCALL, of two bytes.
  registers[RIP] -= 2n;
  registers[RAX] = BigInt(SYS_EXIT);
  registers[ORIG_RAX] = -1n;
  registers[RDI] = 0n;
  request(PTRACE_SETREGS, thread, registers);
  release();
}

/** Waits for a traced thread's next change: to stop, or to end. */
export function wait(thread: number): void {
  const status = new Int32Array(1);
  if (libc.waitpid(thread, ptr(status), WALL) < 0) throw new Error(`waitpid: ${reason()}`);
}

function request(what: number, thread: number, data?: BigInt64Array): void {
  if (libc.ptrace(what, thread, null, data === undefined ? null : ptr(data)) < 0n)
    throw new Error(`ptrace: ${reason()}`);
}

function reason(): string {
  return String(new CString(libc.strerror(read.i32(libc.__errno_location()!))!));
}
