"""Windows of preceding tokens: one definition for training, evaluation and generation.

A window never reaches back over the id that opens a document: places before it repeat that id.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smallm.tokens import END_ID


def windows_of(ids: Tensor, window: int) -> Tensor:
    """The window that ends at each position: (batch, length) to (batch, length, window)."""
    length = ids.shape[1]
    places = torch.arange(length, device=ids.device)
    opening = torch.where(ids == END_ID, places, -1).cummax(1).values  # (batch, length)
    offsets = torch.arange(1 - window, 1, device=ids.device)
    wanted = torch.maximum(places[:, None] + offsets, opening[:, :, None])
    found = ids.gather(1, wanted.clamp_min(0).flatten(1)).view(wanted.shape)
    return torch.where(wanted < 0, END_ID, found)
