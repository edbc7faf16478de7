"""The report's plots: the record of a search in, SVG pictures with titles and captions out.

Figures are matplotlib objects without its global state; text stays text and ids depend on content
alone, so the same record gives the same bytes. Scores of the search are from the selection slice,
scores of finalists and reference models from the final slice.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

WIDTH = 5.4  # inches: at 390 pixels the text is still readable
INK, GREY, PALE = "#333b44", "#66717d", "#b9c0c8"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
ROLE_COLORS = {"champion": "#0072b2", "runner-up": "#d55e00", "default": "#7a5195"}
OTHER_COLORS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")
HOLLOW_MARKERS = ("s", "^", "D", "v", "P")
MOST_CATEGORIES = 6
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e4e7ea",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "savefig.transparent": True,
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture with its words; `section` is the part of the report it belongs to."""

    name: str
    section: str
    title: str
    caption: str
    svg: str


def draw_plots(result: Record) -> list[Plot]:
    """All plots that the record has data for, in reading order."""
    from matplotlib import style

    with style.context(["default", STYLE]):
        drawn = [
            _finalist_seeds(result),
            _reference_models(result),
            _learning_curves(result),
            _importance(result),
            *(_setting(result, name) for name in result.get("searched") or ()),
        ]
    return [plot for plot in drawn if plot]


def label(name: str) -> str:
    """A setting's name as people write it."""
    return name.replace("_", " ")


def shown(value: Any) -> str:
    """A value as people write it: three significant digits, yes and no."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def tokens_shown(tokens: float) -> str:
    """A number of tokens with at most three digits, such as 1.25 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if tokens >= 0.9995 * size:
            return f"{tokens / size:.3g}{unit}"
    return f"{tokens:.0f}"


def score(trial: Record) -> float | None:
    """The trial's mean bits per byte, or None where it has none."""
    mean = (trial.get("bits_per_byte") or {}).get("mean")
    return mean if mean is not None and math.isfinite(mean) else None


def at_full_budget(trial: Record, result: Record) -> bool:
    """Whether the trial may be compared with others; whole batches may end just short."""
    return bool(trial["status"] == "completed" and trial["tokens"] >= 0.99 * result["full_budget"])


def titled(finalist: Record) -> str:
    """The finalist's name with its role."""
    name, role = str(finalist["name"]), str(finalist["role"])
    return name if role in name else f"{name} ({role})"


def role_colors(result: Record) -> list[tuple[Record, str]]:
    """The finalists, each with its own colour in all plots."""
    spare = iter(OTHER_COLORS * len(result.get("finalists") or ()))
    return [
        (finalist, ROLE_COLORS.get(finalist["role"]) or next(spare))
        for finalist in result.get("finalists") or ()
    ]


def _finalist_seeds(result: Record) -> Plot | None:
    rows = [(each, color) for each, color in role_colors(result) if each.get("final")]
    if not rows:
        return None
    figure, axes = _canvas(
        "Finalists, seed by seed", "bits per byte, final slice", "", rows=len(rows)
    )
    for place, (finalist, color) in enumerate(reversed(rows)):
        final = finalist["final"]["bits_per_byte"]
        seeds = [value for value in final["per_seed"].values() if value is not None]
        axes.plot(
            [final["low"], final["high"]], [place, place], color=color, lw=2, marker="|", ms=11
        )
        axes.plot(final["value"], place, "D", color=color, ms=7)
        axes.plot(seeds, [place + 0.22] * len(seeds), "o", color=color, ms=5.5, alpha=0.65, mew=0)
    _categories(axes, [titled(each) for each, _ in reversed(rows)])
    return _plot(
        figure,
        "finalist_seeds",
        "finalists",
        "Each dot is one confirmation seed, the diamond their mean, the line its 95 % interval "
        "over seeds and documents. Further left is better. Overlapping lines alone do not mean "
        "a tie: the comparisons above are paired and see smaller differences.",
    )


