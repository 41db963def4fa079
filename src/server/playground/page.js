/**
 * The playground: one conversation over the server's own API. Addresses are relative, so that it also works behind a
 * proxy that puts the server under a path.
 */
const find = (id) => document.getElementById(id);
const messagesView = find("messages");
const input = find("input");
const settings = find("settings");
const keyField = find("api-key");

/** Fields of the settings that are sent as numbers where they are filled in. */
const numeric = [...settings.querySelectorAll("input[type=number]")].map(({ name }) => name);
const pollMilliseconds = 1000;
const chartPoints = 120;

/** What was said: { role, content, reasoning?, error?, figures? }, kept as long as the tab is. */
let messages = stored("minisgl.messages", []);
/** Stops the answer that is streaming; null where none is. */
let running = null;

function stored(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    // Storage that is full or forbidden: the page works without.
  }
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---- the server ----------------------------------------------------------------------------------------------------

/** An answer that is not 2xx, with the reason that its body gives. */
class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (keyField.value !== "") headers.authorization = `Bearer ${keyField.value}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  let reason = text.slice(0, 300);
  try {
    reason = JSON.parse(text).error.message;
  } catch {
    // A proxy's error page: shown as it is.
  }
  throw new Refusal(response.status, `${reason || response.statusText} (HTTP ${response.status})`);
}

/** The objects of a stream of server-sent events, up to [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Refusal(0, "The connection was lost before the answer's end.");
    const frames = (rest + value).split(/\r?\n\r?\n/);
    rest = frames.pop();
    for (const frame of frames) {
      if (!frame.startsWith("data:")) continue;
      const data = frame.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(0, event.error.message);
      yield event;
    }
  }
}

// ---- the conversation ------------------------------------------------------------------------------------------------

/** The body of a request for the next answer; fields that are empty are left out. */
function requestBody() {
  const fields = new FormData(settings);
  const system = fields.get("system").trim();
  const history = messages.filter(({ content }) => content !== "").map(({ role, content }) => ({ role, content }));
  const body = {
    model: find("models").value || undefined,
    messages: system === "" ? history : [{ role: "system", content: system }, ...history],
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
  for (const name of numeric) if (fields.get(name) !== "") body[name] = Number(fields.get(name));
  if (fields.get("stop") !== "") body.stop = [fields.get("stop")];
  return body;
}

/** Lets the model answer what was said so far. */
async function generate() {
  const body = requestBody();
  const answer = { role: "assistant", content: "" };
  messages.push(answer);
  const view = show(answer);
  view.classList.add("streaming");
  running = new AbortController();
  toggleRunning(true);
  scrollDown();
  try {
    await receive(answer, body, () => {
      const follow = atEnd();
      draw(view, answer);
      if (follow) scrollDown();
    });
  } catch (error) {
    if (error.name === "AbortError") answer.figures = `stopped · ${answer.figures ?? ""}`.replace(/ · $/, "");
    else answer.error = error.message;
    if (error.status === 401) openSettings(keyField);
  }
  running = null;
  toggleRunning(false);
  view.classList.remove("streaming");
  keep("minisgl.messages", messages);
  drawAll();
}

/** Streams an answer into `answer`, and calls `changed` at most once a frame. */
async function receive(answer, body, changed) {
  const begin = performance.now();
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: running.signal,
  });
  let first = 0;
  let last = 0;
  let drawn = 0;
  for await (const { choices, usage } of events(response)) {
    const delta = choices[0]?.delta;
    const reasoning = delta?.reasoning_content ?? delta?.reasoning ?? "";
    if (reasoning !== "") answer.reasoning = (answer.reasoning ?? "") + reasoning;
    answer.content += delta?.content ?? "";
    if (delta?.content || reasoning !== "") last = performance.now();
    first ||= last;
    if (usage) answer.figures = describe(usage, first - begin, last - first);
    if (choices[0]?.finish_reason === "length") answer.cut = true;
    if (drawn !== 0) continue;
    drawn = requestAnimationFrame(() => {
      drawn = 0;
      changed();
    });
  }
}

function describe({ prompt_tokens, completion_tokens, prompt_tokens_details }, wait, time) {
  const parts = [`${prompt_tokens} + ${completion_tokens} tokens`];
  if (prompt_tokens_details?.cached_tokens > 0) parts[0] += ` (${prompt_tokens_details.cached_tokens} cached)`;
  if (wait > 0) parts.push(`first after ${(wait / 1000).toFixed(2)} s`);
  if (completion_tokens > 1 && time > 0) parts.push(`${((1000 * (completion_tokens - 1)) / time).toFixed(1)} tokens/s`);
  return parts.join(" · ");
}

function send() {
  const content = input.value.trim();
  if (content === "" || running !== null) return;
  if (!settings.checkValidity()) {
    openSettings();
    settings.reportValidity();
    return;
  }
  const message = { role: "user", content };
  messages.push(message);
  show(message);
  input.value = "";
  generate();
}

/** Answers the last question again. */
function again() {
  while (messages.at(-1)?.role === "assistant") messages.pop();
  drawAll();
  generate();
}

// ---- what is seen --------------------------------------------------------------------------------------------------

function drawAll() {
  for (const old of messagesView.querySelectorAll("article")) old.remove();
  for (const message of messages) show(message);
  scrollDown();
}

function show(message) {
  find("empty").hidden = true;
  const view = element("article", { className: message.role, ariaLabel: message.role === "user" ? "You" : "Model" });
  draw(view, message);
  messagesView.append(view);
  return view;
}

function draw(view, message) {
  const { role, content, reasoning, error, figures, cut } = message;
  const open = view.querySelector("details")?.open ?? content === "";
  const body = element("div", { className: "body" }, ...format(content, role));
  const parts = [body];
  if (reasoning)
    parts.unshift(element("details", { open }, element("summary", { textContent: "Reasoning" }), reasoning));
  if (error) parts.push(element("div", { className: "error", role: "alert", textContent: error }));
  if (role === "assistant") {
    const foot = element("div", { className: "foot" });
    const text = cut ? `${figures} · ends at its token limit` : figures;
    if (figures) foot.append(element("span", { className: "figures", textContent: text }));
    if (running === null) foot.append(...actions(message));
    parts.push(foot);
  }
  view.replaceChildren(...parts);
}

function actions(message) {
  const button = (textContent, onclick) => element("button", { type: "button", textContent, onclick });
  const made = [];
  if (message.content !== "" && navigator.clipboard) {
    made.push(button("Copy", () => navigator.clipboard.writeText(message.content)));
  }
  if (message === messages.at(-1)) made.push(button(message.error ? "Try again" : "Answer again", again));
  return made;
}

/** Text as nodes. Of Markdown, what models write most: fenced code, `code` and **bold**. */
function format(content, role) {
  if (role === "user") return [content];
  return content.split(/^```/m).flatMap((part, index) => {
    if (index % 2 === 1) return [element("pre", { tabIndex: 0 }, part.replace(/^.*\n?/, "").replace(/\n$/, ""))];
    return part.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((piece, at) => {
      if (at % 2 === 0) return index > 0 && at === 0 ? piece.replace(/^\n/, "") : piece;
      return piece.startsWith("`")
        ? element("code", { textContent: piece.slice(1, -1) })
        : element("strong", { textContent: piece.slice(2, -2) });
    });
  });
}

