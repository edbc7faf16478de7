// The page of SmaLLM's server. What models write is untrusted: it is set as text, never as markup.

import { copyOf, short, tell } from "./elements.js";
import { Inside, WordMap } from "./inside.js";
import { LearningCurves } from "./learning.js";

const PAUSE = 400; // milliseconds without typing after which next words are asked for
const WHITE_SPACE_AT_END = /[ \t\n\r\f\v]+$/; // as the server defines words
const KEY = "smallm-api-key";
const UNREACHABLE = "The server cannot be reached.";
const BROKEN_OFF = "The connection to the server broke off.";
const UNCLEAR = "The answer of the server is not understood.";
const CERTAIN = "No other word can be more probable, and these could not change places.";
const UNCERTAIN = "The search stopped before it was certain: other words may belong here.";

const element = (id) => document.getElementById(id);
const percent = (share) =>
  share < 0.0005
    ? "<0.1%"
    : share.toLocaleString("en", {
        style: "percent",
        minimumFractionDigits: 1,
        maximumFractionDigits: 1,
      });
const seconds = (milliseconds) => {
  const value = milliseconds / 1000;
  return `${value.toFixed(value < 10 ? 2 : 1)} s`;
};
const rounded = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });

function announce(text) {
  element("status").textContent = text;
}

// ---- The server ----

/** What a person is told of a request that came to nothing. */
class Trouble extends Error {}

const key = {
  value: sessionStorage.getItem(KEY) ?? "",
  wanted: null,

  /** Resolves when the person has given another key; all that wait share the question. */
  another() {
    if (this.wanted === null) {
      this.wanted = Promise.withResolvers();
      const text = this.value
        ? "The server does not accept this key: give another."
        : "The server asks for an API key.";
      element("key-form").hidden = false;
      element("key-note").textContent = `${text} It is kept until this tab is closed.`;
      announce(text);
    }
    return this.wanted.promise;
  },

  give(value) {
    this.value = value;
    sessionStorage.setItem(KEY, value);
    element("key-form").hidden = true;
    this.wanted?.resolve();
    this.wanted = null;
  },
};

async function orTrouble(promise, text) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Trouble(text);
  }
}

