"""The result of an ablation for a person: a table for a terminal, a section of a page, a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from smallm.charts import GREY, ROLE_COLORS, Plot, finished, named_rows, style
from smallm.comparison_tables import with_ends
from smallm.leaderboard import NONE, duration
from smallm.page import Html, details, figures, join, pairs, table, tag
from smallm.plots import label, shown
from smallm.terminal import plain_table, texts

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]
HEADER = ("arm", "bits per byte (95 %)", "better by (95 %)", "time")


def ablation_table(record: Record) -> Table:
    """A row for each arm; the control is named in the title."""
    shown = plain_table(
        f"{record['question']}\nControl: {record['control']}", HEADER[:1], HEADER[1:]
    )
    for row in record["arms"]:
        shown.add_row(*texts(_cells(row)))
    return shown


def ablation_section(record: Record) -> Html:
    """The sentences, the plot, the table and the settings that all arms share."""
    seeds, untrained = [each["seeds"] for each in record["arms"]], record["untrained"]
    same = all(each == seeds[0] for each in seeds)
    paired = "the same seeds are paired" if same else "their seeds are paired in order"
    about = (
        f"Each arm trained {len(seeds[0])} replicates on {record['tokens']:,} tokens each, the "
        f"control with the seeds {', '.join(map(str, seeds[0]))}; {paired}. "
        f"The control is “{record['control']}”. Scored on {record['documents']:,} "
        "documents of the selection slice; intervals are over seeds and documents."
    )
    return join(
        tag("p", tag("strong", record["question"])),
        tag("p", about),
        tag("ul", *(tag("li", each) for each in record["conclusion"])),
        tag("p", f"Not trained yet: {', '.join(untrained)}.") if untrained else Html(""),
        figures(_plots(record), "ablation"),
        table(HEADER, (_cells(row) for row in record["arms"]), "figures"),
        details("Settings of all arms", pairs(_settings(record))),
    )


def _settings(record: Record) -> Iterator[tuple[str, str]]:
    for name, value in record["settings"].items():
        several = ", ".join(map(shown, value)) if isinstance(value, list) else None
        yield label(name), shown(value) if several is None else several or NONE


def _cells(row: Record) -> tuple[str, ...]:
    bits, gap = row.get("bits_per_byte"), row.get("better_by")
    return (
        row["name"],
        with_ends(bits) if bits else "failed",
        with_ends(gap, decimals=4) if gap else NONE,
        duration(row["seconds"]),
    )


def _plots(record: Record) -> list[Plot]:
    rows = [row for row in reversed(record["arms"]) if "better_by" in row]
    if not rows:
        return []
    with style():
        title = f"Better than {record['control']} by"
        figure, axes = named_rows(title, "bits per byte", [row["name"] for row in rows])
        axes.axvline(0, color=GREY, lw=1)
        axes.locator_params(axis="x", nbins=5)
        for place, row in enumerate(rows):
            gap = row["better_by"]
            ends = [[gap["value"] - gap["low"]], [gap["high"] - gap["value"]]]
            color = ROLE_COLORS["champion"] if row["real"] else GREY
            axes.errorbar(gap["value"], place, xerr=ends, color=color, marker="o", ms=7, capsize=4)
        caption = (
            "Right of the line an arm is better than the control; lines are 95 % intervals over "
            "seeds and documents, blue where the difference is real."
        )
        return [finished(figure, "ablation", "ablation", caption)]
