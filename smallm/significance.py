"""Intervals and comparisons: is a difference between configs real?

Everything is computed from one table per config: negative log-likelihoods in nats, a row for each
seed and a column for each document, beside the documents' bytes. Seeds and documents are resampled
together (the multi-bootstrap of MultiBERTs, arXiv 2106.16163), so an interval speaks about new
seeds and new documents alike. With one seed it speaks about documents only.

Two rules keep a handful of seeds, or of documents, honest:

- A plain bootstrap of n seeds is too narrow, for 3 seeds so much that "95 %" covers about 70 %: it
  underestimates their variance by (n - 1) / n and knows no Student's t. It is the same with
  documents. Deviations between seeds, and between documents, are therefore widened by
  `_widening(n)`, which goes to 1 as n grows: it is 1.58 for 5, 1.17 for 12, 1.02 for 100.
- A difference is called real only if its interval excludes zero *and* a sign test over the paired
  seeds gives p <= 0.05. The smallest p of n pairs is 2^-n, so fewer than 5 seeds never suffice:
  the sentence then says "probably" and how many seeds would settle it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

ENDS = (0.025, 0.975)  # of a 95 % interval
Z = 1.959963984540054  # the same in standard deviations
P_VALUE = 0.05
SEEDS_THAT_CAN_PROVE = 5  # the least n with 2^-n <= P_VALUE
RELIABLE = 0.8
WEIGHTS_IN_MEMORY = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the estimate is certain at this level."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Config A against config B, on the same seeds and documents."""

    difference: Interval
    """B minus A in bits per byte: positive means A is better."""
    probability_of_improvement: Interval
    """P(A > B): how probably A beats B when both are trained with one more seed."""
    real: bool
    seeds: int
    documents: int
    agreeing: int
    """In how many seeds the config that is better on the whole is the better one."""


def bits_per_byte(nll_sum: float, bytes_sum: float) -> float:
    """Bits per byte of a text from its negative log-likelihood in nats and its size."""
    if not (bytes_sum > 0 and math.isfinite(bytes_sum) and math.isfinite(nll_sum)):
        raise ValueError(f"bits per byte of {nll_sum} nats over {bytes_sum} bytes is undefined")
    return nll_sum / (math.log(2) * bytes_sum)


def multi_bootstrap(nll: ArrayLike, bytes_: ArrayLike, *, draws: int = 2000, seed: int) -> Interval:
    """Bits per byte, averaged over seeds, with its interval over seeds and documents."""
    table, sizes = _checked(nll, bytes_)
    return _possible(table, _mean_interval(table, sizes, *_resampled(table, sizes, draws, seed)))


def ratio_interval(
    totals: ArrayLike, sizes: ArrayLike, *, draws: int = 2000, seed: int
) -> Interval:
    """The sum of the totals over the sum of the sizes, with its interval over documents."""
    table, sizes = _checked(np.asarray(totals, dtype=np.float64)[None], sizes)
    scores, _ = _resampled(table, sizes, draws, seed)
    low, high = _ends(math.log(2) * _with_few_documents(scores, table, sizes)[:, 0])
    return _possible(table, Interval(float(table.sum() / sizes.sum()), low, high))


def compare(
    nll_a: ArrayLike, nll_b: ArrayLike, bytes_: ArrayLike, *, draws: int = 2000, seed: int
) -> Comparison:
    """A against B, paired: the same row is the same seed, the same column the same document."""
    table_a, sizes = _checked(nll_a, bytes_)
    table_b, _ = _checked(nll_b, bytes_)
    if table_a.shape != table_b.shape:
        raise ValueError(f"paired tables differ in shape: {table_a.shape} and {table_b.shape}")
    gaps = table_b - table_a
    scores, weights = _resampled(gaps, sizes, draws, seed)
    difference = _mean_interval(gaps, sizes, scores, weights)
    seed_gaps = gaps.sum(axis=1)
    seeds, documents = gaps.shape
    agreeing = int((seed_gaps * np.sign(difference.value) > 0).sum())
    return Comparison(
        difference=difference,
        probability_of_improvement=_probability_interval(
            seed_gaps, _with_few_documents(scores, gaps, sizes), weights
        ),
        real=difference.excludes_zero and _sign_test(agreeing, seeds) <= P_VALUE,
        seeds=seeds,
        documents=documents,
        agreeing=agreeing,
    )


