/** Entry point of the tokenizer threads. */
import { workerData } from "node:worker_threads";
import { runTokenizerThread, type TokenizerThreadData } from "./tokenizer/worker.ts";

runTokenizerThread(workerData as TokenizerThreadData);
