"""What each head of a model looks at: the weights of its attention, as it computes them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from smallm.errors import SmallmError

MOST_TOKENS = 48  # of a prompt: more labels cannot be read


@dataclass(frozen=True)
class AttentionMaps:
    """The weights of all heads for one prompt."""

    tokens: Sequence[str]
    weights: Sequence[Tensor]
    """For each layer (heads, tokens, tokens), fp32: rows look at columns and sum to 1."""


class _Watched(TorchFunctionMode):
    """Notes the weights of every attention that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            self.weights.append(_weights(*args, **kwargs))
        return func(*args, **kwargs)


def _weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Softmax of scaled products (1, heads, tokens, width), as torch documents its attention."""
    del value, dropout_p
    if enable_gqa:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    products = query[0].float() @ key[0].float().transpose(1, 2) * scale
    if is_causal:
        attn_mask = torch.ones_like(products[0], dtype=torch.bool).tril()
    if attn_mask is not None:
        mask = attn_mask[0] if attn_mask.ndim == 4 else attn_mask
        seen = mask.dtype == torch.bool
        products = products.masked_fill(~mask, -torch.inf) if seen else products + mask
    return products.softmax(-1).cpu()


@torch.inference_mode()
def attention_maps(predictor: Any, prompt: str) -> AttentionMaps:
    """All attention of a model over a prompt; SmallmError where it has none."""
    if not prompt.strip():
        raise SmallmError("the prompt is empty: it needs at least one word")
    if predictor.kind == "masked":
        ids = predictor.tokenizer(prompt)["input_ids"]
    else:
        ids = [*predictor.opening, *predictor.encode(prompt)]
    if len(ids) > MOST_TOKENS:
        raise SmallmError(
            f"the prompt has {len(ids)} tokens: a picture that can be read has at most "
            f"{MOST_TOKENS}"
        )
    asked = torch.tensor([ids], device=predictor.device)
    with _Watched() as watched:
        predictor.model(input_ids=asked)
    weights = watched.weights or _told(predictor.model, asked)
    if not weights:
        raise SmallmError(f"{predictor.name}: has no attention to draw: it is no transformer")
    return AttentionMaps(_labels(predictor.tokenizer, ids), weights)


def _told(model: Any, ids: Tensor) -> list[Tensor]:
    """The weights that a model computes by itself and tells of."""
    found = getattr(model(input_ids=ids, output_attentions=True), "attentions", None)
    return [each[0].float().cpu() for each in found or ()]


def _labels(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    texts = [tokenizer.decode([number]) for number in ids]
    return [text.replace("\n", "⏎").strip() or "␣" for text in texts]
