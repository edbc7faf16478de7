"""The plots of a comparison of models: size and speed against score, next words, reliability."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallm.charts import (
    GREY,
    INK,
    OTHER_COLORS,
    ROLE_COLORS,
    Plot,
    bars,
    finished,
    panels,
    style,
)
from smallm.leaderboard import name_shown
from smallm.ngrams import KNESER_NEY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]
WORD_CHARACTERS = 18


def draw_comparison(record: Record) -> list[Plot]:
    """All plots that the record has data for, in reading order."""
    scored = [row for row in record["models"] if row.get("bits_per_byte")]
    colors = model_colors(record)
    drawn = []
    with style():
        if scored:
            drawn.append(_against(record, scored, colors, "parameters"))
            drawn.append(_against(record, scored, colors, "milliseconds_per_kilobyte"))
        calibrated = [row for row in scored if row.get("calibration")]
        drawn += [_reliability(row, colors[row["name"]]) for row in calibrated]
    return drawn


def draw_next_words(record: Record, place: int) -> list[Plot]:
    """For one prompt the bars of each model that answered."""
    colors = model_colors(record)
    drawn = []
    with style():
        for row in record["models"]:
            answers = row.get("prompts") or ()
            found = answers[place].get("next_words") if answers else None
            if found and found["words"]:
                drawn.append(_next_words(row, found, place, colors[row["name"]]))
    return drawn


def model_colors(record: Record) -> dict[str, str]:
    """The colour of each model in all plots; the champion's is that of the search."""
    spare = iter([*OTHER_COLORS, GREY] * (len(record["models"]) + 1))
    return {
        row["name"]: ROLE_COLORS["champion"] if row["name"] == "champion" else next(spare)
        for row in record["models"]
    }


SIZES = {
    "parameters": ("Score against size", "parameters (logarithmic)"),
    "milliseconds_per_kilobyte": ("Score against time", "milliseconds per kB (logarithmic)"),
}


def _against(record: Record, rows: Sequence[Record], colors: Mapping[str, str], what: str) -> Plot:
    title, unit = SIZES[what]
    figure, (axes,) = panels(3.4)
    axes.set(title=title, xlabel=unit, ylabel="bits per byte", xscale="log")
    places = [row[what] for row in rows]
    _plain_axis(axes, places)
    middle = math.sqrt(min(places) * max(places))
    for row in rows:
        bits = row["bits_per_byte"]
        ends = None
        if bits["low"] is not None:
            ends = [[bits["value"] - bits["low"]], [bits["high"] - bits["value"]]]
        color = colors[row["name"]]
        axes.errorbar(row[what], bits["value"], yerr=ends, color=color, marker="o", ms=7, capsize=3)
        inwards = 1 if row[what] <= middle else -1  # a name stays inside the picture
        axes.annotate(
            name_shown(row["name"]),
            (row[what], bits["value"]),
            xytext=(8 * inwards, 6),
            textcoords="offset points",
            ha="left" if inwards == 1 else "right",
            color=INK,
        )
    _reference_line(axes, record)
    axes.margins(y=0.2)
    caption = (
        f"On the same {record['bytes']:,} bytes; lines are 95 % intervals over documents. Lower is "
        "better, further left is "
    )
    caption += "smaller." if what == "parameters" else "faster, on this machine."
    return finished(figure, f"against_{what}", "comparison", caption)


def _plain_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, and room for names beside the outermost values."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    room = max((max(values) / min(values)) ** 0.25, 2.0)
    low, high = min(values) / room, max(values) * room
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_minor_locator(NullLocator())


def _reference_line(axes: Axes, record: Record) -> None:
    """The Kneser-Ney 5-gram in the champion's tokens: a model of no size and no time."""
    found = (record.get("own_tokens") or {}).get("champion", {}).get(KNESER_NEY)
    if found:
        axes.axhline(found["bits_per_byte"], color=GREY, lw=1, ls="--", label=KNESER_NEY)
        axes.legend(loc="best")


def _reliability(row: Record, color: str) -> Plot:
    figure, (axes,) = panels(3.6)
    found = row["calibration"]
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    for when, label, line, fill in (
        ("before", "temperature 1", "--", "white"),
        ("after", f"fitted, {found['temperature']:.2f}", "-", color),
    ):
        points = found[when]["reliability"]
        xs = [point["confidence"] for point in points]
        ys = [point["accuracy"] for point in points]
        axes.plot(xs, ys, color=color, ls=line, marker="o", ms=5, mfc=fill, label=label)
    axes.set(
        title=f"Reliability of {name_shown(row['name'])}",
        xlabel="how sure the model is of its first choice",
        ylabel="how often that is right",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(loc="upper left")
    return finished(
        figure,
        f"reliability_{row['name']}",
        "calibration",
        "Next tokens in bins of confidence; on the dotted line a model is as sure as it is right, "
        "below it is too sure.",
    )


def _next_words(row: Record, found: Record, place: int, color: str) -> Plot:
    shown = [
        (
            textwrap.shorten(each["word"], WORD_CHARACTERS, placeholder="…") or repr(each["word"]),
            100 * each["probability"],
            color,
        )
        for each in reversed(found["words"])
    ]
    certain = "By the model's own arithmetic no other word is more probable."
    if row["kind"] == "masked":
        certain = "At a mask after the prompt: only words of a single piece are looked at."
    elif not found["certified"]:
        certain = (
            f"Not certain: {100 * found['residual']:.1f} % of the probability was not looked at."
        )
    return finished(
        bars(name_shown(row["name"]), "probability of the next word (%)", shown, "{:.1f}"),
        f"next_words_{place}_{row['name']}",
        "prompts",
        certain,
    )
