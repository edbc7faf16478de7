// What a model keeps inside: attention over the prompt, neighbours of a word, a map of its words.
// `request(path, body, signal)` asks the server: { kind, text, value }, text being what went wrong.

import { Opening, copyOf, drawn, tell } from "./elements.js";

const CELL = { most: 26, least: 13 }; // pixels of a cell of a large map
const LABEL = 76; // pixels for the names of tokens
const LONGEST = 10; // characters of such a name
const FAINT = 0.005; // weights below it are not drawn
const NEAR = 8; // neighbours of a word
const MARGIN = 8; // pixels around a map of words
const HIGHEST = 720; // pixels of such a map
const GAP = 2; // pixels between its labels
const PLACES = [5, 15]; // neighbours that trustworthiness looks at

const percent = (share) => `${(100 * share).toFixed(1)}%`;

const brief = (token) => (token.length > LONGEST ? `${token.slice(0, LONGEST - 1)}…` : token);

/** The cells of a head; with `names`, each tells on pointing at it what it is. */
function cellsOf(weights, size, names) {
  const cells = [];
  weights.forEach((row, y) =>
    row.forEach((weight, x) => {
      if (weight < FAINT) return;
      const place = { x: x * size, y: y * size, width: size, height: size };
      const cell = drawn("rect", { class: "cell", ...place, "fill-opacity": weight });
      if (names) cell.append(drawn("title", {}, `${names[y]} → ${names[x]}: ${percent(weight)}`));
      cells.push(cell);
    }),
  );
  return cells;
}

function thumbnail(weights, number) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "head";
  button.setAttribute("aria-label", `head ${number + 1}`);
  const size = weights.length;
  const picture = drawn("svg", { viewBox: `0 0 ${size} ${size}`, "aria-hidden": "true" });
  picture.append(...cellsOf(weights, 1));
  button.append(picture);
  return button;
}

function drawMap(picture, tokens, weights, room) {
  const size = tokens.length;
  const cell = Math.max(CELL.least, Math.min(CELL.most, (room - LABEL) / size));
  const side = size * cell;
  picture.setAttribute("width", LABEL + side);
  picture.setAttribute("height", LABEL + side);
  const field = drawn("g", { transform: `translate(${LABEL} ${LABEL})` });
  field.append(drawn("rect", { class: "field", width: side, height: side }));
  field.append(...cellsOf(weights, cell, tokens));
  tokens.forEach((token, place) => {
    const middle = (place + 0.5) * cell;
    const row = { x: -4, y: middle, "text-anchor": "end", "dominant-baseline": "central" };
    const column = { transform: `translate(${middle} -4) rotate(-90)` };
    field.append(drawn("text", row, brief(token)));
    field.append(drawn("text", { ...column, "dominant-baseline": "central" }, brief(token)));
  });
  picture.replaceChildren(field);
}

/** The part of a model's column that opens. */
export class Inside {
  asking = null; // an AbortController
  prompt = ""; // the newest
  shown = null; // the prompt whose attention was asked for last
  found = null;
  head = 0;

