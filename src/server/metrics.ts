/** Counts what Prometheus scrapes at /metrics, under the names that vLLM's and SGLang's dashboards know. */
import type { Generation, GenerationEvent, RuntimeStatistics } from "../runtime/types.ts";

/** Upper bounds of buckets in seconds. */
const firstTokenBounds = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 30, 60];
const betweenTokensBounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1, 2.5];
const phaseBounds = [
  0.001, 0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480,
];
const tokenBounds = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];
const endToEndBounds = [0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480];

class Histogram {
  private readonly counts: number[];
  private sum = 0;

  constructor(private readonly bounds: readonly number[]) {
    this.counts = new Array(bounds.length + 1).fill(0);
  }

  observe(value: number, times = 1): void {
    let bucket = 0;
    while (bucket < this.bounds.length && value > this.bounds[bucket]) bucket++;
    this.counts[bucket] += times;
    this.sum += value * times;
  }

  /** Lines of Prometheus' text format, cumulative. */
  lines(name: string, labels: string): string[] {
    let total = 0;
    const buckets = this.counts.map((count, bucket) => {
      total += count;
      return `${name}_bucket{${labels},le="${this.bounds[bucket] ?? "+Inf"}"} ${total}`;
    });
    return [...buckets, `${name}_sum{${labels}} ${this.sum}`, `${name}_count{${labels}} ${total}`];
  }
}

/** The times of one generation, in milliseconds of performance.now(); 0 for what has not happened. */
export interface Timing {
  readonly arrived: number;
  firstEvent: number;
  lastEvent: number;
}

export class Metrics {
  private promptTokens = 0;
  private cachedTokens = 0;
  private generatedTokens = 0;
  private readonly finished: Record<string, number> = { stop: 0, length: 0, abort: 0 };
  private readonly firstToken = new Histogram(firstTokenBounds);
  private readonly betweenTokens = new Histogram(betweenTokensBounds);
  private readonly endToEnd = new Histogram(endToEndBounds);
  private readonly queue = new Histogram(phaseBounds);
  private readonly prefill = new Histogram(phaseBounds);
  private readonly decode = new Histogram(phaseBounds);
  private readonly inference = new Histogram(phaseBounds);
  private readonly promptLengths = new Histogram(tokenBounds);
  private readonly answerLengths = new Histogram(tokenBounds);
  private readonly longestAnswers = new Histogram(tokenBounds);
  /** Tokens at the last look at the throughput, and what it was then. */
  private throughput = { at: performance.now(), tokens: 0, value: 0 };

  /** Takes in an event of a generation when it is handed on. */
  event(generation: Generation, { tokens, finishReason }: GenerationEvent, timing: Timing): void {
    const now = performance.now();
    const count = tokens.length;
    if (timing.firstEvent === 0) {
      timing.firstEvent = now;
      this.promptTokens += generation.promptTokens.length;
      this.cachedTokens += generation.cachedTokens;
      if (count > 0) this.firstToken.observe((now - timing.arrived) / 1000);
    } else if (count > 0) {
      this.betweenTokens.observe((now - timing.lastEvent) / 1000 / count, count);
    }
    timing.lastEvent = now;
    this.generatedTokens += count;
    if (finishReason === null) return;
    this.finished[finishReason]++;
    this.endToEnd.observe((now - timing.arrived) / 1000);
    this.promptLengths.observe(generation.promptTokens.length);
    this.answerLengths.observe(generation.completionTokens);
    const { startedAt } = generation;
    if (startedAt === 0) return;
    this.queue.observe((startedAt - timing.arrived) / 1000);
    this.prefill.observe((timing.firstEvent - startedAt) / 1000);
    this.decode.observe((now - timing.firstEvent) / 1000);
    this.inference.observe((now - startedAt) / 1000);
  }

  /** Takes in that all answers of a request have ended. */
  requestEnded(generations: readonly Generation[]): void {
    const longest = generations.reduce((most, { completionTokens }) => Math.max(most, completionTokens), 0);
    this.longestAnswers.observe(longest);
  }

