"""Scheduled sampling: a model in training reads some of its own guesses (arXiv 1506.03099).

A transformer guesses all tokens of a sequence in one pass over the true ones and then trains on a
mixture, as Mihaylova and Martins do (2019, arXiv 1906.07651). The targets stay the true tokens. As
an objective it is improper: its optimum is not the true distribution (Huszár 2015, arXiv
1511.05101), so it is off by default and held against teacher forcing by `smallm ablate`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smallm.tokens import END_ID


@torch.no_grad()
def with_guesses(core: nn.Module, inputs: Tensor, share: float) -> Tensor:
    """Inputs (b, t) in which about so large a share are drawn from what the model gives for them.

    The first of a sequence and the ids that open documents stay, and none is added.
    """
    # Of a model that diverges they are no numbers: its loss tells it, not an error here.
    probabilities = core(inputs).float().softmax(-1).nan_to_num(0.0).clamp_min(1e-9)
    drawn = torch.multinomial(probabilities.flatten(0, 1), 1).view_as(inputs)
    guesses = torch.cat([inputs[:, :1], drawn[:, :-1]], 1)
    taken = torch.rand(inputs.shape, device=inputs.device) < share
    taken &= (inputs != END_ID) & (guesses != END_ID)
    return torch.where(taken, guesses, inputs)
