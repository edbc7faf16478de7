// How the trials of a search learned: bits per byte and hidden units over training.

import { Opening, copyOf, drawn, short } from "./elements.js";

const HEIGHT = 190; // pixels of a chart
const EDGE = { left: 46, right: 10, top: 8, bottom: 22 }; // pixels around its field
const TICKS = 4; // about so many on an axis
const HUES = 9; // the style sheet has as many
const DASHES = ["", "6 3"]; // of architectures
const ROOM = 0.06; // above and below the lines, as a share of their range
const CHARTS = [
  {
    title: "Bits per byte, selection slice",
    of: (curve) => curve.bits_per_byte,
    band: (curve) => [curve.lowest, curve.highest],
  },
  { title: "Dead units (%)", of: (curve) => inPercent(curve.dead_units), least: 5 },
  { title: "Saturated outputs (%)", of: (curve) => inPercent(curve.saturated_units), least: 5 },
];

const inPercent = (shares) => shares && shares.map((share) => 100 * share);
const last = (values) => values[values.length - 1];

/** Round numbers from low to high, about TICKS of them. */
function ticks(low, high) {
  const rough = (high - low) / TICKS;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: count }, (_, number) => (first + number) * step);
}

/** The groups with a name and a look: a hue for each activation function, a dash for each
    architecture. */
function withLooks(groups) {
  const [functions, architectures] = ["activation", "architecture"].map((kind) =>
    [...new Set(groups.map((group) => group[kind]))].sort(),
  );
  return groups.map((group) => ({
    ...group,
    name: architectures.length > 1 ? `${group.activation}, ${group.architecture}` : group.activation,
    hue: functions.indexOf(group.activation) % HUES,
    dash: DASHES[architectures.indexOf(group.architecture) % DASHES.length],
  }));
}

/** All curves, those to be seen above the others last. */
function linesOf(groups) {
  const lines = groups.flatMap(({ curves, ...look }) =>
    curves.map((curve, place) => ({ ...look, curve, best: place === 0 })),
  );
  const rank = ({ curve, best }) => 2 * curve.champion + best;
  return lines.sort((one, other) => rank(one) - rank(other));
}

/** The values that a chart must hold; what thin lines have beyond it is cut off. */
function rangeOf(lines, { of, least }) {
  const values = lines.flatMap((line) => of(line.curve) ?? []);
  if (least) {
    const most = Math.max(least, ...values);
    return [-ROOM * most, (1 + ROOM) * most];
  }
  const seen = lines.filter((line) => line.best || line.curve.champion);
  const high = Math.max(...seen.map((line) => of(line.curve)[0]));
  const low = Math.min(...values);
  const room = ROOM * (high - low || 1);
  return [low - room, high + room];
}

/** A line; around one to be seen, a band from its best seed to its worst. */
function lineOf({ name, curve, hue, dash, best }, { of, band }, [x, y]) {
  const values = of(curve);
  const along = (each) => each.map((value, place) => `${x(curve.tokens[place])},${y(value)}`);
  const kind = curve.champion ? "line champion" : best ? "line best" : "line";
  const line = drawn("g", { class: `${kind} hue-${hue}` });
  const told = `${curve.trial}, ${name}: ${values.map((each) => each.toFixed(3)).join(", ")}`;
  line.append(drawn("title", {}, told));
  if (band && kind !== "line") {
    const [lowest, highest] = band(curve).map(along);
    const around = [...lowest, ...highest.reverse()].join(" ");
    line.append(drawn("polygon", { class: "band", points: around }));
  }
  line.append(drawn("polyline", { points: along(values).join(" "), "stroke-dasharray": dash }));
  if (values.length === 1) {
    const spot = { cx: x(curve.tokens[0]), cy: y(values[0]), r: 3 };
    line.append(drawn("circle", spot));
  }
  return line;
}

function drawChart(picture, lines, chart, width) {
  const [left, right] = [EDGE.left, width - EDGE.right];
  const [top, bottom] = [EDGE.top, HEIGHT - EDGE.bottom];
  const [low, high] = rangeOf(lines, chart);
  const most = Math.max(...lines.map(({ curve }) => last(curve.tokens)));
  const x = (tokens) => left + ((right - left) * tokens) / most;
  const y = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
  picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  picture.setAttribute("height", HEIGHT);
  const parts = [];
  for (const value of ticks(low, high)) {
    const place = { x1: left, x2: right, y1: y(value), y2: y(value), class: "grid" };
    const label = { x: left - 6, y: y(value), "text-anchor": "end", "dominant-baseline": "central" };
    parts.push(drawn("line", place), drawn("text", label, String(+value.toPrecision(6))));
  }
  for (const tokens of ticks(0, most)) {
    const anchor = x(tokens) > right - 16 ? "end" : "middle";
    const label = { x: x(tokens), y: HEIGHT - 6, "text-anchor": anchor };
    parts.push(drawn("text", label, short(tokens)));
  }
  const field = drawn("svg", { x: left, y: top, width: right - left, height: bottom - top });
  field.setAttribute("viewBox", `${left} ${top} ${right - left} ${bottom - top}`);
  for (const line of lines) {
    if (chart.of(line.curve)) field.append(lineOf(line, chart, [x, y]));
  }
  picture.replaceChildren(...parts, field);
}

function legendOf(groups) {
  return groups.map(({ name, hue, dash, curves: [best] }) => {
    const dead = best.dead_units ? `, ${(100 * last(best.dead_units)).toFixed(1)}% dead` : "";
    const item = copyOf("learned-by");
    item.querySelector("svg").classList.add(`hue-${hue}`);
    item.querySelector("polyline").setAttribute("stroke-dasharray", dash);
    item.querySelector("bdi").textContent = name;
    const bits = `${last(best.bits_per_byte).toFixed(3)} at ${short(last(best.tokens))}`;
    item.querySelector(".soft").textContent = bits + dead;
    return item;
  });
}

/** The trials of the search that a model comes from. */
export class LearningCurves extends Opening {
  static template = "learning-curves";
  static path = "v1/learning-curves";

  title() {
    return `How ${this.model} learned`;
  }

  draw() {
    const width = this.find(".charts").clientWidth;
    if (!this.found || !width || width === this.width) return;
    this.width = width;
    const groups = withLooks(this.found.groups);
    const lines = linesOf(groups);
    const charts = CHARTS.filter(({ of }) => lines.some(({ curve }) => of(curve)));
    this.find(".charts").replaceChildren(...charts.map(({ title }) => chartOf(title)));
    charts.forEach((chart, place) => {
      const picture = this.find(".charts").children[place].querySelector("svg");
      drawChart(picture, lines, chart, picture.clientWidth);
    });
    this.find(".legend").replaceChildren(...legendOf(groups));
    this.find(".facts").textContent = this.facts(lines);
  }

  facts(lines) {
    const champion = lines.find(({ curve }) => curve.champion)?.curve;
    const left = this.found.trials - lines.length;
    const named = champion && this.found.trials > 1 ? ` Drawn thickest: ${champion.trial}, which became the champion.` : "";
    const missing = left > 0 ? ` Not shown: ${left} of ${this.found.trials} trials.` : "";
    return (
      "Over training tokens, each line a mean over seeds, the band from the best seed to the worst; by activation function, the strong line " +
      `its best trial, which the figures are of.${named}${missing}`
    );
  }
}

function chartOf(title) {
  const figure = copyOf("chart");
  figure.querySelector("h3").textContent = title;
  figure.querySelector("svg").setAttribute("aria-label", title);
  return figure;
}
