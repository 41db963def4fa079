import { type MessagePort, receiveMessageOnPort } from "node:worker_threads";

/** A worker and the port it is spoken to through. It is never terminated: it ends by itself when told to. */
export class Thread<Outgoing, Incoming> {
  /** Resolves when the worker is gone, for whatever reason. */
  readonly ended: Promise<void>;
  private stopping = false;

  /** @param onDeath Called at most once, if the thread ends without having been told to. */
  constructor(
    readonly name: string,
    worker: Worker,
    private readonly port: MessagePort,
    onMessage: (message: Incoming) => void,
    onDeath: (error: Error) => void,
  ) {
    let dead = false;
    const die = (reason: string): void => {
      if (dead || this.stopping) return;
      dead = true;
      onDeath(new Error(`the ${name} thread died: ${reason}`));
    };
    port.on("message", onMessage);
    worker.addEventListener("error", (event) => die(event.message.trim().split("\n", 1)[0]));
    this.ended = new Promise((resolve) => {
      worker.addEventListener("close", () => {
        // What it said last may not have been delivered yet.
        for (let last = receiveMessageOnPort(port); last; last = receiveMessageOnPort(port)) onMessage(last.message);
        die("it ended without being asked to");
        port.close();
        resolve();
      });
    });
  }

  send(message: Outgoing, transfer: ArrayBuffer[] = []): void {
    this.port.postMessage(message, transfer);
  }

  /** From here on its end is no death: it has been told to end, or has said why it will. */
  forgive(): void {
    this.stopping = true;
  }

  /** Says the thread's last message; `ended` resolves when it has obeyed. */
  stop(message: Outgoing): void {
    this.forgive();
    this.send(message);
  }
}
