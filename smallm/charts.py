"""What all plots share: size, colours, bars, and the way from a figure to an SVG picture.

Text stays text and ids depend on content alone: the same record gives the same bytes.
"""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.4  # inches: text stays readable at 390 pixels
INK, GREY, PALE = "#333b44", "#66717d", "#b9c0c8"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
ROLE_COLORS = {"champion": "#0072b2", "runner-up": "#d55e00", "default": "#7a5195"}
OTHER_COLORS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "smallm",
    "text.parse_math": False,
    "font.size": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e7ea",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture with its words; `section` is the part of the report it belongs to."""

    name: str
    section: str
    title: str
    caption: str
    svg: str


@contextmanager
def style() -> Iterator[None]:
    """The look of all plots, for as long as the block lasts."""
    from matplotlib import style as styles

    with styles.context(["default", STYLE]), warnings.catch_warnings():
        # Text stays text, which the reader's browser has more fonts for than matplotlib.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def panels(height: float, **layout: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the common width, that many inches high, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(squeeze=False, **layout).flat)


def named_rows(title: str, unit: str, names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with a named row for each thing, from the bottom up."""
    figure, (axes,) = panels(1.1 + 0.42 * len(names))
    axes.set(title=title, xlabel=unit, ylim=(-0.6, len(names) - 0.4))
    axes.set_yticks(range(len(names)), ["\n".join(textwrap.wrap(name, 22)) for name in names])
    axes.grid(visible=False, axis="y")
    return figure, axes


def bars(title: str, unit: str, drawn: Sequence[tuple[str, float, str]], text: str) -> Figure:
    """Horizontal bars (name, value, colour) from the bottom up, with their values."""
    names, values, colors = zip(*drawn, strict=True)
    figure, axes = named_rows(title, unit, names)
    boxes = axes.barh(range(len(drawn)), values, color=colors, height=0.62)
    axes.bar_label(boxes, [text.format(value) for value in values], padding=4)
    axes.set_xlim(0, 1.15 * max(*values, 1e-9))
    return figure


def finished(figure: Figure, name: str, section: str, caption: str) -> Plot:
    """A drawn figure as a picture; its title is its own, else that of its first axes."""
    name, text = re.sub(r"\W+", "_", name), StringIO()
    figure.savefig(
        text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    title = figure.get_suptitle() or figure.axes[0].get_title(loc="left")
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Several pictures share one page: their ids must differ.
    svg = re.sub(r'(<\w+ id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    words = escape(f"{title}. {caption}")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)
    return Plot(name, section, title, caption, svg)
