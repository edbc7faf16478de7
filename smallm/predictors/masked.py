"""Masked models such as ALBERT and BERT: pseudo-log-likelihoods and the word behind a prompt.

A masked model predicts a token from both sides. Products of such predictions are no probability of
the text, so it has no bits per byte and no perplexity; its figures stand in a table of their own.
The pseudo-log-likelihood of a text (Salazar et al. 2020) is taken in the form PLL-word-l2r (Kauf
and Ivanova 2023): a token is predicted with itself and the later tokens of its word masked, or the
rest of a rare word would give its beginning away. What a word is here, the tokenizer decides (its
`word_ids`): for BERT a sign is a word of its own, for ALBERT it belongs to the word before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from smallm.errors import SmallmError
from smallm.predictors import Decoding, Kind, NextWord, NextWords
from smallm.spool import count_words

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Encoded = list[tuple[list[int], list[int]]]  # for each text: ids, word ids

TOKENS_AT_ONCE = 2048  # more is slower on a CPU
NO_DISTRIBUTION = "is a masked model and defines no distribution over texts"
PROBE = "a"  # stands before a piece to see whether the piece takes a space before it


@dataclass(frozen=True)
class PseudoScores:
    """Per text: pseudo-log-likelihood in nats and sizes; comparable only within one tokenizer.

    Of a token that the tokenizer does not know, the model predicts only that something unknown
    stands there, so texts with many of them look better than they are.
    """

    log_likelihood: Floats
    tokens: Ints
    words: Ints


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` as the model reads them; those from `first` on are predicted."""

    start: int
    first: int
    stop: int


@dataclass(frozen=True)
class _Row:
    """One input of the model: the places `masked` to `masked_end` hidden, the first predicted."""

    ids: Ints
    masked: int
    masked_end: int
    text: int
    token: int


def windows(word_ids: Sequence[int], room: int) -> list[Window]:
    """Cuts a text of one word id a token into windows of at most `room` tokens.

    Every token is predicted in exactly one window. A window ends where a word ends, and inside a
    word only where that word alone is longer than `room`. The last window begins as early as there
    is room, at the beginning of a word, so that its tokens have a context as long as the others'.
    """
    edges = [place for place, (a, b) in enumerate(pairwise(word_ids), 1) if a != b]
    found, first, total = [], 0, len(word_ids)
    while first < total:
        stop = min(first + room, total)
        if stop < total:
            stop = max((edge for edge in edges if first < edge <= stop), default=stop)
        start = first
        if stop == total:
            start = min(
                (edge for edge in (0, *edges) if total - room <= edge < first), default=first
            )
        found.append(Window(start, first, stop))
        first = stop
    return found


def word_end(word_ids: Sequence[int], token: int, stop: int) -> int:
    """Where the word of a token ends, not later than `stop`: masked is token to word_end."""
    end = token + 1
    while end < stop and word_ids[end] == word_ids[token]:
        end += 1
    return end


