"""What training on one kind of text is worth on another: the matrix of train by test sources.

Shown where a corpus has several sources: a row for each model, a column for each source, and a
sentence for each pair of SmaLLMs, paired over the source's documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from smallm.charts import Plot, finished, panels, style
from smallm.leaderboard import NONE, name_shown, span
from smallm.page import Html, figures, join, table, tag
from smallm.significance import ratio_interval

Record = Mapping[str, Any]
SECTION = "sources"
WORDS = (
    "Bits per byte of the held-out text of each source. A document's side of a cut follows from "
    "its text, so what is held out here, word for word, is held out in the corpus of every model "
    "of the same order and ratios; near copies need not be. Intervals are over documents; how much "
    "a model varies with its seed is not in them."
)


def has_matrix(record: Record) -> bool:
    """Whether the text had several sources and a model was scored on them."""
    return len(record.get("sources") or ()) > 1 and any(_rows(record))


def matrix_section(record: Record) -> Html:
    """The heat map, the table with intervals, the sentences."""
    sources = record["sources"]
    header = ["model", "trained on", *(f"on {name}" for name in sources)]
    rows = [
        [name_shown(row["name"]), trained_on(row), *(_cell(row, name) for name in sources)]
        for row in _rows(record)
    ]
    sizes = "; ".join(
        f"{name}: {found['documents']:,} documents, {found['bytes']:,} bytes"
        for name, found in sources.items()
    )
    said = tag("ul", *(tag("li", line) for line in sentences(record)))
    return join(
        tag("p", WORDS),
        figures([draw_matrix(record)], SECTION),
        table(header, rows, "models"),
        tag("p", sizes),
        said,
    )


def matrix_lines(record: Record) -> Iterator[list[str]]:
    """The cells of the terminal's table, a row for each model."""
    for row in _rows(record):
        yield [
            name_shown(row["name"]),
            trained_on(row),
            *(f"{_bits(row, name):.3f}" for name in record["sources"]),
        ]


def trained_on(row: Record) -> str:
    """The sources of a SmaLLM's corpus."""
    return ", ".join(row.get("trained_on") or ()) or NONE


def _rows(record: Record) -> list[Record]:
    return [row for row in record["models"] if row.get("by_source")]


def _bits(row: Record, source: str) -> float:
    return float(row["by_source"][source]["value"])


def _cell(row: Record, source: str) -> Html:
    found = row["by_source"][source]
    ends = tag("div", span(found)) if found["low"] is not None else Html()
    return join(tag("strong", f"{found['value']:.3f}"), ends)


def draw_matrix(record: Record) -> Plot:
    """The matrix as a heat map; each column has its own scale, for sources differ in difficulty."""
    rows, sources = _rows(record), list(record["sources"])
    bits = np.array([[_bits(row, name) for name in sources] for row in rows])
    spread = np.ptp(bits, axis=0)
    shade = (bits - bits.min(axis=0)) / np.where(spread > 0, spread, 1)
    with style():
        figure, (axes,) = panels(1.7 + 0.5 * len(rows))
        axes.imshow(shade, cmap="cividis_r", aspect="auto", vmin=-0.25, vmax=1)
        axes.set(title="Bits per byte on each source")
        axes.set_xticks(range(len(sources)), sources)
        labels = [name_shown(row["name"]) for row in rows]
        labels = [
            f"{label}\n({trained_on(row)})" if row.get("trained_on") else label
            for label, row in zip(labels, rows, strict=True)
        ]
        axes.set_yticks(range(len(rows)), labels)
        axes.grid(visible=False)
        for (row, column), value in np.ndenumerate(bits):
            color = "white" if shade[row, column] > 0.45 else "black"
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=color)
        return finished(
            figure,
            "source_matrix",
            SECTION,
            "A row for each model with what it was trained on, a column for each source it is "
            "scored on. Lower and lighter is better; shades compare within a column.",
        )


def sentences(record: Record) -> Iterator[str]:
    """For each source, the SmaLLM that is best on it against every other, in plain words."""
    for source in record["sources"]:
        rows = sorted(
            (row for row in _rows(record) if row.get("trained_on")),
            key=lambda row: _bits(row, source),
        )
        for other in rows[1:]:
            yield _sentence(source, rows[0], other)


def _sentence(source: str, best: Record, other: Record) -> str:
    found = [row["by_source"][source] for row in (best, other)]
    gaps = np.subtract(found[1]["nll_by_document"], found[0]["nll_by_document"]) / math.log(2)
    told = (
        f"On {source} text {name_shown(best['name'])} (trained on {trained_on(best)}) needs "
        f"{{:.3f}} bits per byte less than {name_shown(other['name'])} (trained on "
        f"{trained_on(other)})"
    )
    if len(gaps) < 2:
        return told.format(gaps.sum() / sum(found[0]["bytes_by_document"])) + ", on one document."
    gap = ratio_interval(gaps, found[0]["bytes_by_document"], seed=0)
    verdict = "" if gap.low > 0 else ": these documents cannot tell them apart"
    return f"{told.format(gap.value)} (95 % interval {gap.low:.3f} to {gap.high:.3f}){verdict}."