function unlessAborted(promise, signal) {
  const aborted = new Promise((_, reject) => {
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
  signal?.throwIfAborted();
  return Promise.race([promise, aborted]);
}

function sent(path, used, body, signal) {
  const headers = used ? { Authorization: `Bearer ${used}` } : {};
  if (!body) return fetch(path, { headers, signal });
  headers["Content-Type"] = "application/json";
  return fetch(path, { method: "POST", headers, signal, body: JSON.stringify(body) });
}

/** The response to a request, after a key was asked for where one is needed. */
async function ask(path, { body, signal, sending }) {
  for (;;) {
    const used = key.value;
    sending?.();
    const response = await orTrouble(sent(path, used, body, signal), UNREACHABLE);
    if (response.ok) return response;
    if (response.status !== 401) throw new Trouble(await reasonOf(response));
    if (used === key.value) await unlessAborted(key.another(), signal);
  }
}

async function reasonOf(response) {
  if (response.status === 429) {
    const after = response.headers.get("Retry-After") ?? "";
    return `The server is busy: try again ${/^\d+$/.test(after) ? `in ${after} s` : "later"}.`;
  }
  const content = await response.json().catch(() => null);
  return content?.error?.message ?? `The server answered with status ${response.status}.`;
}

async function jsonOf(response) {
  return orTrouble(response.json(), BROKEN_OFF);
}

/** Yields the data of server-sent events; an event ends at an empty line. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await orTrouble(reader.read(), BROKEN_OFF);
    if (done) return;
    const events = (waiting + value).split(/\r?\n\r?\n/);
    waiting = events.pop();
    for (const event of events) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length > 0) yield data.map((line) => line.slice(5)).join("\n");
    }
  }
}

/** Yields the answers of a streamed completion; an error within it is thrown. */
async function* piecesOf(response) {
  for await (const data of eventsOf(response)) {
    if (data.trim() === "[DONE]") return;
    const piece = JSON.parse(data);
    if (piece.error) throw new Trouble(piece.error.message);
    yield piece;
  }
  throw new Trouble(BROKEN_OFF);
}

// ---- One model ----

/** Text that grows, with the number of tokens in it and the time they took. */
class Continuation {
  tokens = 0;
  exact = false; // whether the server said how many
  reason = null;
  started = performance.now();

  add(piece) {
    const choice = piece.choices[0];
    this.reason = choice?.finish_reason ?? this.reason;
    if (piece.usage) {
      this.tokens = piece.usage.completion_tokens;
      this.exact = true;
    } else if (!this.exact && choice?.text) {
      this.tokens += 1; // a piece is a token, but where a character is cut into several
    }
    return choice?.text ?? "";
  }

  facts() {
    const elapsed = performance.now() - this.started;
    const speed = rounded((1000 * this.tokens) / elapsed);
    const about = this.exact ? "" : "about ";
    const noun = this.tokens === 1 ? "token" : "tokens";
    return `${about}${this.tokens} ${noun} in ${seconds(elapsed)} · ${speed} tokens/s`;
  }

  ending() {
    return this.reason === "length" ? "cut off at the limit" : "the model ended the text";
  }
}

/** The column of a model: its continuation, and its most probable next words. */
class Column {
  generation = null; // an AbortController, as the next
  asking = null;
  found = null; // the newest next words

  constructor(model) {
    this.article = copyOf("column");
    this.article.setAttribute("aria-label", model.id);
    this.find(".name").textContent = model.id;
    this.describe(model);
    this.inside = new Inside(this.find(".inside"), model.id, request);
    if (this.masked) {
      this.find(".continuation .facts").textContent =
        "A masked model fills gaps: it cannot continue a text.";
    }
  }

  describe(model) {
    this.model = model;
    this.find("header .about").textContent = describe(model);
  }

  find(selector) {
    return this.article.querySelector(selector);
  }

  get masked() {
    return this.model.kind === "masked";
  }

  show(shown) {
    this.article.hidden = !shown;
    if (shown) return;
    this.generation?.abort();
    this.asking?.abort();
  }

  /** Continues the prompt; gives "done", "stopped", "failed", or "replaced" by a newer one. */
  async generate(asked) {
    this.generation?.abort();
    const controller = new AbortController();
    this.generation = controller;
    const temperature = temperatureOf(this.model, asked);
    this.begin(asked.prompt, temperature.told);
    const body = {
      model: this.model.id,
      prompt: asked.prompt,
      max_tokens: asked.most_tokens,
      temperature: temperature.sent,
      stream: true,
      stream_options: { include_usage: true },
    };
    if (asked.seed !== null) body.seed = asked.seed;
    const continuation = new Continuation();
    const outcome = await outcomeOf(this.stream(body, continuation, controller));
    if (this.generation !== controller) return "replaced";
    this.end(outcome, continuation, temperature.told);
    return outcome.kind;
  }

  begin(prompt, temperature) {
    this.article.setAttribute("aria-busy", "true");
    this.find(".text").hidden = false;
    this.find(".given").textContent = prompt;
    this.find(".made").textContent = "";
    tell(this.find(".continuation .trouble"), "");
    this.find(".continuation .facts").textContent = temperature;
  }

  async stream(body, continuation, controller) {
    const sending = () => {
      continuation.started = performance.now();
    };
    const { signal } = controller;
    const response = await ask("v1/completions", { body, signal, sending });
    for await (const piece of piecesOf(response)) {
      const text = continuation.add(piece);
      if (this.generation === controller) this.find(".made").append(text);
    }
  }

  end(outcome, continuation, temperature) {
    this.generation = null;
    this.article.setAttribute("aria-busy", "false");
    this.find(".made").normalize();
    tell(this.find(".continuation .trouble"), outcome.text);
    const ending = { done: continuation.ending(), stopped: "stopped", failed: "" }[outcome.kind];
    const facts = continuation.tokens > 0 ? continuation.facts() : "";
    const how = [ending, temperature].filter(Boolean).join(" · ");
    this.find(".continuation .facts").textContent = [facts, how].filter(Boolean).join("\n");
  }

  /** What is shown belongs to an older prompt. */
  outdate() {
    this.asking?.abort();
    this.find(".words").setAttribute("aria-busy", "true");
    if (this.found === null) this.find(".next .facts").textContent = "Searching…";
  }

  async refresh(prompt, count) {
    this.outdate();
    const controller = new AbortController();
    this.asking = controller;
    const outcome = await outcomeOf(this.nextWords(prompt, count, controller.signal));
    if (this.asking !== controller || outcome.kind === "stopped") return;
    this.found = outcome.value;
    this.find(".words").setAttribute("aria-busy", "false");
    tell(this.find(".next .trouble"), outcome.text);
    this.showWords();
  }

  async nextWords(prompt, count, signal) {
    if (!prompt) throw new Trouble("The prompt is empty: it needs at least one word.");
    const body = { prompt, k: count, models: [this.model.id] };
    const answer = await jsonOf(await ask("v1/next-words", { body, signal }));
    const found = answer.models[this.model.id];
    if (found.error) throw new Trouble(found.error.message);
    return found;
  }

  showWords() {
    const words = this.found?.words ?? [];
    const list = this.find(".words");
    while (list.children.length > words.length) list.lastElementChild.remove();
    while (list.children.length < words.length) list.append(copyOf("word"));
    words.forEach((word, place) => showWord(list.children[place].firstElementChild, word));
    this.find(".next .facts").replaceChildren(...(this.found ? factsOf(this.found) : []));
  }

  drawBars(longest) {
    const words = this.found?.words ?? [];
    words.forEach((word, place) => {
      const bar = this.find(".words").children[place];
      setWidth(bar.querySelector(".lower"), word.probability / longest);
      setWidth(bar.querySelector(".upper"), word.upper / longest);
    });
  }
}

/** What the server answers to a body: an outcome. */
function request(path, body, signal) {
  return outcomeOf(ask(path, { body, signal }).then(jsonOf));
}

async function outcomeOf(work) {
  try {
    return { kind: "done", text: "", value: await work };
  } catch (error) {
    if (error.name === "AbortError") return { kind: "stopped", text: "", value: null };
    if (error instanceof Trouble) return { kind: "failed", text: error.message, value: null };
    console.error(error); // a mistake of this page, or of the server
    return { kind: "failed", text: UNCLEAR, value: null };
  }
}

function inBrief(model) {
  if (!model.available) return `unavailable: ${model.reason}`;
  const parts = model.parameters ? [`${short(model.parameters)} parameters`] : [];
  if (model.kind === "masked") parts.push("next words only");
  return parts.join(" · ");
}

function describe(model) {
  const parts = [model.kind];
  if (model.parameters) parts.push(`${short(model.parameters)} parameters`);
  if (model.context) parts.push(`reads ${model.context} tokens`);
  if (model.version) parts.push(`version ${model.version}`);
  return parts.join(" · ");
}

function temperatureOf(model, { fitted, temperature }) {
  if (!fitted) return { sent: temperature, told: `temperature ${rounded(temperature)}` };
  if (isFitted(model)) {
    return { sent: "fitted", told: `fitted temperature ${rounded(model.temperature)}` };
  }
  return { sent: 1, told: "temperature 1, for none is fitted to this model" };
}

function isFitted(model) {
  return (model.temperature ?? null) !== null;
}

function showWord(button, { word, probability, upper }) {
  const [least, most] = [percent(probability), percent(upper)];
  button.querySelector("bdi").textContent = word;
  button.querySelector(".percent").textContent = least;
  button.title = least === most ? least : `between ${least} and ${most}`;
  button.setAttribute("aria-label", `${word}, ${button.title}: append to the prompt`);
}

function factsOf(found) {
  const order = document.createElement("span");
  order.className = "explained";
  order.title = found.certified ? CERTAIN : UNCERTAIN;
  order.textContent = found.certified
    ? "order certain"
    : `order not certain: ${percent(found.residual)} not searched`;
  const end = found.end_of_text > 0 ? ` · end of text ${percent(found.end_of_text)}` : "";
  return [`${rounded(found.milliseconds)} ms · `, order, end];
}

function setWidth(rectangle, share) {
  rectangle.setAttribute("width", `${(100 * Math.min(share, 1)).toFixed(2)}%`);
}

// ---- All models ----

let columns = [];
let searched = new Map(); // maps of words and learning curves
let run = 0; // the number of the newest generation
let timer = 0;

const chosenColumns = () => columns.filter((column) => !column.article.hidden);
const promptForWords = () => element("prompt").value.replace(WHITE_SPACE_AT_END, "");

async function listModels() {
  tell(element("models-note"), "Asking the server for its models…");
  const outcome = await outcomeOf(ask("v1/models", {}).then(jsonOf));
  const models = outcome.value?.data ?? [];
  const available = models.filter((model) => model.available);
  const nothing = models.length > 0 && available.length === 0 ? "No model is available." : "";
  tell(element("models-note"), outcome.text || nothing);
  element("check-again").hidden = available.length > 0 && available.length === models.length;
  if (outcome.kind === "done") showModels(models, available);
}

function showModels(models, available) {
  const before = new Map(columns.map((column) => [column.model.id, column]));
  columns = available.map((model) => before.get(model.id) ?? new Column(model));
  columns.forEach((column, place) => column.describe(available[place]));
  before.forEach((column) => columns.includes(column) || column.show(false));
  element("columns").replaceChildren(...columns.map((column) => column.article));
  searched = partsOf(available, searched);
  element("searched").replaceChildren(...[...searched.values()].map((part) => part.details));
  const hidden = (id) => before.get(id)?.article.hidden ?? false;
  element("models").replaceChildren(...models.map((model) => choiceOf(model, !hidden(model.id))));
  chosen();
}

/** What searches have left with models; those of the same version stay as they are. */
function partsOf(models, before) {
  const parts = new Map();
  for (const model of models) {
    const kinds = { word_map: WordMap, learning_curves: LearningCurves };
    for (const [kind, Part] of Object.entries(kinds).filter(([name]) => model[name])) {
      const key = [kind, model.id, model.version].join(" ");
      parts.set(key, before.get(key) ?? new Part(model.id, request));
    }
  }
  return parts;
}

function choiceOf(model, checked) {
  const item = copyOf("model");
  const box = item.querySelector("input");
  box.value = model.id;
  box.disabled = !model.available;
  box.checked = model.available && checked;
  item.querySelector(".name").textContent = model.id;
  item.querySelector(".about").textContent = inBrief(model);
  return item;
}

/** Shows the columns of the models that are chosen. */
function chosen() {
  const boxes = element("models").querySelectorAll("input:checked");
  const names = new Set([...boxes].map((box) => box.value));
  for (const column of columns) {
    const shown = names.has(column.model.id);
    const fresh = shown && (column.article.hidden || column.found === null);
    column.show(shown);
    if (fresh) refreshWords([column]);
  }
  drawBars();
  allowFitted();
}

function allowFitted() {
  const possible = chosenColumns().some((column) => isFitted(column.model));
  element("fitted").disabled = !possible;
  element("fitted-note").textContent = possible ? "" : "(no chosen model has one)";
  const fitted = possible && element("fitted").checked;
  element("temperature").disabled = fitted;
  element("temperature-slider").disabled = fitted;
}

function outdateWords() {
  columns.forEach((column) => column.outdate());
  clearTimeout(timer);
  timer = setTimeout(() => refreshWords(chosenColumns()), PAUSE);
}

function refreshWords(some) {
  if (!element("count").checkValidity()) return;
  const [prompt, count] = [promptForWords(), element("count").valueAsNumber];
  some.forEach((column) => {
    column.refresh(prompt, count).then(drawBars);
    column.inside.refresh(prompt);
  });
}

function drawBars() {
  const words = chosenColumns().flatMap((column) => column.found?.words ?? []);
  const longest = Math.max(...words.map((word) => word.upper));
  chosenColumns().forEach((column) => column.drawBars(longest));
}

function append(word) {
  const prompt = element("prompt");
  const between = !prompt.value || WHITE_SPACE_AT_END.test(prompt.value) ? "" : " ";
  prompt.value += between + word;
  announce(`“${word}” is appended to the prompt.`);
  clearTimeout(timer);
  columns.forEach((column) => column.outdate());
  refreshWords(chosenColumns());
}

async function generate() {
  const continuing = chosenColumns().filter((column) => !column.masked);
  if (continuing.length === 0) {
    announce("Choose at least one model that can continue a text.");
    return;
  }
  run += 1;
  const own = run;
  element("stop").setAttribute("aria-disabled", "false");
  announce("Generating…");
  const asked = settings();
  const outcomes = await Promise.all(continuing.map((column) => column.generate(asked)));
  if (own !== run) return;
  element("stop").setAttribute("aria-disabled", "true");
  announce(summaryOf(outcomes));
}

function settings() {
  const seed = element("seed").valueAsNumber;
  return {
    prompt: element("prompt").value,
    temperature: element("temperature").valueAsNumber,
    fitted: element("fitted").checked && !element("fitted").disabled,
    most_tokens: element("most-tokens").valueAsNumber,
    seed: Number.isNaN(seed) ? null : seed,
  };
}

function summaryOf(outcomes) {
  const failed = outcomes.filter((outcome) => outcome === "failed").length;
  if (failed > 0) return `Done, but ${failed} of ${outcomes.length} failed: see there.`;
  return outcomes.includes("stopped") ? "Stopped." : "Done.";
}

function stop() {
  columns.forEach((column) => column.generation?.abort());
}

// ---- What a person does ----

function listen(id, event, work) {
  element(id).addEventListener(event, work);
}

listen("key-form", "submit", (event) => {
  event.preventDefault();
  key.give(element("key").value);
  element("key").value = "";
});
listen("form", "submit", (event) => {
  event.preventDefault();
  generate();
});
element("form").addEventListener("invalid", () => (element("settings").open = true), true);
listen("stop", "click", stop);
listen("check-again", "click", listModels);
listen("models", "change", chosen);
listen("fitted", "change", allowFitted);
listen("prompt", "input", outdateWords);
listen("count", "input", outdateWords);
listen("temperature-slider", "input", () => {
  element("temperature").value = element("temperature-slider").value;
});
listen("temperature", "input", () => {
  element("temperature-slider").value = element("temperature").value;
});
listen("columns", "click", (event) => {
  const button = event.target.closest(".word");
  const outdated = button?.closest(".words").getAttribute("aria-busy") === "true";
  if (button && !outdated) append(button.querySelector("bdi").textContent);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  if (!event.repeat) element("form").requestSubmit();
});

element("settings").open = !matchMedia("(max-width: 45rem)").matches;
listModels();
