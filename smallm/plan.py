"""The plan of a search before it runs: how much it will train, where, and about how long."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smallm.settings import Settings
from smallm.space import Space
from smallm.tape import Slice
from smallm.token_tape import TokenTape
from smallm.training import Training

NOT_SHARED = (
    "not all machines share the folder of the search: the corpus is sent to the others, and a "
    "trial that fails there starts again instead of resuming"
)
MAY_NOT_SHARE = (
    "machines that join later are sent the corpus; if they do not share the folder of the search, "
    "a trial that fails there starts again instead of resuming"
)
CALIBRATION_SECONDS = 2.0  # of training that give the speed to about a tenth


@dataclass(frozen=True)
class Speed:
    """How fast a trial of the default config is, all its replicates together."""

    tokens_per_second: float
    scoring_seconds: float
    """Of one evaluation."""


def calibrate(
    settings: Settings, tokens: TokenTape, selection: Slice, *, threads: int, device: str
) -> Speed:
    """Trains on a growing part of the budget until that takes long enough to measure."""
    budget = settings.training.batch_size * 8
    seeds = len(settings.training.seeds)
    while True:
        budget = min(budget * 4, settings.training.training_tokens)
        short = settings.replace(training_tokens=budget, evaluate_at=[1.0])
        training = Training(short, tokens, selection=selection, threads=threads, device=device)
        *_, last = training
        trained = last.tokens * seeds / last.tokens_per_second
        if trained > CALIBRATION_SECONDS or budget == settings.training.training_tokens:
            return Speed(last.tokens_per_second, max(last.seconds - trained, 0.0))


def trials_at_rungs(space: Space) -> list[float]:
    """How many trials each rung is expected to see: successive halving stops the others."""
    rungs = len(space.config(space.default_point()).training.evaluate_at)
    return [max(1.0, space.trials / space.reduction**rung) for rung in range(rungs)]


@dataclass(frozen=True)
class Plan:
    """The work of a search; tokens count every replicate."""

    space: Space
    speed: Speed
    concurrent: int
    """Trials at once."""
    heldout_bytes: int
    """Of the selection and the final slice, which every confirmation scores."""

    @property
    def settings(self) -> Settings:
        """The default config, which stands for all."""
        return self.space.config(self.space.default_point())

    @property
    def search_tokens(self) -> float:
        """Of all trials, as successive halving is expected to stop them."""
        shares = self.settings.training.evaluate_at
        parts = [share - before for share, before in zip(shares, [0, *shares], strict=False)]
        reached = trials_at_rungs(self.space)
        return self._trial_tokens * sum(n * part for n, part in zip(reached, parts, strict=True))

    @property
    def most_search_tokens(self) -> float:
        """Of all trials, if none is stopped."""
        return self._trial_tokens * self.space.trials

    @property
    def models(self) -> int:
        """That the confirmation trains at most: the best and the default, with fresh seeds."""
        return (self.space.confirmed + 1) * len(self.space.confirmation_seeds)

    @property
    def confirmation_tokens(self) -> int:
        """Of all those models."""
        return self.models * self.settings.training.training_tokens

    @property
    def search_seconds(self) -> float:
        """With all slots busy."""
        scored = sum(trials_at_rungs(self.space)) * self.speed.scoring_seconds
        work = self.search_tokens / self.speed.tokens_per_second + scored
        return work / min(self.concurrent, self.space.trials)

    @property
    def confirmation_seconds(self) -> float:
        """The models in rounds of as many as run at once."""
        training = self.settings.training
        evaluated = min(training.evaluation_bytes or math.inf, self.heldout_bytes / 2)
        scored = self.speed.scoring_seconds / len(training.seeds)
        scored *= self.heldout_bytes / evaluated
        once = training.training_tokens / self.speed.tokens_per_second + scored
        return math.ceil(self.models / self.concurrent) * once

    @property
    def _trial_tokens(self) -> int:
        training = self.settings.training
        return training.training_tokens * len(training.seeds)

    def lines(self, resources: Mapping[str, float], machines: Sequence[str]) -> Iterator[str]:
        """The plan in sentences; `resources` are those of one trial, `machines` addresses."""
        space, budget = self.space, self.settings.training.training_tokens
        yield (
            f"search: {space.trials} trials of {len(space.seeds)} seeds, up to {budget:,} tokens a "
            f"seed; about {self.search_tokens / 1e6:,.1f} M tokens in all, "
            f"{self.most_search_tokens / 1e6:,.1f} M if no trial were stopped"
        )
        yield (
            f"confirmation: up to {self.models} models with fresh seeds, "
            f"{self.confirmation_tokens / 1e6:,.1f} M tokens"
        )
        each = " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
        where = f"{len(machines)} machine{'' if len(machines) == 1 else 's'}"
        yield (
            f"each trial takes {each}; {self.concurrent} run at once on {where} "
            f"({', '.join(machines)})"
        )
        yield (
            f"measured on the default config: {self.speed.tokens_per_second:,.0f} tokens per "
            f"second and trial, {self.speed.scoring_seconds:.1f} s for a scoring"
        )
        yield (
            f"time: about {duration(self.search_seconds)} for the search and "
            f"{duration(self.confirmation_seconds)} for the confirmation; starting processes and "
            "the comparison with pretrained models come on top"
        )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def places(home: Path, uri: str, *, storage: str | None, sharing: str) -> Iterator[str]:
    """Where things will be stored, in sentences; `sharing` says what machines do not share."""
    yield f"corpus, searches and champion: {home}"
    if storage:
        yield f"all of them and the checkpoints of trials: {storage}, which all machines reach"
    yield f"runs and registered models: MLflow at {uri}"
    if sharing:
        yield sharing
