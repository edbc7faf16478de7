"""Watches the activations of a model while it reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smallm.activity import FLAT, SAMPLE, STILL, Activity, LayerActivity
from smallm.errors import SmallmError
from smallm.models.activations import Activation

Kinds = tuple[type[nn.Module], ...]
PIECE = 256  # tokens of a text that are read at once


class _Watch:
    """Sums up the first outputs of one activation, without those of what stands `before`."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.places = 0
        self.flat = 0
        self.total = 0.0
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        left = SAMPLE - self.places
        if left <= 0:
            return
        units = output.shape[-1]
        entered, found = (
            each.detach()[..., self.before :, :].reshape(-1, units)[:left].float()
            for each in (inputs[0], output)
        )  # (places, units)
        self.places += len(found)
        self.total += float(found.sum())
        self.flat += int((_slope(module, entered).abs() < FLAT).sum())
        low, high = found.amin(0), found.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def result(self) -> LayerActivity:
        assert self.low is not None
        assert self.high is not None
        outputs = self.places * len(self.low)
        still = (self.high - self.low) < STILL
        dead = float(still.float().mean())
        return LayerActivity(len(self.low), dead, self.flat / outputs, self.total / outputs)


def _slope(module: nn.Module, inputs: Tensor) -> Tensor:
    """The derivative of an activation at its inputs."""
    with torch.inference_mode(False), torch.enable_grad():
        given = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(module.forward(given).sum(), given)
    return slope


class Watched:
    """The activations of a model that are looked at."""

    def __init__(self, model: nn.Module, kinds: Kinds, before: int) -> None:
        self._watches = []
        self._hooks = []
        for each in model.modules():
            if isinstance(each, kinds):
                self._watches.append(_Watch(before))
                self._hooks.append(each.register_forward_hook(self._watches[-1]))

    def activity(self) -> Activity | None:
        """What was seen so far, in the order of the layers; None where nothing was."""
        found = tuple(each.result() for each in self._watches if each.places)
        return Activity(found) if found else None

    def end(self) -> None:
        """Looks no more."""
        for hook in self._hooks:
            hook.remove()


@contextmanager
def watched(
    model: nn.Module, *, kinds: Kinds = (Activation,), before: int = 0
) -> Iterator[Watched]:
    """Looks at what the activations of a model give to the first SAMPLE places of a text.

    Of each sequence the model reads, so many places stand `before` the text.
    """
    found = Watched(model, kinds, before)
    try:
        yield found
    finally:
        found.end()


def activity_on(predictor: Any, text: str) -> Activity:
    """The hidden units of a model, also a pretrained one, on a text; SmallmError without any."""
    from transformers.activations import ACT2CLS

    known: list[Any] = list(ACT2CLS.values())
    pretrained = [each[0] if isinstance(each, tuple) else each for each in known]
    ids = predictor.tokenizer(text)["input_ids"][:SAMPLE]
    if not ids:
        raise SmallmError(f"{predictor.name}: the text is empty, no hidden unit reads anything")
    size = min(predictor.context or PIECE, PIECE)
    with watched(predictor.model, kinds=(Activation, *pretrained)) as units, torch.no_grad():
        for start in range(0, len(ids), size):
            piece = torch.tensor([ids[start : start + size]], device=predictor.device)
            predictor.model(input_ids=piece)
    if (found := units.activity()) is None:
        raise SmallmError(f"{predictor.name}: has no activation functions that can be watched")
    return found
