/** A streaming client of any server that speaks OpenAI's API, and what it notes of a stream. */

/** Where requests go, and what is the same in all of them. */
export interface Target {
  /** Ends before "/v1". */
  url: string;
  model: string;
  apiKey: string | null;
  endpoint: "completions" | "chat";
  /** Fields added to every body, over those that stand there anyway. */
  extraBody: Record<string, unknown>;
}

/** Token ids for completions; text for chat. */
export type PromptContent = readonly number[] | string;

/** One stream. Times as performance.now() gives them. */
export interface Streamed {
  sent: number;
  /** When each event with something of the answer came. */
  times: number[];
  ended: number;
  /** As the server counted them; events where it does not count. */
  inputTokens: number;
  outputTokens: number;
}

/** What of a chunk is looked at; both endpoints have it alike. */
interface Chunk {
  choices?: {
    text?: string | null;
    delta?: { content?: string | null; reasoning_content?: string | null; reasoning?: string | null };
    finish_reason?: string | null;
  }[];
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
  error?: { message?: string };
}

/** A server's address as people write it, without the "/v1" that some put at its end. */
export function baseUrl(url: string): string {
  const { href } = new URL(/^https?:\/\//.test(url) ? url : `http://${url}`);
  return href.replace(/\/+$/, "").replace(/\/v1$/, "");
}

/** The first model that the server lists. */
export async function firstModel({ url, apiKey }: Pick<Target, "url" | "apiKey">): Promise<string> {
  const response = await fetch(`${url}/v1/models`, { headers: authorization(apiKey) });
  if (!response.ok) throw new Error(await reason(response));
  const { data } = (await response.json()) as { data?: { id: string }[] };
  if (data?.[0] === undefined) throw new Error(`${url}/v1/models lists no model; name one with --model`);
  return data[0].id;
}

/**
 * Sends one request and reads its answer to the end, of `maxTokens` tokens whatever they are.
 * @throws Error with a reason that is the same for the same kind of failure
 */
export async function stream(
  target: Target,
  prompt: PromptContent,
  maxTokens: number,
  signal?: AbortSignal,
): Promise<Streamed> {
  const sent = performance.now();
  const response = await request(target, prompt, maxTokens, signal);
  if (!response.ok) throw new Error(await reason(response));
  if (response.body === null) throw new Error("an answer without a body");
  const result: Streamed = { sent, times: [], ended: 0, inputTokens: 0, outputTokens: 0 };
  for await (const chunk of events(response.body)) {
    if (chunk.error !== undefined) throw new Error(`error event: ${chunk.error.message}`);
    for (const { text, delta, finish_reason } of chunk.choices ?? []) {
      const content = text || delta?.content || delta?.reasoning_content || delta?.reasoning;
      if (content || (finish_reason && result.times.length === 0)) result.times.push(performance.now());
      if (finish_reason) result.ended = performance.now();
    }
    if (chunk.usage) {
      result.inputTokens = chunk.usage.prompt_tokens;
      result.outputTokens = chunk.usage.completion_tokens;
    }
  }
  if (result.ended === 0) throw new Error("the stream ended early");
  if (result.outputTokens === 0) result.outputTokens = result.times.length;
  return result;
}

function request(target: Target, prompt: PromptContent, maxTokens: number, signal?: AbortSignal): Promise<Response> {
  const chat = target.endpoint === "chat";
  return fetch(`${target.url}/v1/${chat ? "chat/completions" : "completions"}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...authorization(target.apiKey) },
    body: JSON.stringify({
      model: target.model,
      ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
      max_tokens: maxTokens,
      temperature: 0,
      ignore_eos: true,
      stream: true,
      stream_options: { include_usage: true },
      ...target.extraBody,
    }),
    signal,
    // A connection each: one that the server closes while it is reused would count as a failed request.
    keepalive: false,
    // A server under load may be silent for long.
    timeout: false,
  } as RequestInit);
}

function authorization(apiKey: string | null): Record<string, string> {
  return apiKey === null ? {} : { authorization: `Bearer ${apiKey}` };
}

async function reason(response: Response): Promise<string> {
  const text = await response.text();
  let message = text;
  try {
    const body = JSON.parse(text) as { error?: { message?: string } | string; message?: string; detail?: unknown };
    const error = typeof body.error === "object" ? body.error?.message : body.error;
    message = error ?? body.message ?? text;
  } catch {
    // Not JSON: the text itself.
  }
  return `HTTP ${response.status}: ${message.trim().slice(0, 200)}`;
}

/** The objects of a stream of server-sent events; keep-alives and what follows [DONE] are left out. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<Chunk> {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of body) {
    const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
    rest = lines.pop() as string;
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data !== "[DONE]") yield JSON.parse(data) as Chunk;
    }
  }
}