  constructor(details, model, request) {
    this.details = details;
    this.model = model;
    this.request = request;
    this.layers = this.find("select");
    details.addEventListener("toggle", () => {
      if (details.open && this.shown !== this.prompt) this.askAttention();
    });
    this.layers.addEventListener("change", () => this.askAttention());
    this.find(".heads").addEventListener("click", (event) => {
      const button = event.target.closest(".head");
      if (button) this.showHead([...button.parentElement.children].indexOf(button));
    });
    this.find("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.askNeighbors();
    });
  }

  find(selector) {
    return this.details.querySelector(selector);
  }

  /** The prompt has changed. */
  refresh(prompt) {
    this.prompt = prompt;
    if (this.details.open) this.askAttention();
  }

  async askAttention() {
    this.asking?.abort();
    const controller = new AbortController();
    this.asking = controller;
    const { prompt } = this;
    const body = { model: this.model, prompt };
    if (this.layers.value) body.layer = Number(this.layers.value);
    const outcome = await this.request("v1/attention", body, controller.signal);
    if (this.asking !== controller || outcome.kind === "stopped") return;
    this.shown = prompt;
    this.found = outcome.value;
    tell(this.find(".attention .trouble"), outcome.text);
    this.find(".shown").hidden = !this.found;
    if (this.found) this.showAttention();
    else this.find(".attention .facts").textContent = "";
  }

  showAttention() {
    const { heads, layer, layers } = this.found;
    const numbers = Array.from({ length: layers }, (_, number) => new Option(number + 1));
    this.layers.replaceChildren(...numbers);
    this.layers.value = layer;
    this.find(".heads").replaceChildren(...heads.map(thumbnail));
    this.showHead(Math.min(this.head, heads.length - 1));
  }

  showHead(number) {
    const { heads, layer, layers, tokens } = this.found;
    this.head = number;
    [...this.find(".heads").children].forEach((button, place) =>
      button.setAttribute("aria-pressed", place === number),
    );
    const picture = this.find(".map");
    drawMap(picture, tokens, heads[number], this.find(".sideways").clientWidth);
    const told = `Layer ${layer} of ${layers}, head ${number + 1} of ${heads.length}`;
    picture.setAttribute("aria-label", `Attention: ${told}`);
    this.find(".attention .facts").textContent = `${told}: each row looks at the columns.`;
  }

  async askNeighbors() {
    const word = this.find("input").value.trim();
    const body = { model: this.model, word, k: NEAR };
    const { value, text } = await this.request("v1/neighbors", body);
    tell(this.find(".near .trouble"), text);
    this.find(".near ol").replaceChildren(...(value?.neighbors ?? []).map(nearWord));
  }
}

function nearWord({ word, cosine }) {
  const item = copyOf("near-word");
  item.querySelector("bdi").textContent = word;
  item.querySelector(".cosine").textContent = cosine.toFixed(2);
  item.querySelector("rect").setAttribute("width", percent(Math.max(cosine, 0)));
  return item;
}

/** The words of a model in the plane. */
export class WordMap extends Opening {
  static template = "word-map";
  static path = "v1/word-map";

  title() {
    return `Map of the words of ${this.model}`;
  }

  draw() {
    const picture = this.find("svg");
    const width = picture.clientWidth;
    if (!this.found || !width || width === this.width) return;
    this.width = width;
    const height = Math.min(width, HIGHEST);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("height", height);
    picture.setAttribute("aria-label", `Words of ${this.model} in the plane`);
    const labelled = drawWords(picture, this.found, width, height);
    const ways = Object.entries(this.found.trustworthiness).map(([way, trust]) => {
      const each = PLACES.map((number) => `${trust[number].toFixed(2)} at ${number}`);
      return `${way} ${each.join(", ")}`;
    });
    this.find(".facts").textContent =
      `t-SNE by cosine of ${this.found.words.length} words, or beginnings of words, of one token each, ` +
      `${labelled} of them labelled. Trustworthiness of neighbours (1 is best, 0.5 is chance): ` +
      `${ways.join("; ")}.`;
  }
}

/** Dots for all words, and labels for those that have room; gives how many. */
function drawWords(picture, { words, places }, width, height) {
  const scales = [width, height].map((size, axis) => {
    const values = places.map((place) => place[axis]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const factor = (size - 2 * MARGIN) / (high - low || 1);
    return (value) => MARGIN + factor * (value - low);
  });
  const spots = places.map(([x, y]) => [scales[0](x), height - scales[1](y)]);
  const dots = spots.map(([x, y], number) => {
    const dot = drawn("circle", { cx: x, cy: y, r: 2 });
    dot.append(drawn("title", {}, words[number]));
    return dot;
  });
  picture.replaceChildren(...dots);
  const taken = [];
  words.forEach((word, number) => {
    const [x, y] = spots[number];
    const middle = { "text-anchor": "middle", "dominant-baseline": "central" };
    const label = drawn("text", { x, y, ...middle }, word);
    picture.append(label);
    const { x: left, width: wide } = label.getBBox();
    label.setAttribute("x", x + Math.max(0, -left) - Math.max(0, left + wide - width));
    const box = label.getBBox();
    const free = taken.every(
      (other) =>
        box.x > other.x + other.width + GAP ||
        other.x > box.x + box.width + GAP ||
        box.y > other.y + other.height ||
        other.y > box.y + box.height,
    );
    if (free) {
      taken.push(box);
      dots[number].remove();
    } else label.remove();
  });
  return taken.length;
}