def sentence(
    comparison: Comparison, a_name: str, b_name: str, *, source: str = "this search"
) -> str:
    """Plain words: which config is better, by how much, and whether that is real.

    `source` is what the figures come from.
    """
    gap, better, worse = comparison.difference, a_name, b_name
    if gap.value == gap.low == gap.high == 0:
        return f"{a_name} and {b_name} give the same numbers."
    if gap.value < 0:
        gap, better, worse = Interval(-gap.value, -gap.high, -gap.low), b_name, a_name
    decimals = min(6, max(3, 1 - math.floor(math.log10(gap.high - gap.low or 1))))
    value, low, high = (f"{number:.{decimals}f}" for number in (gap.value, gap.low, gap.high))
    seeds = f"{comparison.seeds} seed{'s' if comparison.seeds > 1 else ''}"
    sample = f"{seeds} and {comparison.documents:,} documents"
    if not gap.excludes_zero:
        return (
            f"{better} is ahead of {worse} by {value} bits per byte, but the 95 % interval "
            f"({low} to {high}) includes zero: with {sample} {source} cannot tell them apart."
        )
    claim = f"{better} is better than {worse} by {value} bits per byte"
    claim += f" (95 % interval {low} to {high})"
    if comparison.real:
        return f"{claim}: the difference is real, with {sample}."
    if comparison.agreeing < comparison.seeds:
        return (
            f"{claim}, but only in {comparison.agreeing} of {seeds}: "
            f"with {comparison.documents:,} documents {source} cannot tell them apart."
        )
    return (
        f"{claim}: the difference is probably real, but {seeds} cannot prove it (by a sign test "
        f"p is at least {0.5**comparison.seeds:.3g}); {SEEDS_THAT_CAN_PROVE} seeds could."
    )


def intraclass_correlation(scores: Sequence[Sequence[float]]) -> float | None:
    """ICC(1): the share of variance that lies between configs rather than between their seeds.

    One-way analysis of variance over scores[config][seed], at equal budgets; configs may have
    different numbers of seeds. None where it is undefined: one config, no config with two seeds,
    or all scores equal.
    """
    groups = [np.asarray(group, dtype=np.float64) for group in scores]
    if any(group.ndim != 1 or group.size == 0 or not np.isfinite(group).all() for group in groups):
        raise ValueError("scores must be one non-empty list of finite numbers for each config")
    groups = [group - groups[0][0] for group in groups]  # so that equal scores are exactly zero
    sizes = np.array([group.size for group in groups])
    total = int(sizes.sum())
    if len(groups) < 2 or total == len(groups):
        return None
    means = np.array([group.mean() for group in groups])
    grand_mean = np.concatenate(groups).mean()
    between = float((sizes * (means - grand_mean) ** 2).sum()) / (len(groups) - 1)
    within = sum(float(group.var()) * group.size for group in groups) / (total - len(groups))
    typical_size = (total - (sizes**2).sum() / total) / (len(groups) - 1)
    variance = between + (typical_size - 1) * within
    return float(np.clip((between - within) / variance, 0, 1)) if variance > 0 else None


def replication_advice(correlation: float | None, *, seeds: int) -> str:
    """Whether the next search needs more seeds or more configs, from its intraclass correlation.

    The mean of k seeds ranks configs with reliability k r / (1 + (k - 1) r) (Spearman-Brown).
    """
    if correlation is None:
        return "The noise between seeds is unknown: it takes two configs with two seeds each."
    share = f"{100 * correlation:.0f} % of the scores' variance is between configs, not seeds"
    reliability = seeds * correlation / (1 + (seeds - 1) * correlation)
    if reliability >= RELIABLE:
        return f"{share}: {seeds} seeds rank them reliably; add configs rather than seeds."
    if correlation < 0.05:
        return f"{share}: noise hides the differences; try configs that differ more, or more seeds."
    odds = RELIABLE / (1 - RELIABLE)
    needed = math.ceil(odds * (1 - correlation) / correlation - 1e-9)
    return (
        f"{share}: {needed} seeds are needed to rank them reliably, not {seeds}; add seeds first."
    )


