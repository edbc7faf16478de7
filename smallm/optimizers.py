"""Optimizers of stacked or single weights: AdamW for all, or Muon for the hidden matrices.

Learning rates keep their meaning when a model's width changes. A transformer follows the maximal
update parametrization (Yang et al. 2022, arXiv 2203.03466): AdamW's steps in its hidden matrices
shrink by BASE_WIDTH / width, and its logits are scaled by as much in the model; embeddings learn
at the given rate. Muon (Jordan et al. 2024) takes steps of equal spectral norm times
sqrt(max(1, outputs / inputs)), which no width changes (Bernstein 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from smallm.errors import SmallmError
from smallm.models.transformer import BASE_WIDTH
from smallm.muon import Muon
from smallm.settings import Settings

TABLES = ("embedding", "bigrams", "output")  # a row for each id: not matrices of a hidden layer
HIDDEN = ("layers", "gates", "projection")  # matrices of hidden layers, with vectors of their own
VECTORS = ("bias", "log_scale")
PEAK = "peak"  # of a group's learning rate


def optimizers_of(
    settings: Settings, weights: Mapping[str, Tensor], *, stacked: bool
) -> list[Optimizer]:
    """The optimizers of named weights, which replicates may share along a first dimension."""
    training = settings.training
    dimensions = 2 + stacked
    if unknown := sorted({name.split(".")[0] for name in weights} - {*TABLES, *HIDDEN, *VECTORS}):
        raise SmallmError(
            f"{', '.join(unknown)}: weights of no group that an optimizer knows; groups are "
            f"{', '.join((*TABLES, *HIDDEN, *VECTORS))}"
        )
    hidden = [
        weight
        for name, weight in weights.items()
        if weight.ndim == dimensions and name.split(".")[0] in HIDDEN
    ]
    chosen = {id(weight) for weight in hidden}
    tables = [w for w in weights.values() if w.ndim == dimensions and id(w) not in chosen]
    vectors = [w for w in weights.values() if w.ndim < dimensions]
    rate, decay = training.learning_rate, training.weight_decay
    groups = [_group(tables, rate, decay), _group(vectors, rate, 0.0)]
    if training.optimizer == "muon":
        muon = Muon([_group(hidden, training.muon_learning_rate, decay)])
        return [muon, torch.optim.AdamW(_filled(groups), fused=True)]
    if settings.model.architecture == "transformer":
        rate *= BASE_WIDTH / settings.model.embedding
    return [torch.optim.AdamW(_filled([_group(hidden, rate, decay), *groups]), fused=True)]


def _group(weights: list[Tensor], rate: float, decay: float) -> dict[str, Any]:
    return {"params": weights, PEAK: rate, "weight_decay": decay}


def _filled(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [group for group in groups if group["params"]]


def take_step(optimizers: Iterable[Optimizer], factor: float, scaler: GradScaler) -> None:
    """One step of all at a factor of their peak learning rates; none where fp16 overflowed."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group[PEAK] * factor
        scaler.step(optimizer)
    scaler.update()