  /** Tokens a second since the last look, or since an older one where that was less than a second ago. */
  tokensPerSecond(): number {
    const now = performance.now();
    const seconds = (now - this.throughput.at) / 1000;
    if (seconds >= 1) {
      const value = (this.generatedTokens - this.throughput.tokens) / seconds;
      this.throughput = { at: now, tokens: this.generatedTokens, value };
    }
    return this.throughput.value;
  }

  get cacheHitRate(): number {
    return this.promptTokens === 0 ? 0 : this.cachedTokens / this.promptTokens;
  }

  /** All of it in Prometheus' text format 0.0.4. */
  render(statistics: RuntimeStatistics, model: string): string {
    const labels = `model_name=${JSON.stringify(model)}`;
    const { runningRequests, waitingRequests, usedPages, totalPages } = statistics;
    const usage = usedPages / totalPages;
    const lines: string[] = [];
    const family = (type: string, name: string, help: string, samples: string[]) =>
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...samples);
    const gauge = (name: string, help: string, value: number) =>
      family("gauge", name, help, [`${name}{${labels}} ${value}`]);
    const counter = (name: string, help: string, value: number) =>
      family("counter", name, help, [`${name}{${labels}} ${value}`]);
    const histogram = (name: string, help: string, values: Histogram) =>
      family("histogram", name, help, values.lines(name, labels));

    gauge("vllm:num_requests_running", "Requests that are computed.", runningRequests);
    gauge("vllm:num_requests_waiting", "Requests that wait.", waitingRequests);
    gauge("vllm:kv_cache_usage_perc", "Share of the KV pages that sequences hold, 0 to 1.", usage);
    counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.", this.promptTokens);
    counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", this.cachedTokens);
    counter("vllm:num_preemptions_total", "Sequences sent back to the queue.", statistics.preemptions);
    counter("vllm:prompt_tokens_total", "Prompt tokens.", this.promptTokens);
    counter("vllm:generation_tokens_total", "Generated tokens.", this.generatedTokens);
    histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", this.firstToken);
    histogram("vllm:inter_token_latency_seconds", "From token to token.", this.betweenTokens);
    histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token.", this.endToEnd);
    histogram("vllm:request_queue_time_seconds", "From arrival to the launch of the first step.", this.queue);
    histogram("vllm:request_prefill_time_seconds", "From that to the first token.", this.prefill);
    histogram("vllm:request_decode_time_seconds", "From the first token to the last.", this.decode);
    histogram("vllm:request_inference_time_seconds", "Prefill and decode together.", this.inference);
    histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", this.promptLengths);
    histogram("vllm:request_generation_tokens", "Tokens of an answer.", this.answerLengths);
    const longest = "Tokens of the longest answer to a request.";
    histogram("vllm:request_max_num_generation_tokens", longest, this.longestAnswers);
    const success = "vllm:request_success_total";
    const reasons = Object.entries(this.finished);
    const samples = reasons.map(([reason, count]) => `${success}{${labels},finished_reason="${reason}"} ${count}`);
    family("counter", success, "Ended requests by reason.", samples);
    gauge("sglang:num_running_reqs", "Requests that are computed.", runningRequests);
    gauge("sglang:num_queue_reqs", "Requests that wait.", waitingRequests);
    gauge("sglang:token_usage", "Share of the KV pages that sequences hold, 0 to 1.", usage);
    gauge("sglang:cache_hit_rate", "Share of all prompt tokens that were cached.", this.cacheHitRate);
    counter("sglang:prompt_tokens_total", "Prompt tokens.", this.promptTokens);
    counter("sglang:generation_tokens_total", "Generated tokens.", this.generatedTokens);
    histogram("sglang:time_to_first_token_seconds", "From arrival to the first token.", this.firstToken);
    histogram("sglang:inter_token_latency_seconds", "From token to token.", this.betweenTokens);
    histogram("sglang:e2e_request_latency_seconds", "From arrival to the last token.", this.endToEnd);
    histogram("sglang:queue_time_seconds", "From arrival to the launch of the first step.", this.queue);
    gauge("sglang:gen_throughput", "Generated tokens a second.", this.tokensPerSecond());
    return `${lines.join("\n")}\n`;
  }
}
