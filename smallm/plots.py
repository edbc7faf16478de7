"""The report's plots: the record of a search in, SVG pictures with titles and captions out.

Scores of the search are from the selection slice, those of finalists and references from the
final slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallm.activity_plots import activity_over_training
from smallm.charts import (
    GREY,
    INK,
    OTHER_COLORS,
    PALE,
    ROLE_COLORS,
    Plot,
    bars,
    finished,
    named_rows,
    panels,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

HOLLOW_MARKERS = ("s", "^", "D", "v", "P")
MOST_CATEGORIES = 6
SELECTION, FINAL = "bits per byte, selection slice", "bits per byte, final slice"


def draw_plots(result: Record) -> list[Plot]:
    """All plots that the record has data for, in reading order."""
    with style():
        drawn = [
            _finalist_seeds(result),
            _reference_models(result),
            _learning_curves(result),
            activity_over_training(result, tokens_shown),
            _importance(result),
            *(_setting(result, name) for name in result.get("searched") or ()),
        ]
    return [plot for plot in drawn if plot]


def learning_curves(result: Record) -> Plot | None:
    """Bits per byte of all trials over training, the leaders in colour; None without any."""
    with style():
        return _learning_curves(result)


def label(name: str) -> str:
    """A setting's name as people write it."""
    return name.replace("_", " ")


def shown(value: Any) -> str:
    """A value as people write it: three significant digits, yes and no."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


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


def trial_name(trial: Record) -> str:
    """A trial's own name, as models have, or its number."""
    return trial.get("name") or f"trial {trial['number']}"


def titled(finalist: Record) -> str:
    """The finalist's name with its role."""
    name, role = str(finalist["name"]), str(finalist["role"])
    return name if role in name else f"{name} ({role})"


def _finalist_seeds(result: Record) -> Plot | None:
    rows = _colored(result)[::-1]
    if not rows:
        return None
    names = [titled(finalist) for finalist, _ in rows]
    figure, axes = named_rows("Finalists, seed by seed", FINAL, names)
    for place, (finalist, color) in enumerate(rows):
        final = finalist["final"]["bits_per_byte"]
        seeds = list(final["per_seed"].values())
        axes.hlines(place, final["low"], final["high"], color=color, lw=2)
        axes.plot(final["value"], place, "D", color=color, ms=7)
        axes.plot(seeds, [place + 0.25] * len(seeds), "o", color=color, ms=5.5, alpha=0.6, mew=0)
    return finished(
        figure,
        "finalist_seeds",
        "finalists",
        "Each dot is one fresh seed, the diamond their mean, the line its 95 % interval over "
        "seeds and documents. Further left is better. Lines that overlap are not yet a tie: the "
        "comparisons in the conclusion are paired and see smaller differences.",
    )


def _reference_models(result: Record) -> Plot | None:
    references = result.get("references") or ()
    if not references:
        return None
    models = [(each["name"], each["bits_per_byte"], PALE) for each in references]
    models += [
        (titled(each), each["final"]["bits_per_byte"]["value"], color)
        for each, color in _colored(result)
    ]
    models.sort(key=lambda model: -model[1])
    return finished(
        bars("Beside reference models", FINAL, models, "{:.3f}"),
        "reference_models",
        "references",
        "The confirmed configs and reference models on the same text. Shorter is better: 8 bits "
        "per byte is the text as it is, 2 a quarter of its size.",
    )


def _learning_curves(result: Record) -> Plot | None:
    trials = [trial for trial in result.get("trials") or () if trial.get("curve")]
    if not trials:
        return None
    figure, (axes,) = panels(3.8)
    axes.set(title="Learning curves", xlabel="training tokens", ylabel=SELECTION)
    leaders = _leaders(result)
    order = {name: place for place, name in enumerate(leaders)}
    for trial in sorted(trials, key=lambda each: order.get(each["id"], -1)):
        _curve(axes, trial, leaders.get(trial["id"]), ended=at_full_budget(trial, result))
    if len(leaders) < len(trials):
        axes.plot([], [], color=PALE, lw=1, label="other trials")
    if not all(at_full_budget(trial, result) for trial in trials):
        axes.plot([], [], "o", mfc="white", mec=GREY, ms=5, label="ended before the full budget")
    left_out = _focus(axes, [each["mean"] for trial in trials for each in trial["curve"]])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda tokens, _: tokens_shown(tokens))
    axes.legend(loc="upper right")
    return finished(
        figure,
        "learning_curves",
        "search",
        "How the configs learned; each line is a mean over seeds, its shaded band runs from the "
        f"best to the worst seed. Lower is better.{left_out}",
    )


