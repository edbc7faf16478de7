"""Causal language models: a pretrained baseline or a SmaLLM, scored and continued alike."""

from __future__ import annotations

import codecs
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smallm.errors import DamagedModelError, SmallmError
from smallm.models.huggingface import SmaLLMForCausalLM
from smallm.predictors import Decoding, Kind, NextWords
from smallm.predictors.continuations import Continuations, Step
from smallm.predictors.kept_rows import can_keep
from smallm.predictors.token_bytes import token_bytes
from smallm.predictors.windows import Window, overlapping_windows, rolling_windows
from smallm.scoring import TOP, Scores, rank
from smallm.spool import count_words
from smallm.tokens import FINAL

BATCH_TOKENS = 2048  # inputs of one forward pass, padding included
ENOUGH_TOKENS = 256  # fewer in one pass use the processor badly: rather pad
PADDING = 1.25  # longest input of a batch by its shortest
HEAD_LOGITS = 2**23  # logits that the output layer makes at once: the layer is worth reading
BATCH_LOGITS = 2**19  # logits that are looked at at once, in fp32: they stay in the cache
DEFAULT_CONTEXT = 2048  # where a model names no limit; lm-evaluation-harness takes the same
SMALLM_PIECE = 512  # ids that a SmaLLM predicts in one row
END_NAMES = ("<|endoftext|>", "</s>")  # end a text in models whose chats end with another token
UNLIMITED = 10**12  # tokenizers without a limit name more
CONTEXT_NAMES = ("n_positions", "max_position_embeddings", "n_ctx")


@dataclass(frozen=True)
class Batch:
    """Predictions of some tokens: their documents, the logits, the ids that really follow."""

    document: NDArray[np.int64]
    """(n,), places in the list of texts."""
    logits: Tensor
    """(n, ids), fp32."""
    gold: Tensor
    """(n,), int64."""


@dataclass(frozen=True)
class Inputs:
    """One forward pass, padded on the right, where no causal model looks."""

    inputs: Tensor
    """(rows, length), int64."""
    predicted: Tensor
    """(rows, length), bool: the places after which a gold id follows."""
    document: NDArray[np.int64]
    """(predicted,), in the order of `predicted`."""
    gold: Tensor
    """(predicted,), int64."""


