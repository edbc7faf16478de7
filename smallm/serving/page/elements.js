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

export const short = (value) =>
  value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
