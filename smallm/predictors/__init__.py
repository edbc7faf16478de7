"""Predictors: whatever continues a text, behind one interface.

A SmaLLM and a pretrained baseline give the same things: next words with bounds, continuations,
and, where they define a distribution over texts, log-likelihoods. A *word* is the same for all: a
longest run of characters that are not ASCII white space. So a word ends where the next one's
white space begins, whatever the tokenizer, and a prompt never ends in white space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from smallm.scoring import Scores

Kind = Literal["causal", "masked"]


@dataclass(frozen=True)
class Decoding:
    """How a continuation is chosen from the probabilities."""

    max_tokens: int = 40
    temperature: float = 1.0
    """0 is greedy: the most probable token at every step."""
    top_k: int | None = None
    """Only the k most probable tokens; None is all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability."""
    seed: int = 0


@dataclass(frozen=True)
class NextWord:
    """A word that may follow, with the bounds of its probability."""

    word: str
    probability: float
    """Lower bound: what the search has credited to the word."""
    upper: float


@dataclass(frozen=True)
class NextWords:
    """The k most probable next words, the most probable first."""

    words: tuple[NextWord, ...]
    end_of_text: float
    """Probability that the text ends here."""
    residual: float
    """Probability that the search has not attributed to a word or to the end."""
    certified: bool
    """Whether these are provably the k most probable words, in this order."""


class Predictor(Protocol):
    """What compares, scores and serves models."""

    name: str
    kind: Kind
    parameters: int
    context: int | None
    """Longest input in tokens; None where the model looks at a fixed window of any text."""

    def next_words(self, prompt: str, *, k: int) -> NextWords:
        """The k most probable next words; SmallmError for a prompt that ends in white space."""

    def stream(self, prompt: str, decoding: Decoding) -> Iterator[str]:
        """Yields the continuation of a prompt in pieces of text, as they are chosen.

        Raises SmallmError for a model that cannot continue a text (masked ones).
        """

    def score(
        self, texts: Sequence[str], *, temperatures: Sequence[float] = (1.0,)
    ) -> list[Scores]:
        """Scores of the texts, one row a text, at each temperature.

        Raises SmallmError for a model that defines no distribution over texts (masked ones).
        """
