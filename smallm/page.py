"""The elements of an HTML page that needs no other file and no network.

All markup is built by `tag`, which escapes whatever is not markup already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from smallm.charts import Plot

CSS = """
:root { color-scheme: light; --ink: #22282f; --soft: #5b6570; --line: #dfe3e7; --blue: #0072b2 }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .8rem; padding-top: .6rem;
  border-top: 2px solid var(--line) }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem }
p, dd, li { max-width: 46rem; overflow-wrap: anywhere }
a { color: var(--blue) }
.facts, figcaption, small { color: var(--soft) }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem }
.conclusion { max-width: 50rem; padding: .3rem 1.2rem; background: #f3f7fa;
  border-left: 4px solid var(--blue) }
.headline strong { font-size: 2rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
  gap: 1.5rem 2rem; align-items: start; margin-bottom: 1.5rem }
figure { margin: 0; break-inside: avoid; max-width: 560px }
figure svg { width: 100%; height: auto; display: block }
.broad { max-width: 900px; margin-bottom: 1.5rem }
.broad svg { min-width: 700px }
figcaption { font-size: .875rem }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line) }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line) }
tbody th { font-weight: 500; position: sticky; left: 0; background: #fff }
th small { display: block; font-weight: 400 }
.trials td, .models tbody th, .models td { white-space: pre }
.trials td:last-child, .models td:last-child { white-space: normal; min-width: 11rem }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .3rem 1.2rem }
dt { font-weight: 600 }
dd { margin: 0 }
pre { padding: .8rem 1rem; overflow-x: auto; background: #f4f5f7; font-size: .85rem }
@media (max-width: 600px) {
  dl { grid-template-columns: 1fr; gap: 0 } dd { margin-bottom: .5rem }
  th, td { padding: .3rem .4rem }
}
@media print { nav { display: none } }
"""


class Html(str):
    """Markup; `tag` escapes every other string."""

    __slots__ = ()


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; attributes and children that are not markup are escaped."""
    inside = "".join(c if isinstance(c, Html) else escape(str(c)) for c in children)
    listed = "".join(f' {key.rstrip("_")}="{escape(str(v))}"' for key, v in attributes.items())
    return Html(f"<{name}{listed}>{inside}</{name}>")


def join(*parts: Html) -> Html:
    """Markup after markup."""
    return Html("".join(parts))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """A table that scrolls sideways in its box; the first column names the row."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = (
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in cells))
        for first, *cells in rows
    )
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_=f"wide {kind}")


def pairs(rows: Iterable[tuple[object, object]]) -> Html:
    """Names with their values."""
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in rows))


def details(summary: str, body: Html) -> Html:
    """A part that opens when its summary is clicked."""
    return tag("details", tag("summary", summary), body)


def figures(plots: Sequence[Plot], section: str, *beside: Html) -> Html:
    """The plots of one section, with more beside them."""
    drawn = [
        tag("figure", Html(plot.svg), tag("figcaption", plot.caption))
        for plot in plots
        if plot.section == section
    ]
    return tag("div", *drawn, *beside, class_="plots")


def broad_figure(plot: Plot) -> Html:
    """A picture with small labels over the whole page; on a narrow one it scrolls in its box."""
    box = tag("div", Html(plot.svg), class_="wide")
    return tag("figure", box, tag("figcaption", plot.caption), class_="broad")


def page(title: str, facts: Iterable[str], sections: Mapping[str, Html]) -> str:
    """A whole page: title, a line of facts, links to the sections, the sections."""
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    main = tag(
        "main",
        tag("h1", title),
        tag("p", " · ".join(facts), class_="facts"),
        tag("nav", *(tag("a", name, href=f"#{anchor}") for name, anchor in anchors.items())),
        *(tag("section", tag("h2", k), body, id=anchors[k]) for k, body in sections.items()),
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        + tag("title", f"{title}: SmaLLM report")
        + tag("style", Html(CSS))
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{main}</body></html>\n'
