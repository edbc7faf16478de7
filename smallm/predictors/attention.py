"""Attention of one new token over what was read, for models whose heads share keys and values.

On a processor transformers 5.23 hands torch such heads one by one unless there is a mask; with one
they are the rows of one product, 4 to 8 times faster in bf16, with the same result. So there is
one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_together"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As transformers' own; queries (rows, heads, columns, width)."""
    if attention_mask is None and query.shape[2] == 1 and query.device.type == "cpu":
        attention_mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def attend_together(model: Any) -> None:
    """Has a model of transformers use this attention in place of torch's alone."""
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