def _curve(axes: Axes, trial: Record, leader: tuple[str, str] | None, *, ended: bool) -> None:
    """A thin line, or for a leader a coloured one with its name and the band of its seeds."""
    tokens = [point["tokens"] for point in trial["curve"]]
    means = [point["mean"] for point in trial["curve"]]
    if leader:
        name, color = leader
        seeds = [list(point["per_seed"].values()) for point in trial["curve"]]
        axes.plot(tokens, means, color=color, lw=2, label=name, zorder=3)
        low, high = [min(each) for each in seeds], [max(each) for each in seeds]
        axes.fill_between(tokens, low, high, color=color, alpha=0.2, lw=0)
    else:
        axes.plot(tokens, means, color=PALE, lw=1)
    if not ended:
        axes.plot(tokens[-1], means[-1], "o", mfc="white", mec=GREY, ms=5, zorder=4)


def _importance(result: Record) -> Plot | None:
    shares = sorted((result.get("importance") or {}).items(), key=lambda item: item[1])
    if not shares:
        return None
    settings = [(label(name), 100 * share, OTHER_COLORS[-1]) for name, share in shares]
    return finished(
        bars("Importance of settings", "share of the explained variance (%)", settings, "{:.0f}"),
        "importance",
        "search",
        "How much of the difference between trials goes with each setting, most of all with "
        f"{settings[-1][0]}. An estimate from few trials: where to look, not what causes what.",
    )


def _setting(result: Record, name: str) -> Plot | None:
    """Bits per byte against one searched setting; trials cut short have a panel of their own."""
    scored = [trial for trial in result.get("trials") or () if score(trial) is not None]
    trials = [trial for trial in scored if name in trial["settings"]]
    full = [trial for trial in trials if at_full_budget(trial, result)]
    early = [trial for trial in trials if trial not in full]
    values = _ordered(name, trials, full)
    if len(values) < 2:
        return None
    figure, parts = _two_panels(name, full, early)
    if _are_numbers(values) and (name == "learning_rate" or len(values) > MOST_CATEGORIES):
        places = {trial["id"]: trial["settings"][name] for trial in trials}
        _scale(figure.axes[-1], name, values)
    else:
        places = _spread_in_columns(name, values, trials)
        _name_columns(figure.axes[-1], [shown(value) for value in values])
    for marks, look in _marked(result, full, early):
        spreads = [trial["bits_per_byte"].get("spread") or 0.0 for trial in marks]
        at = [places[trial["id"]] for trial in marks]
        parts[marks[0] in full].errorbar(at, _means(marks), yerr=spreads, **look)
    left_out = "".join(_focus(axes, _means(full if k else early)) for k, axes in parts.items())
    figure.legend(loc="outside lower left", ncols=2)
    return finished(figure, f"setting_{name}", "settings", _words(name, full, early) + left_out)


def _words(name: str, full: list[Record], early: list[Record]) -> str:
    words = ["Each mark is a trial with its spread over seeds; lower bits per byte are better."]
    if full:
        best = min(full, key=lambda trial: score(trial) or 0.0)
        words.insert(0, f"The best trial had {label(name)} {shown(best['settings'][name])}.")
    if early:
        words.append("Hollow marks saw fewer tokens: they do not compare with the others.")
    return " ".join([*words, "Other settings differ too, so read trends, not single marks."])


def _ordered(name: str, trials: list[Record], full: list[Record]) -> list[Any]:
    """The setting's values from the left: numbers by size, others by their best score."""
    values = {trial["settings"][name] for trial in trials}
    if _are_numbers(values):
        return sorted(values)

    def best(value: Any) -> float:
        return min(_means(t for t in full if t["settings"][name] == value), default=math.inf)

    return sorted(values, key=lambda value: (best(value), shown(value)))


def _spread_in_columns(name: str, values: list[Any], trials: list[Record]) -> dict[str, float]:
    """The place of each trial: in the column of its value, beside the others."""
    places: dict[str, float] = {}
    for column, value in enumerate(values):
        ids = [trial["id"] for trial in trials if trial["settings"][name] == value]
        step, middle = min(0.12, 0.5 / len(ids)), (len(ids) - 1) / 2
        places |= {each: column + step * (index - middle) for index, each in enumerate(ids)}
    return places