def _reference_models(result: Record) -> Plot | None:
    references = [
        (each["name"], each["bits_per_byte"], PALE) for each in result.get("references") or ()
    ]
    finalists = [
        (titled(each), each["final"]["bits_per_byte"]["value"], color)
        for each, color in role_colors(result)
        if each.get("final") and each["role"] in ROLE_COLORS
    ]
    if not references:
        return None
    bars = sorted(references + finalists, key=lambda bar: -bar[1])
    figure, axes = _canvas(
        "Beside reference models", "bits per byte, final slice", "", rows=len(bars)
    )
    places = range(len(bars))
    axes.barh(places, [bar[1] for bar in bars], color=[bar[2] for bar in bars], height=0.62)
    for place, (_, value, _) in enumerate(bars):
        axes.annotate(
            f"{value:.3f}", (value, place), (4, 0), textcoords="offset points", va="center"
        )
    _categories(axes, [bar[0] for bar in bars])
    axes.set_xlim(0, 1.13 * bars[0][1])
    return _plot(
        figure,
        "reference_models",
        "references",
        "Models without neural networks on the same text, and the configs confirmed here. Shorter "
        "is better: bits per byte is the compressed size of the text, and 8 is no compression.",
    )


def _learning_curves(result: Record) -> Plot | None:
    trials = [trial for trial in result.get("trials") or () if trial.get("curve")]
    if not trials:
        return None
    figure, axes = _canvas("Learning curves", "training tokens", "bits per byte, selection slice")
    leaders = _leaders(result)
    for trial in sorted(
        trials, key=lambda each: [*leaders, each["id"]].index(each["id"]), reverse=True
    ):
        points = trial["curve"]
        tokens, means = [each["tokens"] for each in points], [each["mean"] for each in points]
        name, color = leaders.get(trial["id"], (None, PALE))
        axes.plot(
            tokens, means, color=color, lw=2 if name else 1, label=name, zorder=3 if name else 2
        )
        if name:
            seeds = [list(each["per_seed"].values()) or [each["mean"]] for each in points]
            low, high = [min(each) for each in seeds], [max(each) for each in seeds]
            axes.fill_between(tokens, low, high, color=color, alpha=0.2, lw=0)
        if not at_full_budget(trial, result):
            axes.plot(tokens[-1], means[-1], "o", mfc="white", mec=GREY, ms=5, zorder=4)
    axes.plot([], [], color=PALE, lw=1, label="other trials")
    if not all(at_full_budget(trial, result) for trial in trials):
        axes.plot([], [], "o", mfc="white", mec=GREY, ms=5, label="ended before the full budget")
    left_out = _focus(axes, [each["mean"] for trial in trials for each in trial["curve"]], "y")
    _token_axis(axes)
    axes.legend(loc="upper right")
    return _plot(
        figure,
        "learning_curves",
        "search",
        "How each trial learned: its mean over seeds. The shaded band runs from the best to the "
        f"worst seed. Lower is better.{left_out}",
    )


def _importance(result: Record) -> Plot | None:
    shares = sorted((result.get("importance") or {}).items(), key=lambda item: item[1])
    if not shares:
        return None
    figure, axes = _canvas(
        "Importance of settings", "share of the explained variance (%)", "", rows=len(shares)
    )
    percent = [100 * share for _, share in shares]
    axes.barh(range(len(shares)), percent, color="#56b4e9", height=0.62)
    for place, value in enumerate(percent):
        axes.annotate(
            f"{value:.0f}", (value, place), (4, 0), textcoords="offset points", va="center"
        )
    _categories(axes, [label(name) for name, _ in shares])
    axes.set_xlim(0, 1.1 * max(*percent, 1))
    return _plot(
        figure,
        "importance",
        "search",
        f"How much of the difference between trials goes with {label(shares[-1][0])} and the other "
        "settings. An estimate from few trials: it says where to look, not what causes what.",
    )


