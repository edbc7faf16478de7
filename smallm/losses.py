"""Losses of the next token that a model may be trained on; it is always scored by nats alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from smallm.settings import TrainingSettings

Loss = Callable[[Tensor, Tensor], Tensor]
"""Nats (n,) of logits (n, ids) and targets (n,)."""


def loss_of(training: TrainingSettings) -> Loss:
    """The loss that some settings train on."""
    if training.loss == "nll":
        return negative_log_likelihood
    return partial(F.cross_entropy, reduction="none", label_smoothing=training.label_smoothing)


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats (n,) by way of the log-softmax, in fp32."""
    return F.nll_loss(F.log_softmax(logits.float(), dim=-1), targets, reduction="none")
