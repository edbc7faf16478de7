"""The thin layer that makes a SmaLLM a Hugging Face model.

Importing this module registers it with transformers' Auto classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from smallm.models import architecture
from smallm.models.spelling import SYMBOLS, Spelling, sizes_of
from smallm.models.windows import windows_of
from smallm.models.word_tokenizer import SmaLLMWordTokenizer
from smallm.settings import ModelSettings
from smallm.tokens import END_ID, Tokenizer, WordTokenizer


class SmaLLMConfig(PreTrainedConfig):
    """Shape of a SmaLLM; a model of whole words has 512 byte ids after those it predicts."""

    model_type = "smallm"

    vocab_size: int = 300
    shape: dict[str, Any] | None = None
    spelling_sizes: list[tuple[str, int]] | None = None  # in the order of the weights
    bos_token_id: int | None = END_ID
    eos_token_id: int | list[int] | None = END_ID
    pad_token_id: int | None = END_ID
    tie_word_embeddings: bool = False  # the module shares the matrix itself


class SmaLLMForCausalLM(PreTrainedModel, GenerationMixin):
    """Next-token logits (batch, length, vocab_size) from ids (batch, length)."""

    config_class = SmaLLMConfig

    def __init__(self, config: SmaLLMConfig) -> None:
        super().__init__(config)
        settings = ModelSettings(**(config.shape or {}))
        predicted = config.vocab_size - (SYMBOLS if config.spelling_sizes else 0)
        self.window = settings.window
        self.core: nn.Module = architecture(settings.architecture)(settings, predicted)
        self.spelling = (
            Spelling(config.spelling_sizes, predicted) if config.spelling_sizes else None
        )
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a window is all the past there is

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.core:
            module.initialize()  # type: ignore[operator]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutput:
        """Masked places count as the start of the text; `logits_to_keep` 0 is all positions."""
        if attention_mask is not None:
            input_ids = torch.where(attention_mask.bool(), input_ids, END_ID)
        first = input_ids.shape[1] - logits_to_keep if logits_to_keep else 0
        if self.spelling is None:
            windows = windows_of(input_ids, self.window)[:, first:]
        else:
            words, places = self.spelling.collapse(input_ids)
            at = places[:, first:].clamp_min(0)
            windows = windows_of(words, self.window).take_along_dim(at[..., None], 1)
        logits = self.core(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        if self.spelling is not None:
            logits = self.spelling.extend(logits, input_ids)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    def seen(self, ids: list[int]) -> list[int]:
        """The end of some ids that alone decides what comes after them."""
        if self.spelling is None:
            return ids[-self.window :]
        left = self.window + 1
        for place in range(len(ids) - 1, -1, -1):
            left -= not self.spelling.is_inside(ids[place])
            if not left:
                return ids[place + 1 :]
        return ids

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """No cache: the last window is all that a step needs to compute."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}


def wrap(core: nn.Module, settings: ModelSettings, tokenizer: Tokenizer) -> SmaLLMForCausalLM:
    """A Hugging Face model around trained weights and the tokenizer's spelling model, if any."""
    spelling = tokenizer.spelling if isinstance(tokenizer, WordTokenizer) else None
    config = SmaLLMConfig(
        vocab_size=tokenizer.vocabulary + (SYMBOLS if spelling else 0),
        shape=settings.model_dump(),
        spelling_sizes=sizes_of(spelling) if spelling else None,
        architectures=["SmaLLMForCausalLM"],
    )
    model = SmaLLMForCausalLM(config)
    model.core.load_state_dict(core.state_dict())
    if model.spelling is not None and spelling is not None:
        model.spelling.fill(spelling)
    model.eval()  # type: ignore[no-untyped-call]
    return model


AutoConfig.register(SmaLLMConfig.model_type, SmaLLMConfig, exist_ok=True)
AutoModelForCausalLM.register(SmaLLMConfig, SmaLLMForCausalLM, exist_ok=True)
AutoTokenizer.register(SmaLLMConfig, slow_tokenizer_class=SmaLLMWordTokenizer, exist_ok=True)
