"""Muon for many small matrices: those of one shape take their step in the same few products.

What each matrix does is what `torch.optim.Muon` does (Jordan et al. 2024), which takes them one
after the other and no stacked ones: the time of a small model's step is then mostly the calls'.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x³ and x⁵: singular values go near 1 in 5 turns
TURNS = 5
SMALLEST_NORM = 1e-7


class Muon(Optimizer):
    """Moves weights (..., outputs, inputs), each matrix by itself, with Nesterov's momentum.

    A step at learning rate r has a spectral norm near r * sqrt(max(1, outputs / inputs)).
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, lr: float = 0.02) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves all weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for weight, update in zip(weights, self._updates(weights), strict=True):
                outputs, inputs = weight.shape[-2:]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * max(1, outputs / inputs) ** 0.5)

    def _updates(self, weights: list[Tensor]) -> list[Tensor]:
        """What is to be taken from each weight, with singular values near 1."""
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        wide = []
        for place, weight in enumerate(weights):
            towards = self._towards(weight).bfloat16()
            tall = towards.shape[-2] > towards.shape[-1]
            wide.append((towards.mT if tall else towards).flatten(0, -3))
            alike[wide[-1].shape[-2], wide[-1].shape[-1]].append(place)
        found: dict[int, Tensor] = {}
        for places in alike.values():
            together = orthogonal(torch.cat([wide[place] for place in places]))
            sizes = [len(wide[place]) for place in places]
            found |= dict(zip(places, together.split(sizes), strict=True))
        return [_shaped_like(weight, found[place]) for place, weight in enumerate(weights)]

    def _towards(self, weight: Tensor) -> Tensor:
        """The gradient with momentum, (..., outputs, inputs) with at least three dimensions."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight.grad)
        kept: Tensor = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
        towards = weight.grad.lerp(kept, MOMENTUM)
        return towards[None] if towards.ndim == 2 else towards


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, rows, columns) in bf16 with their singular values moved near 1.

    Newton-Schulz iterations by a polynomial that rises steeply at zero; no more rows than columns.
    """
    a, b, c = COEFFICIENTS
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    x: Tensor = matrices / norms.clamp_min(SMALLEST_NORM)
    for _ in range(TURNS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _shaped_like(weight: Tensor, found: Tensor) -> Tensor:
    turned = found.mT if found.shape[-2:] != weight.shape[-2:] else found
    return turned.reshape(weight.shape)