class Masked:
    """A transformers masked language model with its fast tokenizer, as a predictor."""

    kind: Kind = "masked"

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str = "cpu",
    ) -> None:
        _check(name, model, tokenizer)
        self.name = name
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.model: Any = model.to(self.device).eval()  # type: ignore[arg-type]
        self.parameters = sum(weights.numel() for weights in model.parameters())
        self.context = min(_positions(model), tokenizer.model_max_length)

    def pseudo_score(self, texts: Sequence[str], *, window: int | None = None) -> PseudoScores:
        """Pseudo-log-likelihood of each text, every token predicted exactly once.

        A text longer than the context is read in windows, see `windows`. Each token costs a pass
        over its whole window: `window`, the most tokens read at once with the two special ones,
        makes long texts cheaper and their scores somewhat worse. None is the context.
        """
        if window is not None and not 3 <= window <= self.context:
            raise SmallmError(
                f"pseudo-log-likelihood of {self.name}: window is {window}, "
                f"allowed is 3 to {self.context} tokens"
            )
        encoded = self._encode(texts)
        per_token = self._token_log_likelihoods(encoded, window or self.context)
        return PseudoScores(
            log_likelihood=np.array([each.sum() for each in per_token]),
            tokens=np.array([len(each) for each in per_token], dtype=np.int64),
            words=np.array([count_words(text) for text in texts], dtype=np.int64),
        )

    def token_pseudo_log_likelihoods(self, text: str) -> Floats:
        """Pseudo-log-likelihood of each token of a text, in nats."""
        return self._token_log_likelihoods(self._encode([text]), self.context)[0]

    @torch.inference_mode()
    def next_words(self, prompt: str, *, k: int) -> NextWords:
        """The k most probable words at the mask in `[CLS] prompt [MASK] [SEP]`.

        One mask holds one piece, so only words of a single piece take part: among them the answer
        is exact and `certified`, and it says nothing about words of more pieces. A piece such as
        "un" that begins many words counts as the word "un". `residual` is the probability of all
        pieces that begin no word. A masked model has no end of text.
        """
        words, ids = self._words
        if not 1 <= k <= len(words):
            raise SmallmError(
                f"next words of {self.name}: k is {k}, allowed is 1 to {len(words)}, "
                "its words of a single piece"
            )
        row = self._mask_after(prompt)
        logits = self._logits(torch.from_numpy(row[None]), torch.ones(1, len(row)), [len(row) - 2])
        probabilities = logits.double().softmax(-1)[0, ids].cpu()
        best = probabilities.topk(k)
        return NextWords(
            words=tuple(
                NextWord(words[place], probability, probability)
                for place, probability in zip(
                    best.indices.tolist(), best.values.tolist(), strict=True
                )
            ),
            end_of_text=0.0,
            residual=max(0.0, 1 - float(probabilities.sum())),
            certified=True,
        )

    def stream(self, prompt: str, decoding: Decoding) -> NoReturn:
        """Raises SmallmError: what is no distribution over texts cannot continue one."""
        raise SmallmError(f"{self.name} {NO_DISTRIBUTION}: it cannot continue a text")

    def score(self, texts: Sequence[str], *, temperatures: Sequence[float] = (1.0,)) -> NoReturn:
        """Raises SmallmError: there is no likelihood; `pseudo_score` gives what there is."""
        raise SmallmError(
            f"{self.name} {NO_DISTRIBUTION}: it has pseudo-log-likelihoods, not bits per byte"
        )

    def _encode(self, texts: Sequence[str]) -> Encoded:
        """Ids and word ids of each text without special tokens; "[MASK]" in a text is text."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=True,
            verbose=False,
        )
        return [(ids, encoded.word_ids(place)) for place, ids in enumerate(encoded["input_ids"])]

    def _framed(self, ids: Sequence[int]) -> Ints:
        return np.array([self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id])

    @torch.inference_mode()
    def _token_log_likelihoods(self, encoded: Encoded, window: int) -> list[Floats]:
        found = [np.zeros(len(ids)) for ids, _ in encoded]
        for rows in _batches(self._rows(encoded, window)):
            longest = len(rows[0].ids)
            inputs = torch.full((len(rows), longest), self._padding)
            attention = torch.zeros(len(rows), longest)
            for place, row in enumerate(rows):
                inputs[place, : len(row.ids)] = torch.from_numpy(row.ids)
                inputs[place, row.masked : row.masked_end] = self.tokenizer.mask_token_id
                attention[place, : len(row.ids)] = 1
            logits = self._logits(inputs, attention, [row.masked for row in rows])
            gold = torch.tensor([int(row.ids[row.masked]) for row in rows], device=self.device)
            likelihoods = logits.log_softmax(-1).gather(1, gold[:, None])[:, 0].cpu()
            for row, likelihood in zip(rows, likelihoods.tolist(), strict=True):
                found[row.text][row.token] = likelihood
        return found

    def _rows(self, encoded: Encoded, longest: int) -> Iterator[_Row]:
        """One row for each token, the longest windows first."""
        cut = [
            (text, window)
            for text, (_, word_ids) in enumerate(encoded)
            for window in windows(word_ids, longest - 2)
        ]
        cut.sort(key=lambda pair: pair[1].start - pair[1].stop)
        for text, window in cut:
            ids, word_ids = encoded[text]
            framed = self._framed(ids[window.start : window.stop])
            shift = 1 - window.start  # of a token's place, by the opening id and the window
            for token in range(window.first, window.stop):
                end = word_end(word_ids, token, window.stop)
                yield _Row(framed, token + shift, end + shift, text, token)

    @property
    def _padding(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)  # no one attends to it

    def _logits(self, inputs: Tensor, attention: Tensor, places: Sequence[int]) -> Tensor:
        """Logits at one place of each row in float32: (rows, ids)."""
        chosen = torch.tensor(places, device=self.device)
        with _only_at(self.model, chosen):
            output = self.model(
                input_ids=inputs.to(self.device), attention_mask=attention.to(self.device).long()
            )
        logits: Tensor = output.logits[:, 0]
        return logits.float()

    def _mask_after(self, prompt: str) -> Ints:
        if not prompt.strip():
            raise SmallmError(f"next words of {self.name}: the prompt is empty")
        if prompt != prompt.rstrip():
            raise SmallmError(
                f"next words of {self.name}: the prompt {prompt[-20:]!r} ends in white space; "
                "end it with a word"
            )
        ids = self._encode([prompt])[0][0]
        if len(ids) + 3 > self.context:
            raise SmallmError(
                f"next words of {self.name}: the prompt has {len(ids)} tokens, "
                f"at most {self.context - 3} are allowed"
            )
        return self._framed([*ids, self.tokenizer.mask_token_id])

    @cached_property
    def _words(self) -> tuple[list[str], Tensor]:
        """Words of a single piece and their ids: the pieces that only a space can set apart.

        Pieces that continue a word are none of these, nor are signs that BERT writes alike with
        and without a space before them: they belong to the word before as well.
        """
        size = min(len(self.tokenizer), self.model.config.vocab_size)
        pieces = [text.strip() for text in self.tokenizer.batch_decode([[i] for i in range(size)])]
        after_space = self._encode([f"{PROBE} {piece}" for piece in pieces])
        joined = self._encode([PROBE + piece for piece in pieces])
        probe = self._encode([PROBE])[0][0]
        special = set(self.tokenizer.all_special_ids)
        ids = [
            number
            for number, (apart, together) in enumerate(zip(after_space, joined, strict=True))
            if pieces[number]
            and apart[0] == [*probe, number] != together[0]
            and number not in special
        ]
        return [pieces[number] for number in ids], torch.tensor(ids, device=self.device)


def _check(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise SmallmError(f"{name}: a masked model needs a fast tokenizer, which knows its words")
    for token in ("mask", "cls", "sep"):
        if getattr(tokenizer, f"{token}_token_id") is None:
            raise SmallmError(f"{name}: its tokenizer has no {token} token, as masked models have")
    if len(tokenizer) > model.config.vocab_size:
        raise SmallmError(
            f"{name}: its tokenizer has {len(tokenizer)} ids, its model {model.config.vocab_size}"
        )


def _positions(model: PreTrainedModel) -> int:
    """Places that a model can tell apart: RoBERTa's first ones belong to padding."""
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return int(model.config.max_position_embeddings) - (0 if padding is None else padding + 1)


def _batches(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    """Rows in batches of at most TOKENS_AT_ONCE places; the first row of a batch is the longest."""
    batch: list[_Row] = []
    for row in rows:
        if batch and (len(batch) + 1) * len(batch[0].ids) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@contextmanager
def _only_at(model: Any, places: Tensor) -> Iterator[None]:
    """Lets the output layer see one place of each row: the others' logits are never made.

    The head has another name in every architecture, but each reads the first output of
    `base_model`, so that is where the places are chosen.
    """

    def choose(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output.last_hidden_state  # (rows, places, width)
        output.last_hidden_state = hidden.take_along_dim(places[:, None, None], 1)
        return output

    hook = model.base_model.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()
