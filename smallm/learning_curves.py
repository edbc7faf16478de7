"""How configs learned, as a server tells it of its champion: the curves of a search's trials.

A search leaves them in the folder of its champion; of a model that `smallm train` has saved they
are made from its own curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smallm.activity import ACTIVITY
from smallm.activity_plots import by_activation
from smallm.files import read_json
from smallm.plots import trial_name
from smallm.training import PENALTY
from smallm.training_run import CURVE, read_curve

Record = Mapping[str, Any]

LEARNING_CURVES = "learning-curves.json"  # in the folder of a champion
MOST = 60  # trials: more lines hide each other


def learning_curves(
    trials: Sequence[Record], settings: Record, *, champion: str | None = None
) -> dict[str, Any]:
    """Bits per byte, dead units and saturated outputs of trials over training tokens.

    `settings` are those that all trials share, `champion` is the id of a trial. In each group of
    an activation function the best trial stands first. At most MOST trials are shown: the
    champion's, the best of each group, the best of the others. Points at which a seed had failed
    are left out, and count for no rank.
    """
    sound = [
        {**trial, "curve": curve, "tokens": curve[-1]["tokens"]}
        for trial in trials
        if (curve := _sound(trial["curve"]))
    ]
    groups = by_activation(sound, settings)
    placed = [(place, trial) for group in groups.values() for place, trial in enumerate(group)]

    def order(each: tuple[int, Record]) -> tuple[Any, ...]:
        place, trial = each
        mean = trial["curve"][-1]["mean"]
        return trial["id"] != champion, place > 0, -trial["tokens"], mean

    shown = {trial["id"] for _, trial in sorted(placed, key=order)[:MOST]}
    lines = {
        name: [_line(trial, champion) for trial in group if trial["id"] in shown]
        for name, group in groups.items()
    }
    return {
        "trials": len(trials),
        "groups": [
            {"activation": activation, "architecture": architecture, "curves": each}
            for (activation, architecture), each in lines.items()
            if each
        ],
    }


def kept_learning_curves(folder: Path) -> dict[str, Any] | None:
    """The curves of a model's folder; None where none are kept."""
    file = folder / LEARNING_CURVES
    if file.exists():
        found: dict[str, Any] = read_json(file)
        return found
    if (folder / CURVE).exists():
        trial = read_curve(folder)
        return learning_curves([trial], {}, champion=trial["id"])
    return None


def _sound(curve: Sequence[Record]) -> list[Record]:
    return [point for point in curve if PENALTY not in point["per_seed"].values()]


def _line(trial: Record, champion: str | None) -> dict[str, Any]:
    curve = trial["curve"]
    seeds = [point["per_seed"].values() for point in curve]
    watched = all(point.get("activity") for point in curve)
    return {
        "trial": trial_name(trial),
        "champion": trial["id"] == champion,
        "tokens": [point["tokens"] for point in curve],
        "bits_per_byte": [point["mean"] for point in curve],
        "lowest": [min(each) for each in seeds],
        "highest": [max(each) for each in seeds],
        **{
            name: [point["activity"][name] for point in curve] if watched else None
            for name in ACTIVITY
        },
    }