const atEnd = () => messagesView.scrollHeight - messagesView.scrollTop - messagesView.clientHeight < 60;

function scrollDown() {
  messagesView.scrollTop = messagesView.scrollHeight;
}

function toggleRunning(on) {
  messagesView.ariaBusy = String(on);
  const focused = [find("send"), find("stop")].includes(document.activeElement);
  find("send").hidden = on;
  find("stop").hidden = !on;
  if (focused) (on ? find("stop") : input).focus();
}

function openSettings(field) {
  document.body.classList.add("settings-open");
  find("toggle-settings").ariaExpanded = "true";
  field?.focus();
}

function closeSettings() {
  document.body.classList.remove("settings-open");
  find("toggle-settings").ariaExpanded = "false";
}

// ---- the load of the server --------------------------------------------------------------------------------------------

const chart = new Array(chartPoints).fill(0);
/** What was last shown, so that models are asked for when the server or the key changes. */
let state = "connecting";

function showState(next, text) {
  state = next;
  find("state").dataset.state = next;
  find("state").textContent = text;
}

/** Values of Prometheus' text format by name, labels aside. */
function parseMetrics(text) {
  const lines = text.matchAll(/^([a-z_:]+)(?:\{[^\n]*\})? (\S+)$/gm);
  return Object.fromEntries(Array.from(lines, ([, name, value]) => [name, Number(value)]));
}