def _setting(result: Record, name: str) -> Plot | None:
    """Bits per byte against one searched setting; trials cut short have a panel of their own."""
    trials = [
        trial
        for trial in result.get("trials") or ()
        if score(trial) is not None and name in trial["settings"]
    ]
    full = [trial for trial in trials if at_full_budget(trial, result)]
    early = [trial for trial in trials if trial not in full]
    values = _ordered(name, trials, full)
    if len(values) < 2:
        return None
    numeric = all(map(_is_number, values))
    continuous = numeric and (name == "learning_rate" or len(values) > MOST_CATEGORIES)
    figure, panels = _panels(name, continuous=continuous, rows=len(values), full=full, early=early)
    places = (
        {t["id"]: t["settings"][name] for t in trials}
        if continuous
        else _strips(name, values, trials)
    )
    for marks, style in _marked(result, full, early):
        axes = panels["early" if marks[0] in early else "full"]
        at, means = [places[t["id"]] for t in marks], [score(t) or 0.0 for t in marks]
        spreads = [t["bits_per_byte"].get("spread") or 0.0 for t in marks]
        if continuous:
            axes.errorbar(at, means, yerr=spreads, **style)
        else:
            axes.errorbar(means, at, xerr=spreads, **style)
    left_out = _focus(panels["full"], _scores(full), "y" if continuous else "x") if full else ""
    if (
        continuous
        and min(values) > 0
        and (name == "learning_rate" or max(values) >= 20 * min(values))
    ):
        _log_axis(list(panels.values())[-1], wide=max(values) > 200 * min(values))
    if not continuous:
        _categories(figure.axes[0], [shown(value) for value in values])
    figure.legend(loc="outside lower left", ncols=2)
    return _plot(
        figure, f"setting_{name}", "settings", _setting_words(name, full, early) + left_out
    )


def _setting_words(name: str, full: list[Record], early: list[Record]) -> str:
    best = min(full, key=lambda trial: score(trial) or math.inf, default=None)
    words = [
        f"The best trial had {label(name)} {shown(best['settings'][name])}." if best else "",
        "Each mark is a trial with its spread over seeds; lower bits per byte are better.",
        "Hollow marks saw fewer tokens: they do not compare with the others." if early else "",
        "Other settings differ too, so read trends, not single marks.",
    ]
    return " ".join(filter(None, words))


def _ordered(name: str, trials: list[Record], full: list[Record]) -> list[Any]:
    """The setting's values from the bottom up: numbers by size, others with the best on top."""
    values = list(dict.fromkeys(trial["settings"][name] for trial in trials))
    if all(map(_is_number, values)):
        return sorted(values)
    best = {
        value: min(_scores(t for t in full if t["settings"][name] == value), default=math.inf)
        for value in values
    }
    return sorted(values, key=lambda value: (-best[value], shown(value)))


def _strips(name: str, values: list[Any], trials: list[Record]) -> dict[str, float]:
    """Where each trial stands in the row of its value: beside the others, in their order."""
    places = {}
    for row, value in enumerate(values):
        ids = [trial["id"] for trial in trials if trial["settings"][name] == value]
        width = min(0.7, 0.18 * len(ids))
        for index, trial in enumerate(ids):
            places[trial] = row + width * (0.5 - (index + 0.5) / len(ids))
    return places