def _two_panels(
    name: str, full: list[Record], early: list[Record]
) -> tuple[Figure, dict[bool, Axes]]:
    """Axes for trials at full budget (True), and above them for early ones, where there are any."""
    kinds = [kind for kind, trials in ((False, early), (True, full)) if trials]
    heights = [1.0, 2.4][-len(kinds) :]
    figure, grid = panels(4.4, nrows=len(kinds), sharex=True, height_ratios=heights)
    for kind, axes in zip(kinds, grid, strict=True):
        axes.set_ylabel(SELECTION if kind else "ended early")
        axes.locator_params(axis="y", nbins=5 if kind else 3)
        axes.margins(0.08, 0.08 if kind else 0.25)
    grid[0].set_title(f"{label(name).capitalize()} against bits per byte")
    grid[-1].set_xlabel(label(name))
    return figure, dict(zip(kinds, grid, strict=True))


def _marked(
    result: Record, full: list[Record], early: list[Record]
) -> Iterator[tuple[list[Record], dict[str, Any]]]:
    """Groups of trials with their marks: full for the full budget, hollow by tokens seen."""
    champions = [f["trial"] for f in result.get("finalists") or () if f["role"] == "champion"]
    base = {"ls": "", "elinewidth": 1, "marker": "o", "ms": 6}
    if others := [trial for trial in full if trial["id"] not in champions]:
        budget = tokens_shown(result["full_budget"])
        yield others, {**base, "color": INK, "label": f"full budget, {budget} tokens"}
    if champion := [trial for trial in full if trial["id"] in champions]:
        yield champion, {**base, "color": ROLE_COLORS["champion"], "label": "champion's trial"}
    for index, tokens in enumerate(sorted({trial["tokens"] for trial in early})):
        marker = HOLLOW_MARKERS[index % len(HOLLOW_MARKERS)]
        hollow = {**base, "marker": marker, "color": GREY, "mfc": "white"}
        marks = [trial for trial in early if trial["tokens"] == tokens]
        yield marks, {**hollow, "label": f"only {tokens_shown(tokens)} tokens"}


def _colored(result: Record) -> list[tuple[Record, str]]:
    """The finalists that are scored, each with its own colour in all plots."""
    finalists = [each for each in result.get("finalists") or () if each.get("final")]
    spare = iter(OTHER_COLORS * len(finalists))
    return [(each, ROLE_COLORS.get(each["role"]) or next(spare)) for each in finalists]


def _leaders(result: Record) -> dict[str, tuple[str, str]]:
    """Name and colour of the trials to follow: the finalists', else the three best so far.

    Trials that have a name are all followed.
    """
    finalists = {each["trial"]: (titled(each), color) for each, color in _colored(result)}
    if finalists:
        return finalists
    scored = [trial for trial in result.get("trials") or () if score(trial) is not None]
    scored.sort(key=lambda trial: (-trial["tokens"], score(trial)))
    if any("name" in trial for trial in scored):
        colors = (*ROLE_COLORS.values(), *OTHER_COLORS) * len(scored)
    else:
        colors = OTHER_COLORS[:3]
    best = zip(scored, colors, strict=False)
    return {trial["id"]: (trial_name(trial), color) for trial, color in best}


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    turn: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **turn if sum(map(len, names)) > 34 else {})
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")


def _scale(axes: Axes, name: str, values: list[float]) -> None:
    """A logarithmic axis for the learning rate and for values of several magnitudes."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = min(values), max(values)
    if low <= 0 or (name != "learning_rate" and high < 20 * low):
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 200 * low else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(f"{label(name)} (logarithmic)")


def _focus(axes: Axes, values: list[float]) -> str:
    """Cuts far outliers off the axis, so that the rest can be told apart; says so in words."""
    ordered = sorted(values)
    best, upper = ordered[0], ordered[int(0.75 * (len(ordered) - 1))]
    limit = upper + 3 * (upper - best)
    inside = [value for value in ordered if value <= limit]
    if len(inside) == len(ordered) or upper == best:
        return ""
    margin = 0.08 * (inside[-1] - best)
    axes.set_ylim(best - margin, inside[-1] + margin)
    outside = len(ordered) - len(inside)
    points = "1 value lies" if outside == 1 else f"{outside} values lie"
    return f" {points} beyond the edge, the worst at {ordered[-1]:.3f}."


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)


def _means(trials: Iterable[Record]) -> list[float]:
    return [trial["bits_per_byte"]["mean"] for trial in trials]