def _checked(nll: ArrayLike, bytes_: ArrayLike) -> tuple[Floats, Floats]:
    table, sizes = np.asarray(nll, dtype=np.float64), np.asarray(bytes_, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2:
        raise ValueError(f"nll must be (seeds, at least 2 documents), found shape {table.shape}")
    if sizes.shape != table.shape[1:]:
        raise ValueError(f"bytes must be one per document {table.shape[1:]}, found {sizes.shape}")
    if not np.isfinite(table).all():
        raise ValueError("nll holds values that are not finite")
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        raise ValueError("bytes must be positive for every document")
    return table, sizes


def _resampled(table: Floats, sizes: Floats, draws: int, seed: int) -> tuple[Floats, Floats]:
    """Bits per byte of each seed on resampled documents, and the weights of resampled seeds."""
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    rng = np.random.default_rng(seed)
    seeds, documents = table.shape
    weights = rng.multinomial(seeds, [1 / seeds] * seeds, size=draws) / seeds  # (draws, seeds)
    scores = [
        (counts @ table.T) / (math.log(2) * (counts @ sizes))[:, None]
        for counts in document_counts(rng, documents, draws)
    ]
    return np.concatenate(scores), weights  # (draws, seeds) both


def document_counts(rng: np.random.Generator, documents: int, draws: int) -> Iterator[Floats]:
    """How often each document is drawn, in blocks of draws that stay small in memory."""
    block = max(1, WEIGHTS_IN_MEMORY // documents)
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picks = rng.integers(documents, size=(rows, documents))
        picks += np.arange(rows)[:, None] * documents
        counts = np.bincount(picks.ravel(), minlength=rows * documents)
        yield counts.reshape(rows, documents).astype(np.float64)


def _with_few_documents(scores: Floats, table: Floats, sizes: Floats) -> Floats:
    """The scores of resampled documents, as far from the true ones as so few documents may be."""
    found: Floats = table.sum(axis=1) / (math.log(2) * sizes.sum())
    return found + _widening(len(sizes)) * (scores - found)


def _possible(table: Floats, interval: Interval) -> Interval:
    """An interval that is not below zero where nothing can be."""
    return replace(interval, low=max(interval.low, 0.0)) if table.min() >= 0 else interval


def _mean_interval(table: Floats, sizes: Floats, scores: Floats, weights: Floats) -> Interval:
    seeds = len(table)
    deviations = ((weights - 1 / seeds) * scores).sum(axis=1)
    means = _with_few_documents(scores, table, sizes).mean(axis=1)
    estimates = means + _widening(seeds) * deviations
    return Interval(bits_per_byte(table.sum() / seeds, sizes.sum()), *_ends(estimates))


def _probability_interval(seed_gaps: Floats, scores: Floats, weights: Floats) -> Interval:
    """P(A > B) over seeds, ties counting half, with the wider of two intervals.

    The bootstrap of n wins in n has no width, so Wilson's interval for n pairs is the least.
    """
    wins = np.heaviside(seed_gaps, 0.5)
    value, pairs = float(wins.mean()), len(wins)
    low, high = _ends((weights * np.heaviside(scores, 0.5)).sum(axis=1))
    centre = (value + Z**2 / (2 * pairs)) / (1 + Z**2 / pairs)
    half = Z / (1 + Z**2 / pairs) * math.sqrt(value * (1 - value) / pairs + (Z / pairs / 2) ** 2)
    return Interval(value, max(0.0, min(low, centre - half)), min(1.0, max(high, centre + half)))


def _ends(estimates: Floats) -> tuple[float, float]:
    low, high = np.quantile(estimates, ENDS)
    return float(low), float(high)


def _widening(drawn: int) -> float:
    """What a bootstrap deviation of n seeds or documents is multiplied with: it is Student's t."""
    if drawn == 1:
        return 1.0
    return math.sqrt(drawn / (drawn - 1)) * _student_t(drawn - 1) / Z


def _student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: a table, then its Cornish-Fisher series."""
    table = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
    if freedom <= len(table):
        return table[freedom - 1]
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / freedom + second / freedom**2


def _sign_test(agreeing: int, seeds: int) -> float:
    """One-sided p: so many agreeing seeds or more, if each were a coin toss."""
    return sum(math.comb(seeds, wins) for wins in range(agreeing, seeds + 1)) * 0.5**seeds
