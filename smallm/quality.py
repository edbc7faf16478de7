"""Quality of generated text: overlap with what really followed, variety and repetition.

Alone these figures say little: many continuations are as good as the true one, and the overlap
with it is small even for text by the same author. So they stand beside a ceiling, the words that
follow the reference in the same document, scored as if a model had written them. Two models are
comparable only on the same prompts, the same decoding and continuations of equally many words
(`first_words`), since every figure here depends on length.

ROUGE counts only Latin letters and digits, as its reference implementation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from smallm.errors import SmallmError
from smallm.significance import ENDS, Interval
from smallm.tokens import WORD

Floats = NDArray[np.float64]

ROUGE = ("rouge1", "rouge2", "rougeL")
REPEATED = 4  # words in the n-grams whose repetition is counted


@dataclass(frozen=True)
class HeldOutPrompt:
    """The beginning of a held-out document and the two parts of equal length that follow it."""

    document: int
    """Place of the document in the texts."""
    prompt: str
    reference: str
    ceiling: str
    """The words after the reference."""


@dataclass(frozen=True)
class Diversity:
    """Variety of texts, all shares in [0, 1].

    distinct_n is the share of different n-grams of words among all n-grams of all texts together.
    `repetition` is the share of 4-grams of words that were seen before in the same text, over all
    4-grams of all texts. Where there are no n-grams at all, a share is 0.
    """

    distinct_1: float
    distinct_2: float
    distinct_3: float
    repetition: float
    words: float
    """Mean number of words in a text: below what was asked for where a model stops early."""


@dataclass(frozen=True)
class Quality:
    """Continuations against references; intervals are over prompts."""

    bleu: Interval
    """Corpus BLEU, 0 to 100."""
    bleu_signature: str
    rouge_1: float
    """F-measures in [0, 1], means over prompts."""
    rouge_2: float
    rouge_l: Interval
    diversity: Diversity
    prompts: int

    def metrics(self) -> dict[str, float]:
        """The figures by name, without intervals."""
        return {
            "bleu": self.bleu.value,
            "rouge_1": self.rouge_1,
            "rouge_2": self.rouge_2,
            "rouge_l": self.rouge_l.value,
            **asdict(self.diversity),
        }


def prompts_and_references(
    texts: Sequence[str], *, count: int, prompt_words: int, continuation_words: int
) -> list[HeldOutPrompt]:
    """Prompts from the first `count` texts that are long enough for prompt, reference and ceiling.

    The parts keep the white space between their words, and none begins or ends with any. Fewer
    than `count` where fewer texts are long enough; SmallmError where none is.
    """
    for name, value in [
        ("count", count),
        ("prompt_words", prompt_words),
        ("continuation_words", continuation_words),
    ]:
        if value < 1:
            raise SmallmError(f"{name} of held-out prompts is {value}, must be at least 1")
    needed = prompt_words + 2 * continuation_words
    borders = [0, prompt_words, prompt_words + continuation_words, needed]
    found: list[HeldOutPrompt] = []
    for document, text in enumerate(texts):
        spans = _first_spans(text, needed)
        if len(spans) < needed:
            continue
        parts = [text[spans[first][0] : spans[last - 1][1]] for first, last in pairwise(borders)]
        found.append(HeldOutPrompt(document, *parts))
        if len(found) == count:
            break
    if not found:
        raise SmallmError(
            f"none of {len(texts)} held-out documents has the {needed} words that a prompt of "
            f"{prompt_words} words and two parts of {continuation_words} need"
        )
    return found


def first_words(text: str, count: int) -> str:
    """The first `count` words of a continuation with the white space between them.

    All of it where it has fewer. What a continuation adds to the last word of its prompt counts
    as a word.
    """
    spans = _first_spans(text, count)
    return text[spans[0][0] : spans[-1][1]] if spans else ""


def quality(
    continuations: Sequence[str], references: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> Quality:
    """Figures of one continuation for each reference, with bootstrap intervals over the pairs."""
    if len(continuations) != len(references):
        raise ValueError(f"{len(continuations)} continuations for {len(references)} references")
    if not references:
        raise ValueError("quality needs at least one continuation")
    rng = np.random.default_rng(seed)
    size = len(references)
    counts = rng.multinomial(size, [1 / size] * size, size=draws)  # (draws, prompts)
    rouge = _rouge(continuations, references)  # (prompts, 3)
    bleu, signature = _bleu(continuations, references, counts)
    rouge_l = float(rouge[:, 2].mean())
    return Quality(
        bleu=bleu,
        bleu_signature=signature,
        rouge_1=float(rouge[:, 0].mean()),
        rouge_2=float(rouge[:, 1].mean()),
        rouge_l=Interval(rouge_l, *_ends(counts @ rouge[:, 2] / size)),
        diversity=diversity(continuations),
        prompts=size,
    )


def ceiling(prompts: Sequence[HeldOutPrompt]) -> Quality:
    """What text of the same documents reaches, with the references' own diversity."""
    references = [prompt.reference for prompt in prompts]
    own = quality([prompt.ceiling for prompt in prompts], references)
    return replace(own, diversity=diversity(references))


def diversity(texts: Sequence[str]) -> Diversity:
    """Distinct n-grams, repetition and length of texts."""
    words = [WORD.findall(text) for text in texts]
    grams_of = [_grams(each, REPEATED) for each in words]
    total = sum(map(len, grams_of))
    repeated = total - sum(len(set(grams)) for grams in grams_of)
    return Diversity(
        distinct_1=_distinct(words, 1),
        distinct_2=_distinct(words, 2),
        distinct_3=_distinct(words, 3),
        repetition=_share(repeated, total),
        words=_share(sum(map(len, words)), len(words)),
    )


def _first_spans(text: str, count: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for word in WORD.finditer(text):
        if len(spans) == count:
            break
        spans.append(word.span())
    return spans


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _distinct(words: Sequence[Sequence[str]], n: int) -> float:
    grams = [gram for each in words for gram in _grams(each, n)]
    return _share(len(set(grams)), len(grams))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _rouge(continuations: Sequence[str], references: Sequence[str]) -> Floats:
    scorer = RougeScorer(list(ROUGE), use_stemmer=False)
    rows = [
        [score.fmeasure for score in map(scorer.score(reference, text).get, ROUGE)]
        for text, reference in zip(continuations, references, strict=True)
    ]
    return np.array(rows, dtype=np.float64)


def _bleu(
    continuations: Sequence[str], references: Sequence[str], counts: NDArray[np.int64]
) -> tuple[Interval, str]:
    """BLEU with its interval: each pair's n-gram counts are added up as often as it is drawn."""
    metric = BLEU()
    score = metric.corpus_score(continuations, [references]).score
    single = BLEU(effective_order=True)  # the same counts, without a warning about short texts
    pairs = [
        single.sentence_score(text, [reference])
        for text, reference in zip(continuations, references, strict=True)
    ]
    rows = np.array([[each.sys_len, each.ref_len, *each.counts, *each.totals] for each in pairs])
    orders = metric.max_ngram_order
    drawn = [
        BLEU.compute_bleu(
            correct=sums[2 : 2 + orders],
            total=sums[2 + orders :],
            sys_len=sums[0],
            ref_len=sums[1],
            smooth_method=metric.smooth_method,
        ).score
        for sums in (counts @ rows).tolist()
    ]
    return Interval(score, *_ends(np.array(drawn))), str(metric.get_signature())


def _ends(estimates: Floats) -> tuple[float, float]:
    low, high = np.quantile(estimates, ENDS)
    return float(low), float(high)
