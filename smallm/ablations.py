"""The registry of ablations: what one setting changes, everything else being equal.

An ablation has arms, each of which changes some settings of one config, and a control, the arm
that the others are held against; arms that differ in one thing may be held against each other
too. All arms train on equal tokens with the same seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smallm.errors import SmallmError, unknown_name
from smallm.settings import Settings, overlaid

SEEDS = (42, 43, 44, 45, 46)  # the fewest that can prove a difference: see smallm.significance
Changes = Mapping[str, Any]
SCORED: Changes = {"evaluate_at": (1.0,), "evaluation_bytes": None}


@dataclass(frozen=True)
class Ablation:
    """A question, and the settings that answer it. The first arm is the control."""

    question: str
    arms: Mapping[str, Changes]
    base: Changes = field(default_factory=dict)
    """Settings of all arms, where the user gives no others."""
    other_seeds: str | None = None
    """The arm that takes as many seeds after the others' instead."""
    also: tuple[tuple[str, str], ...] = ()
    """Further pairs to compare: an arm, and what it is held against beside the control."""

    @property
    def control(self) -> str:
        """The name of the arm that the others are held against."""
        return next(iter(self.arms))

    @property
    def varied(self) -> set[str]:
        """Names of the settings that the arms change."""
        return {name for changes in self.arms.values() for name in changes}


def _choices(setting: str, *values: Any) -> dict[str, Changes]:
    """An arm for each value of a setting, named by it."""
    return {str(value): {setting: value} for value in values}


def _curriculum(question: str, measure: str) -> Ablation:
    """The usual random order, the stages of a curriculum, and the same stages otherwise."""
    orders = {"easy first": "easy_first", "hard first": "hard_first", "stages shuffled": "random"}
    arms: dict[str, Changes] = {
        "random order": {"curriculum": "none", "curriculum_order": "easy_first"},
        **{
            name: {"curriculum": measure, "curriculum_order": order}
            for name, order in orders.items()
        },
    }
    easy, *controls = orders
    return Ablation(question, arms, also=tuple((easy, control) for control in controls))


TRANSFORMER: Changes = {"architecture": "transformer", "preset": "tiny", "batch_size": 2048}

ABLATIONS: dict[str, Ablation] = {
    "activation": Ablation(
        "Which activation function of the hidden layers is best?",
        _choices("activation", "relu", "gelu", "leaky_relu", "tanh", "sigmoid", "silu", "relu2"),
    ),
    "gates": Ablation(
        "Does it help to multiply each hidden layer by a second one? That takes more weights.",
        _choices("activation", "silu", "swiglu", "gelu", "geglu"),
        also=(("geglu", "gelu"),),
    ),
    "split": Ablation("Does more text to train on help?", _choices("split_ratio", 0.75, 0.8, 0.9)),
    "tokenizer": Ablation(
        "Whole words, or byte-level pieces? Of as many tokens, whole words are more text.",
        {"byte-level": {"tokenizer": "bpe"}, "whole words": {"tokenizer": "words"}},
    ),
    "seeds": Ablation(
        "How much is luck? The same config against itself, with other seeds.",
        {"the seeds": {}, "other seeds": {}},
        other_seeds="other seeds",
    ),
    "dropout": Ablation("Does dropout help?", _choices("dropout", 0.0, 0.1, 0.2)),
    "loss": Ablation(
        "Is the cross-entropy the negative log-likelihood of the log-softmax?",
        _choices("loss", "cross_entropy", "nll"),
    ),
    "label-smoothing": Ablation(
        "Does label smoothing help?", _choices("label_smoothing", 0.0, 0.05, 0.1)
    ),
    "temperature": Ablation(
        "Does a learned temperature help, of cosines in place of plain logits?",
        {
            "plain logits": {"normalized_output": False, "learned_temperature": True},
            "learned": {"normalized_output": True, "learned_temperature": True},
            "fixed": {"normalized_output": True, "learned_temperature": False},
        },
        also=(("learned", "fixed"),),
    ),
    "curriculum-length": _curriculum("Does it help to see short documents first?", "length"),
    "curriculum-rarity": _curriculum(
        "Does it help to see documents without rare words first?", "rarity"
    ),
    "curriculum-unigram": _curriculum(
        "Does it help to see first what a unigram model finds easy?", "unigram"
    ),
    "optimizer": Ablation(
        "Muon for the hidden matrices, or AdamW for all? Each at its own learning rate.",
        _choices("optimizer", "adamw", "muon"),
        base=TRANSFORMER,
    ),
    "scheduled-sampling": Ablation(
        "Does it help to read own guesses in training, in place of teacher forcing?",
        {
            "teacher forcing": {"scheduled_sampling": 0.0},
            "up to a tenth": {"scheduled_sampling": 0.1},
            "up to a quarter": {"scheduled_sampling": 0.25},
        },
        base={**TRANSFORMER, "optimizer": "muon"},
    ),
}


def ablation(name: str) -> Ablation:
    """The ablation of a name; SmallmError that lists all."""
    if name not in ABLATIONS:
        raise SmallmError(unknown_name("ablation", name, ABLATIONS))
    return ABLATIONS[name]


def arms_of(name: str, given: Changes) -> dict[str, Settings]:
    """The settings of each arm, from those that a user gives.

    SmallmError when one of them is what the ablation varies, or how it scores, or an arm's model
    does not have it.
    """
    chosen = ablation(name)
    if taken := sorted(chosen.varied & set(given)):
        raise SmallmError(f"{', '.join(taken)}: ablation {name} varies it; leave it out")
    for scored in sorted(set(SCORED) & set(given)):
        raise SmallmError(
            f"{scored}: an ablation scores once, at the end, on the whole selection slice; "
            "leave it out"
        )
    own = chosen.base.get("architecture")
    base = chosen.base if given.get("architecture", own) == own else {}
    flat = {"seeds": SEEDS, **overlaid(base, given), **SCORED}
    arms = {}
    for arm, changes in chosen.arms.items():
        seeds = tuple(flat["seeds"])
        if arm == chosen.other_seeds:
            seeds = tuple(seed + max(seeds) + 1 for seed in seeds)
        try:
            arms[arm] = Settings.from_flat({**flat, **changes, "seeds": seeds})
        except SmallmError as error:
            raise SmallmError(f"ablation {name}, arm {arm!r}: {error}") from None
    return arms
