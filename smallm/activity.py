"""What the hidden units of a model do while it reads: which are dead, how many are saturated.

A unit is dead when its output stays where it is, whatever the model reads: a ReLU that never fires,
a tanh that is always at one end. An output is saturated where its activation is flat, so that no
gradient passes. Both are told of a sample of text, so a unit that wakes up rarely may seem dead.
"""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE = 2048  # places in a text that are looked at
STILL = 1e-3  # a unit whose output moves by less is dead
FLAT = 5e-3  # an activation with less of a slope is saturated
# The figures of a model by the names they are recorded under.
ACTIVITY = {"dead_units": "dead", "saturated_units": "saturated", "mean_activation": "mean"}


@dataclass(frozen=True)
class LayerActivity:
    """The units of one hidden layer over a sample."""

    units: int
    dead: float
    """Share of units whose output moves by less than STILL."""
    saturated: float
    """Share of outputs at which the slope of the activation is below FLAT."""
    mean: float
    """Mean output."""


@dataclass(frozen=True)
class Activity:
    """The hidden units of a model over a sample, layer by layer."""

    layers: tuple[LayerActivity, ...]

    def of_all(self) -> dict[str, float]:
        """The figures named in ACTIVITY over the units of all layers."""
        units = sum(layer.units for layer in self.layers)
        return {
            name: sum(layer.units * getattr(layer, field) for layer in self.layers) / units
            for name, field in ACTIVITY.items()
        }
