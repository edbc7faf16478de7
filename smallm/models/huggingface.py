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
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from smallm.models import architecture
from smallm.models.spelling import SYMBOLS, Spelling, sizes_of
from smallm.models.transformer import sight_of
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

    @property
    def num_hidden_layers(self) -> int:
        """Layers of a cache: those of a transformer, and one that keeps the ids themselves."""
        return int((self.shape or {}).get("depth", 0)) + 1


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

    def _supports_default_dynamic_cache(self) -> bool:  # type: ignore[override]
        return self.reads_sequences  # for a perceptron, a window is all the past there is

    @property
    def reads_sequences(self) -> bool:
        """Whether the core reads sequences, and not one window for each logit."""
        return bool(self.core.reads_sequences)

    @property
    def reach(self) -> int:
        """Number of words or tokens that the logits depend on."""
        reach: int = self.core.reach  # type: ignore[assignment]
        return reach

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of each predicted id."""
        embedding: nn.Module = self.core.embedding  # type: ignore[assignment]
        return embedding

    def _init_weights(self, module: nn.Module) -> None:
        if module is self.core:
            module.initialize()  # type: ignore[operator]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Masked places count as the start of the text; `logits_to_keep` 0 is all positions."""
        cache = past_key_values
        if use_cache and cache is None and self.reads_sequences:
            cache = DynamicCache(config=self.config)
        keep = logits_to_keep or input_ids.shape[1]
        read = self._read_sequence if self.reads_sequences else self._read_windows
        logits, text = read(input_ids, attention_mask, cache, keep)
        if self.spelling is not None:
            logits = self.spelling.extend(logits, text)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _read_windows(
        self, ids: Tensor, mask: Tensor | None, _: Cache | None, keep: int
    ) -> tuple[Tensor, Tensor]:
        """Predictions (batch, keep, predicted ids) of the last positions, and the whole text."""
        if mask is not None:
            ids = torch.where(mask.bool(), ids, END_ID)
        first = ids.shape[1] - keep
        if self.spelling is None:
            windows = windows_of(ids, self.reach)[:, first:]
        else:
            words, places = self.spelling.collapse(ids)
            at = places[:, first:].clamp_min(0)
            windows = windows_of(words, self.reach).take_along_dim(at[..., None], 1)
        return self.core(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]), ids

    def _read_sequence(
        self, ids: Tensor, mask: Tensor | None, cache: Cache | None, keep: int
    ) -> tuple[Tensor, Tensor]:
        """The same; the ids of a text that was read before are the last layer of the cache."""
        text, present = ids, None if mask is None else mask.bool()
        if cache is not None:
            kept = ids[:, None, :, None].float()  # exact: ids are fewer than 2**24
            text = cache.update(kept, kept, self.config.num_hidden_layers - 1)[0][:, 0, :, 0].long()
        words = ids
        if self.spelling is not None:
            inside = self.spelling.inside(text)
            present = ~inside if present is None else present & ~inside
            text_words = self.spelling.words(text)
            words = text_words[:, -ids.shape[1] :]
        else:
            text_words = text
        sight = sight_of(text_words, window=self.window, new=ids.shape[1], present=present)
        return self.core(words, sight, cache, keep=keep), text

    def seen(self, ids: list[int]) -> list[int]:
        """The end of some ids that alone decides what comes after them."""
        spelling, left = self.spelling, self.reach
        if spelling is None:
            return ids[-left:]
        for place in range(len(ids) - 1, -1, -1):
            if not spelling.is_inside(ids[place]):
                if not left:
                    return ids[place + 1 :]
                left -= 1
        return ids

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **given: Any
    ) -> dict[str, Any]:
        """One row of logits is all that a step needs; windows are read without a cache."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.reads_sequences:
            inputs = super().prepare_inputs_for_generation(**inputs, **given)  # type: ignore[misc]
        return {**inputs, "logits_to_keep": 1}


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
