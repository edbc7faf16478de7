"""Muon for many small matrices: those of one shape take their step in the same few products.

What each matrix does is what `torch.optim.Muon` does (Jordan et al. 2024), which takes them one
after the other and no stacked ones: the time of a small model's step is then mostly the calls'.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
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
            for weight, update in self._updates(weights):
                outputs, inputs = weight.shape[-2:]
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * max(1, outputs / inputs) ** 0.5)

    def _updates(self, weights: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What is to be taken from each weight, with singular values near 1."""
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight in weights:
            towards = self._towards(weight).bfloat16()
            wide = towards.mT if _is_tall(weight) else towards
            matrices = wide.reshape(-1, *wide.shape[-2:])
            alike[matrices.shape[1:]].append((weight, matrices))
        for pairs in alike.values():
            together = orthogonal(torch.cat([matrices for _, matrices in pairs]))
            parts = together.split([len(matrices) for _, matrices in pairs])
            for (weight, _), found in zip(pairs, parts, strict=True):
                yield weight, (found.mT if _is_tall(weight) else found).reshape(weight.shape)

    def _towards(self, weight: Tensor) -> Tensor:
        """The gradient with momentum."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight.grad)
        kept: Tensor = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(kept, MOMENTUM)


def _is_tall(weight: Tensor) -> bool:
    return weight.shape[-2] > weight.shape[-1]


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
