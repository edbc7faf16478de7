// What the parts of the page share: copies of templates, pictures, lines that are there or not.

const SVG = "http://www.w3.org/2000/svg";

export const copyOf = (id) => document.getElementById(id).content.firstElementChild.cloneNode(true);

/** An element of a picture. */
export function drawn(name, attributes, text) {
  const found = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  if (text !== undefined) found.textContent = text;
  return found;
}

/** Shows a text, or hides its place when there is none. */
export function tell(place, text) {
  place.textContent = text;
  place.hidden = !text;
}

/** A part of the page that asks the server for what it shows once it is opened, and draws it.

    Its class has a `template`, a `path`, and the methods title() and draw(). */
export class Opening {
  found = null;
  width = 0;

  constructor(model, request) {
    this.model = model;
    this.request = request;
    this.details = copyOf(this.constructor.template);
    this.find("summary").textContent = this.title();
    this.details.addEventListener("toggle", () => this.details.open && this.open());
    new ResizeObserver(() => this.draw()).observe(this.details);
  }

  find(selector) {
    return this.details.querySelector(selector);
  }

  async open() {
    if (this.found) return;
    const { value, text } = await this.request(this.constructor.path, { model: this.model });
    tell(this.find(".trouble"), text);
    this.found = value;
    this.draw();
  }
}

export const short = (value) =>
  value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
