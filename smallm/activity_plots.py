"""Pictures of hidden units: how many are dead or saturated, over training and layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from smallm.activity import FLAT, SAMPLE, STILL, Activity
from smallm.charts import GREY, INK, OTHER_COLORS, ROLE_COLORS, Plot, finished, panels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Record = Mapping[str, Any]
DASHES = ("-", "--")
COLORS = (*ROLE_COLORS.values(), *OTHER_COLORS, INK, GREY)
SHOWN = {"dead_units": "dead units (%)", "saturated_units": "saturated outputs (%)"}
EXPLAINED = (
    f"A unit is dead when its output moves by less than {STILL:g} over {SAMPLE:,} held-out tokens; "
    f"an output is saturated where the slope of the activation is below {FLAT:g}, as that of a "
    "ReLU is whenever it is off."
)


def activity_over_training(result: Record, tokens_shown: Any) -> Plot | None:
    """One strong line for each activation function, that of its best trial; None without data.

    `tokens_shown` writes a number of tokens.
    """
    watched = [
        trial
        for trial in result.get("trials") or ()
        if trial.get("curve") and all(point.get("activity") for point in trial["curve"])
    ]
    groups = by_activation(watched, result.get("settings") or {})
    if not groups:
        return None
    several = len({architecture for _, architecture in groups}) > 1
    names = {key: ", ".join(key) if several else key[0] for key in groups}
    columns = 2 if several else 4
    rows = -(-len(groups) // columns)
    with style():
        figure, grid = panels(4.8 + 0.2 * rows, nrows=len(SHOWN), sharex=True)
        looks = looks_of(groups)
        for key, trials in groups.items():
            for place, trial in enumerate(trials):
                look: dict[str, Any] = {"lw": 0.8, "alpha": 0.5}
                if place == 0:
                    look = {"lw": 2, "marker": "o", "ms": 3.5, "label": names[key], "zorder": 3}
                _line(grid, trial, **looks[key], **look)
        for axes, (figure_name, words) in zip(grid, SHOWN.items(), strict=True):
            axes.set_ylabel(words)
            most = max(_values(groups, figure_name))
            axes.set_ylim(-0.02 * max(100 * most, 5), 1.05 * max(100 * most, 5))
        grid[0].set_title("Hidden units over training")
        grid[-1].set_xlabel("training tokens")
        grid[-1].set_xlim(left=0)
        grid[-1].xaxis.set_major_formatter(lambda tokens, _: tokens_shown(tokens))
        figure.legend(loc="outside lower left", ncols=columns, handlelength=3.5)
        ends = ", ".join(
            f"{names[key]} {100 * trials[0]['curve'][-1]['activity']['dead_units']:.1f} %"
            for key, trials in groups.items()
        )
        caption = (
            "The strong line of an activation function is its best trial, thin lines are its "
            f"others, each a mean over seeds. {EXPLAINED} Dead at the end: {ends}."
        )
        return finished(figure, "activations", "search", caption)


def by_activation(
    trials: Sequence[Record], settings: Record
) -> dict[tuple[str, str], list[Record]]:
    """Trials with a curve by activation function and architecture, the best first.

    `settings` are those that all trials share.
    """

    def setting(trial: Record, name: str) -> str:
        return str(trial["settings"].get(name, settings.get(name, "")))

    groups: dict[tuple[str, str], list[Record]] = {}
    for trial in sorted(trials, key=lambda each: (-each["tokens"], each["curve"][-1]["mean"])):
        key = setting(trial, "activation"), setting(trial, "architecture")
        groups.setdefault(key, []).append(trial)
    return dict(sorted(groups.items()))


def looks_of(groups: Iterable[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """A colour for each activation function, a dash for each architecture."""
    keys = sorted(groups)
    functions, architectures = (sorted({key[part] for key in keys}) for part in (0, 1))
    return {
        key: {
            "color": COLORS[functions.index(key[0]) % len(COLORS)],
            "ls": DASHES[architectures.index(key[1]) % len(DASHES)],
        }
        for key in keys
    }


def _line(grid: Sequence[Axes], trial: Record, **look: Any) -> None:
    tokens = [point["tokens"] for point in trial["curve"]]
    for axes, name in zip(grid, SHOWN, strict=True):
        axes.plot(tokens, [100 * point["activity"][name] for point in trial["curve"]], **look)
        look.pop("label", None)


def _values(groups: Mapping[Any, Iterable[Record]], name: str) -> list[float]:
    return [
        point["activity"][name]
        for trials in groups.values()
        for trial in trials
        for point in trial["curve"]
    ]


def layers_plot(name: str, found: Activity) -> Plot:
    """Dead units, saturated outputs and the mean output of each layer of one model."""
    with style():
        figure, grid = panels(5.6, nrows=3, sharex=True)
        places = range(1, len(found.layers) + 1)
        for axes, field, words, factor in zip(
            grid, ("dead", "saturated", "mean"), (*SHOWN.values(), "mean output"), (100, 100, 1),
            strict=True,
        ):  # fmt: skip
            values = [factor * getattr(layer, field) for layer in found.layers]
            axes.bar(places, values, width=0.7, color=ROLE_COLORS["champion"])
            axes.axhline(0, color=INK, lw=0.8)
            axes.set_ylabel(words)
            axes.margins(y=0.15)
            if factor == 100:
                axes.set_ylim(0, max(5, 1.15 * max(values)))
        grid[0].set_title(f"Hidden units of {name}")
        grid[-1].set_xlabel("layer")
        grid[-1].locator_params(axis="x", integer=True)
        units = ", ".join(sorted({f"{layer.units:,}" for layer in found.layers}))
        caption = f"{len(found.layers)} layers of {units} hidden units. {EXPLAINED}"
        return finished(figure, "hidden_units", "model", caption)
