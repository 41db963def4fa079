import { MessageChannel } from "node:worker_threads";
import type { VocabularyBytes } from "../tokenizer/vocabulary.ts";
import type { FromTokenizer, TextPrompt, TokenizerThreadData, ToTokenizer } from "../tokenizer/worker.ts";
import { Thread } from "./thread.ts";
import { InvalidRequest, type SpawnWorker } from "./types.ts";

interface Job {
  member: Member;
  size: number;
  resolve(tokens: Int32Array): void;
  reject(error: Error): void;
}

interface Member {
  thread: Thread<ToTokenizer, FromTokenizer>;
  /** Characters that wait at it. */
  load: number;
}

/** The tokenizer threads: a prompt goes to the one that has the least to do. */
export class TokenizerPool {
  /** Resolves when every thread can encode. */
  readonly ready: Promise<VocabularyBytes>;
  private readonly members: Member[] = [];
  private readonly jobs = new Map<number, Job>();
  private lastId = 0;
  private failure: Error | null = null;

  constructor(
    spawn: SpawnWorker,
    count: number,
    source: TokenizerThreadData["source"],
    private readonly onDeath: (error: Error) => void,
  ) {
    const ready: Promise<VocabularyBytes>[] = [];
    for (let index = 0; index < count; index++) {
      const { promise, resolve, reject } = Promise.withResolvers<VocabularyBytes>();
      const { port1, port2 } = new MessageChannel();
      const data: TokenizerThreadData = { source, port: port2 };
      const die = (error: Error): void => {
        reject(error);
        this.fail(error);
      };
      const receive = (message: FromTokenizer): void => {
        if (message.type === "ready") {
          resolve(message.vocabulary);
        } else if (message.type === "failed") {
          thread.forgive();
          die(new Error(message.message));
        } else {
          this.settle(message);
        }
      };
      const worker = spawn("tokenizer", data, [port2]);
      const thread = new Thread<ToTokenizer, FromTokenizer>("tokenizer", worker, port1, receive, die);
      this.members.push({ thread, load: 0 });
      ready.push(promise);
    }
    this.ready = Promise.all(ready).then(([vocabulary]) => vocabulary);
    this.ready.catch(() => {});
  }

  /**
   * Token ids of a prompt.
   * @param size Its length in characters, about.
   * @param maxTokens A prompt that certainly has more may be refused.
   * @throws InvalidRequest if the chat template refuses the messages.
   */
  encode(prompt: TextPrompt, size: number, maxTokens: number): Promise<Int32Array> {
    if (this.failure !== null) return Promise.reject(this.failure);
    const member = this.members.reduce((best, other) => (other.load < best.load ? other : best));
    const id = ++this.lastId;
    member.load += size + 1;
    return new Promise((resolve, reject) => {
      this.jobs.set(id, { member, size: size + 1, resolve, reject });
      member.thread.send({ type: "encode", id, prompt, maxTokens });
    });
  }

  /** Resolves when the threads have ended. Prompts that wait are still encoded; later ones are refused. */
  async stop(): Promise<void> {
    this.failure ??= new Error("the tokenizers have been stopped");
    for (const { thread } of this.members) thread.stop({ type: "stop" });
    await Promise.all(this.members.map(({ thread }) => thread.ended));
    this.rejectJobs(this.failure);
  }

  private settle(answer: Extract<FromTokenizer, { id: number }>): void {
    const job = this.jobs.get(answer.id);
    if (job === undefined) return;
    this.jobs.delete(answer.id);
    job.member.load -= job.size;
    if (answer.type === "encoded") job.resolve(answer.tokens);
    else job.reject(new InvalidRequest(answer.message, answer.parameter, answer.code));
  }

  private fail(error: Error): void {
    if (this.failure !== null) return;
    this.failure = error;
    this.rejectJobs(error);
    this.onDeath(error);
  }

  private rejectJobs(error: Error): void {
    for (const { reject } of this.jobs.values()) reject(error);
    this.jobs.clear();
  }
}