def _panels(
    name: str, *, continuous: bool, rows: int, full: list[Record], early: list[Record]
) -> tuple[Figure, dict[str, Axes]]:
    """Axes for full and early trials, as far as there are any: above, or at the right."""
    from matplotlib.figure import Figure

    kinds = [kind for kind, trials in (("full", full), ("early", early)) if trials]
    words = {"full": "bits per byte, selection slice", "early": "ended early"}
    if continuous:
        kinds.reverse()
        figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        ratios = [1.0, 2.4][-len(kinds) :]
        grid = figure.subplots(len(kinds), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        grid[-1].set_xlabel(label(name))
    else:
        figure = Figure(figsize=(WIDTH, 1.7 + 0.42 * rows), layout="constrained")
        ratios = [2.4, 1.0][: len(kinds)]
        grid = figure.subplots(1, len(kinds), sharey=True, squeeze=False, width_ratios=ratios)[0]
        grid[0].set_ylabel(label(name))
    panels = dict(zip(kinds, grid, strict=True))
    for kind, axes in panels.items():
        (axes.set_ylabel if continuous else axes.set_xlabel)(words[kind])
        axes.locator_params(axis="y" if continuous else "x", nbins=3 if kind == "early" else 5)
    grid[0].set_title(f"{label(name).capitalize()} against bits per byte")
    return figure, panels


def _marked(
    result: Record, full: list[Record], early: list[Record]
) -> Iterator[tuple[list[Record], dict[str, Any]]]:
    """Groups of trials with their marks: full for the full budget, hollow by tokens seen."""
    champions = {f["trial"] for f in result.get("finalists") or () if f["role"] == "champion"}
    budget = tokens_shown(result["full_budget"])
    base = {"ls": "", "elinewidth": 1, "marker": "o", "ms": 6}
    others = [trial for trial in full if trial["id"] not in champions]
    champion = [trial for trial in full if trial["id"] in champions]
    if others:
        yield others, {**base, "color": INK, "label": f"full budget, {budget} tokens"}
    if champion:
        yield champion, {**base, "color": ROLE_COLORS["champion"], "label": "champion's trial"}
    hollow = {**base, "color": GREY, "mfc": "white"}
    for marker, marks in zip(HOLLOW_MARKERS, _by_tokens(early), strict=False):
        least, most = tokens_shown(marks[0]["tokens"]), tokens_shown(marks[-1]["tokens"])
        words = f"only {least} tokens" if least == most else f"only {least} to {most} tokens"
        yield marks, {**hollow, "marker": marker, "label": words}


def _by_tokens(early: list[Record]) -> list[list[Record]]:
    """Trials in groups of equal tokens, or of similar ones when there would be too many groups."""
    amounts = sorted({trial["tokens"] for trial in early})
    size = math.ceil(len(amounts) / len(HOLLOW_MARKERS)) or 1
    chunks = [amounts[start : start + size] for start in range(0, len(amounts), size)]
    ordered = sorted(early, key=lambda trial: trial["tokens"])
    return [[trial for trial in ordered if trial["tokens"] in chunk] for chunk in chunks]


def _leaders(result: Record) -> dict[str, tuple[str, str]]:
    """Name and colour of the trials to follow: the finalists', else the three best so far."""
    finalists = {each["trial"]: (titled(each), color) for each, color in role_colors(result)}
    if finalists:
        return finalists
    scored = [trial for trial in result.get("trials") or () if score(trial) is not None]
    scored.sort(key=lambda trial: (-trial["tokens"], score(trial)))
    return {
        trial["id"]: (f"trial {trial['number']}", color)
        for trial, color in zip(scored[:3], OTHER_COLORS, strict=False)
    }


def _canvas(title: str, x: str, y: str, *, rows: int | None = None) -> tuple[Figure, Axes]:
    """A figure for one plot; `rows` categories fix its height."""
    from matplotlib.figure import Figure

    height = 3.5 if rows is None else 1.1 + 0.42 * rows
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _plot(figure: Figure, name: str, section: str, caption: str) -> Plot:
    text = StringIO()
    figure.savefig(
        text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    title = figure.axes[0].get_title(loc="left")
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Several pictures share one page: their ids must differ.
    svg = re.sub(r'(<\w+ id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    words = escape(f"{title}. {caption}")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)
    return Plot(name, section, title, caption, svg)


def _categories(axes: Axes, names: Sequence[str]) -> None:
    wrapped = ["\n".join(textwrap.wrap(name, 22)) for name in names]
    axes.set_yticks(range(len(names)), wrapped)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def _token_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: tokens_shown(tokens)))
    axes.set_xlim(left=0)


def _log_axis(axes: Axes, *, wide: bool) -> None:
    """A logarithmic axis with labels at 1, 2 and 5 where few powers of ten are in sight."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"{axes.get_xlabel()} (logarithmic)")


def _focus(axes: Axes, values: list[float], axis: str) -> str:
    """Cuts far outliers off the axis, so that the rest can be told apart; says so in words."""
    ordered = sorted(values)
    best, upper = ordered[0], ordered[int(0.75 * (len(ordered) - 1))]
    limit = upper + 3 * (upper - best)
    outside = sum(value > limit for value in ordered)
    if not outside or upper == best:
        return ""
    inside = [value for value in ordered if value <= limit]
    margin = 0.08 * (inside[-1] - best)
    (axes.set_ylim if axis == "y" else axes.set_xlim)(best - margin, inside[-1] + margin)
    points = "1 mark lies" if outside == 1 else f"{outside} marks lie"
    return f" {points} beyond the edge, at up to {ordered[-1]:.3f}."


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _scores(trials: Iterable[Record]) -> list[float]:
    return [trial["bits_per_byte"]["mean"] for trial in trials]