def text_decoder() -> codecs.IncrementalDecoder:
    """Makes text of bytes that come in pieces."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


class Causal:
    """A transformers causal language model with its tokenizer."""

    kind: Kind = "causal"

    def __init__(self, name: str, model: Any, tokenizer: Any, *, device: str = "cpu") -> None:
        self.name = name
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.parameters = sum(weight.numel() for weight in model.parameters())
        self.context = None if self._is_smallm else _context(model.config, tokenizer)
        first = tokenizer.bos_token_id
        first = tokenizer.eos_token_id if first is None else first
        if first is None:
            raise SmallmError(f"{name}: its tokenizer has no token that begins or ends a text")
        self._rows: int = model.config.get_text_config().vocab_size
        ids = max(tokenizer.get_vocab().values()) + 1
        if ids > self._rows:
            raise SmallmError(f"{name}: its tokenizer has {ids} ids, its model {self._rows}")
        self.opening: list[int] = [first]

    @property
    def _is_smallm(self) -> bool:
        return isinstance(self.model, SmaLLMForCausalLM)

    @cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes that each id stands for; nothing for special tokens."""
        return token_bytes(self.tokenizer, self._rows)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a text."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        ends = {self.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
        known = self.tokenizer.get_vocab()
        special = set(self.tokenizer.all_special_tokens)
        ends |= {known[name] for name in END_NAMES if name in special}
        return frozenset(ends - {None})

    def encode(self, text: str) -> list[int]:
        """The ids of a text; names of special tokens in it are text."""
        return self._encoded([text])[0]

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        found: list[list[int]] = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return found

    def logits(self, texts: Sequence[str]) -> Iterator[Batch]:
        """Predictions of every token of every text, each once, in any order."""
        for inputs in batches(self.windows(texts)):
            yield from self._predicted(inputs)

    def windows(self, texts: Sequence[str]) -> list[tuple[int, Window]]:
        """What the model reads to predict every token once, with the places of the texts."""
        return [
            (document, window)
            for document, ids in enumerate(self._encoded(texts))
            for window in self._windows(ids)
        ]

    def _windows(self, ids: list[int]) -> Iterator[Window]:
        (opening,) = self.opening
        if self.context is not None:
            return rolling_windows(ids, opening=opening, size=self.context)
        ends_word = np.ones(len(ids), dtype=bool)
        if self.model.spelling is not None:
            symbols = np.asarray(ids, dtype=np.int64) - self.model.spelling.vocabulary
            ends_word = (symbols < 0) | (symbols >= FINAL)
        return overlapping_windows(
            ids,
            opening=opening,
            size=max(SMALLM_PIECE, self.model.reach),
            sight=self.model.reach,
            ends_word=ends_word,
        )

    @torch.no_grad()
    def _predicted(self, batch: Inputs) -> Iterator[Batch]:
        """Runs one batch and cuts its predictions into small pieces."""
        gold = batch.gold.to(self.device)
        hidden = self._hidden(batch.inputs.to(self.device))[batch.predicted.to(self.device)]
        head = self._head or (lambda logits: logits)
        many, few = max(1, HEAD_LOGITS // self._rows), max(1, BATCH_LOGITS // self._rows)
        for first in range(0, len(gold), many):
            logits = head(hidden[first : first + many])
            for start in range(0, len(logits), few):
                rows = logits[start : start + few].float()
                part = slice(first + start, first + start + len(rows))
                yield Batch(batch.document[part], rows, gold[part])

    def _hidden(self, ids: Tensor) -> Tensor:
        """What the output layer reads, or the logits where there is nothing before them."""
        if self._head is None:
            return self.model(input_ids=ids).logits  # type: ignore[no-any-return]
        return self.model.base_model(input_ids=ids, use_cache=False)[0]  # type: ignore[no-any-return]

    @cached_property
    def _head(self) -> Callable[[Tensor], Tensor] | None:
        """The output layer, if it alone makes the logits: then only needed ones are computed.

        Some models scale or cap their logits after it; a few tokens tell.
        """
        head = self.model.get_output_embeddings()
        if self._is_smallm or head is None or self.model.base_model is self.model:
            return None
        ids = torch.tensor([self.opening * 3], device=self.device)
        whole = self.model(input_ids=ids).logits
        parts = head(self.model.base_model(input_ids=ids, use_cache=False)[0])
        return head if torch.equal(whole, parts) else None

    def score(
        self, texts: Sequence[str], *, temperatures: Sequence[float] = (1.0,)
    ) -> list[Scores]:
        """Scores of the texts at each temperature, one row a text, tokens being the model's ids.

        Raises SmallmError where the model gives a token no finite log-likelihood.
        """
        tables = [_Table(self.name, temperature) for temperature in temperatures]
        documents: list[NDArray[np.int64]] = []
        hits: list[NDArray[np.bool_]] = []
        for batch in self.logits(texts):
            documents.append(batch.document)
            hits.append(rank(batch.logits, batch.gold)[:, None] < np.array(TOP))
            for table in tables:
                table.add(batch.logits, batch.gold)
        document = np.concatenate([np.zeros(0, np.int64), *documents])
        hit = np.concatenate([np.zeros((0, len(TOP)), bool), *hits])
        return [table.scores(texts, document, hit) for table in tables]

    def next_words(self, prompt: str, *, k: int) -> NextWords:
        """The k most probable next words; SmallmError for a prompt that ends in white space."""
        from smallm.predictors.expansion import next_words

        return next_words(self, prompt, k=k)

    def stream(self, prompt: str, decoding: Decoding) -> Iterator[str]:
        """Yields the continuation in pieces of whole characters, until the text ends."""
        return self._pieces(self.steps(self.opened(prompt), decoding))

    def opened(self, prompt: str) -> list[int]:
        """The ids that the model reads for a prompt; SmallmError where they are too many."""
        ids = [*self.opening, *self.encode(prompt)]
        if self.context is not None and len(ids) > self.context:
            raise SmallmError(
                f"prompt: is {len(ids)} tokens long, {self.name} sees at most {self.context}"
            )
        return ids

    def _pieces(self, steps: Iterator[Step]) -> Iterator[str]:
        decoder = text_decoder()
        for step in steps:
            if piece := decoder.decode(self.token_bytes[step.chosen]):
                yield piece

    def steps(self, ids: Sequence[int], decoding: Decoding) -> Iterator[Step]:
        """Yields each id that is chosen after `opened` ids, until one ends the text."""
        under_way = Continuations(self)
        under_way.add(ids, [decoding], room=self.room(ids))
        while under_way.busy:
            for _, step in under_way.step():
                if step is not None:
                    yield step

    def room(self, ids: Sequence[int]) -> int:
        """How many ids may follow: all but the last of them are read again."""
        return UNLIMITED if self.context is None else self.context - len(ids) + 1

    @torch.no_grad()
    def logits_after_each(self, ids: Sequence[int]) -> Tensor:
        """Logits (len(ids), ids) after each of the ids, which begin with the opening."""
        return self.model(input_ids=torch.tensor([list(ids)], device=self.device)).logits[0].float()  # type: ignore[no-any-return]

    @cached_property
    def keeps(self) -> bool:
        """Whether what was read can be kept as kept_rows keeps it."""
        return can_keep(self.model)

    @cached_property
    def forward_options(self) -> frozenset[str]:
        """Names of what the model's forward takes."""
        return frozenset(inspect.signature(self.model.forward).parameters)


class _Table:
    """Sums of one temperature, while batches arrive in any order."""

    def __init__(self, name: str, temperature: float) -> None:
        self.name = name
        self.temperature = temperature
        self.nll: list[NDArray[np.float64]] = []
        self.confidence: list[NDArray[np.float32]] = []

    def add(self, logits: Tensor, gold: Tensor) -> None:
        """Takes in the negative log-likelihood and the confidence of a batch."""
        scaled = logits if self.temperature == 1 else logits / self.temperature
        scores = scaled.log_softmax(1)
        nll = -scores.gather(1, gold[:, None])[:, 0].double().cpu().numpy()
        if not np.isfinite(nll).all():
            raise DamagedModelError(
                f"{self.name}: gives a token of the texts a log-likelihood of "
                f"{-nll[~np.isfinite(nll)][0]}: its weights may be damaged"
            )
        self.nll.append(nll)
        self.confidence.append(scores.amax(1).exp().cpu().numpy())

    def scores(
        self, texts: Sequence[str], document: NDArray[np.int64], hits: NDArray[np.bool_]
    ) -> Scores:
        """One row a text; single tokens ordered document after document."""
        nll = np.concatenate([np.zeros(0), *self.nll])
        confidence = np.concatenate([np.zeros(0, np.float32), *self.confidence])
        order = np.argsort(document, kind="stable")
        columns = [np.bincount(document, weights=hit, minlength=len(texts)) for hit in hits.T]
        return Scores(
            nll=np.bincount(document, weights=nll, minlength=len(texts)).astype(np.float64),
            bytes=np.array([len(text.encode()) for text in texts], np.int64),
            words=np.array([count_words(text) for text in texts], np.int64),
            tokens=np.bincount(document, minlength=len(texts)),
            hits=np.stack(columns, axis=1).astype(np.int64),
            confidence=confidence[order],
            correct=hits[order, 0],
        )


def batches(windows: Sequence[tuple[int, Window]]) -> Iterator[Inputs]:
    """Batches of windows of about the same length, at most BATCH_TOKENS with their padding."""
    ordered = sorted(windows, key=lambda each: len(each[1].inputs))
    start = 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or _is_full(ordered[start:end], len(ordered[end][1].inputs)):
            yield _padded(ordered[start:end])
            start = end


def _is_full(rows: Sequence[tuple[int, Window]], longer: int) -> bool:
    """Whether a window of that length should open a new batch, rather than lengthen this one."""
    shortest, longest = (len(rows[at][1].inputs) for at in (0, -1))
    wasteful = longer > PADDING * shortest and len(rows) * longest >= ENOUGH_TOKENS
    return wasteful or (len(rows) + 1) * longer > BATCH_TOKENS


def _padded(rows: Sequence[tuple[int, Window]]) -> Inputs:
    length = max(len(window.inputs) for _, window in rows)
    inputs = torch.zeros(len(rows), length, dtype=torch.int64)
    predicted = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (_, window) in enumerate(rows):
        end = len(window.inputs)
        inputs[row, :end] = torch.tensor(window.inputs)
        predicted[row, end - len(window.gold) : end] = True
    return Inputs(
        inputs=inputs,
        predicted=predicted,
        document=np.repeat([each for each, _ in rows], [len(w.gold) for _, w in rows]),
        gold=torch.tensor([i for _, window in rows for i in window.gold]),
    )


def _context(config: Any, tokenizer: Any) -> int:
    """The longest input of a model, found as lm-evaluation-harness finds it."""
    text = config.get_text_config()
    for name in CONTEXT_NAMES:
        if getattr(text, name, None) is not None:
            return int(getattr(text, name))
    known = tokenizer.model_max_length
    return int(known) if known < UNLIMITED else DEFAULT_CONTEXT