async function poll() {
  try {
    if (state !== "ready") await loadModels();
    showMetrics(parseMetrics(await (await ask("metrics")).text()));
    if (state !== "ready") showState("ready", "ready");
  } catch (error) {
    for (const value of document.querySelectorAll("#metrics dd")) value.textContent = "–";
    if (error.status === 401) showState("refused", "wants an API key");
    else if (error.status === 503) showState("loading", "not ready");
    else showState("gone", error.status === 0 ? "unreachable" : error.message);
    find("state").title = error.message;
  }
}

async function loadModels() {
  const { data } = await (await ask("v1/models")).json();
  const select = find("models");
  const chosen = select.value;
  select.replaceChildren(...data.map(({ id }) => new Option(id.split("/").at(-1), id)));
  if (data.some(({ id }) => id === chosen)) select.value = chosen;
  find("model-name").textContent = select.selectedOptions[0]?.textContent ?? "";
}

function showMetrics(metrics) {
  const percent = (share) => `${Math.round(100 * (share ?? 0))}%`;
  const throughput = metrics["sglang:gen_throughput"] ?? 0;
  find("metric-throughput").textContent = throughput.toFixed(throughput < 100 ? 1 : 0);
  find("metric-running").textContent = metrics["vllm:num_requests_running"] ?? "–";
  find("metric-waiting").textContent = metrics["vllm:num_requests_waiting"] ?? "–";
  find("metric-kv").textContent = percent(metrics["vllm:kv_cache_usage_perc"]);
  find("metric-hits").textContent = percent(metrics["sglang:cache_hit_rate"]);
  chart.push(throughput);
  chart.shift();
  const top = Math.max(1, ...chart);
  const points = chart.map((value, index) => `${index},${26 - (24 * value) / top}`);
  document.querySelector("#chart polyline").setAttribute("points", points.join(" "));
}

// ---- what the user does ------------------------------------------------------------------------------------------------

find("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
input.addEventListener("keydown", (event) => {
  // Enter that ends the composition of a character is not meant for us.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
find("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
find("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  keep("minisgl.messages", messages);
  drawAll();
  find("empty").hidden = false;
  closeSettings();
});
find("toggle-settings").addEventListener("click", () => {
  if (document.body.classList.contains("settings-open")) closeSettings();
  else openSettings();
});
settings.addEventListener("submit", (event) => event.preventDefault());
settings.addEventListener("input", () => keep("minisgl.settings", Object.fromEntries(new FormData(settings))));
settings.addEventListener("reset", () => {
  const key = keyField.value;
  setTimeout(() => {
    keyField.value = key;
    keep("minisgl.settings", {});
  });
});
keyField.addEventListener("change", () => {
  keep("minisgl.key", keyField.value);
  showState("connecting", "connecting");
  poll();
});

keyField.value = stored("minisgl.key", "");
for (const [name, value] of Object.entries(stored("minisgl.settings", {}))) {
  const field = settings.elements.namedItem(name);
  if (field !== null) field.value = value;
}
find("models").addEventListener("change", ({ target }) => {
  find("model-name").textContent = target.selectedOptions[0].textContent;
});
if (messages.length > 0) drawAll();
// A touch screen's keyboard would cover the page.
if (matchMedia("(hover: hover)").matches) input.focus();
poll();
setInterval(() => {
  // Without a key there is nothing to learn, and every attempt would be a line of the server's log.
  if (!document.hidden && state !== "refused") poll();
}, pollMilliseconds);
