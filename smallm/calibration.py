"""Calibration: the temperature that fits a model's probabilities to a text, and what it changes.

The probabilities at temperature T are softmax(logits / T). The fitted T has the lowest negative
log-likelihood (Guo et al. 2017, arXiv 1706.04599), which is convex in 1 / T. The expected
calibration error compares, in bins of tokens, how sure the model is of its most probable token
with how often that is the right one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smallm.errors import SmallmError
from smallm.scoring import BATCH, Scores, predicted_positions, predictions
from smallm.significance import Interval, document_counts, multi_bootstrap
from smallm.tape import Slice
from smallm.token_tape import TokenTape

LEAST, MOST = 0.05, 20.0  # temperatures that a fit may give
MOST_POSITIONS = 4096  # that a fit looks at: the temperature is then known to about 1 %
MOST_VALUES = 2**26  # logits that a fit keeps in memory, in two bytes each
FARTHEST = 1e4  # below the greatest logit: e**(-FARTHEST / MOST) is still no probability
STEPS = 60  # of the solver: bisection alone would end within them
CLOSE = 1e-6  # relative size of a last step that is not worth taking
BINS = 15
DRAWS = 2000
SEED = 0

Binning = Literal["width", "mass"]
BINNINGS: tuple[Binning, ...] = ("width", "mass")
Floats = NDArray[np.float64]


class Batch(Protocol):
    """Some predicted positions: the logits (n, ids), and the id (n,) that really follows."""

    @property
    def logits(self) -> Tensor: ...

    @property
    def gold(self) -> Tensor: ...


class Predictions(NamedTuple):
    """A batch that holds nothing else."""

    logits: Tensor
    gold: Tensor


@dataclass(frozen=True)
class FittedTemperature:
    """The temperature with the lowest negative log-likelihood on the positions it was fitted on."""

    temperature: float
    nll_at_1: float
    """Mean negative log-likelihood at temperature 1, in nats per token."""
    nll: float
    """The same at the fitted temperature; never above `nll_at_1`."""
    positions: int
    """How many predicted tokens the fit looked at."""
    warning: str | None
    """Why the temperature says little; None where it is a proper minimum."""


class ReliabilityRow(NamedTuple):
    """One bin of a reliability diagram."""

    confidence: float
    accuracy: float
    tokens: int


def fit_temperature(batches: Iterable[Batch]) -> FittedTemperature:
    """The temperature, between LEAST and MOST, that fits the logits to the gold ids best.

    A random sample of at most MOST_POSITIONS positions is kept, fewer for large vocabularies.
    Raises SmallmError where there is no position, a logit is NaN, or a gold id is impossible.
    """
    logits, gold = _sample(batches)
    if bool((logits == 0).all()):  # centred: all ids are equally probable everywhere
        nll = math.log(logits.shape[1])
        reason = "the logits are flat: every temperature fits them alike"
        return FittedTemperature(1.0, nll, nll, len(gold), reason)
    before, *_ = _moments(logits, gold, 1.0)
    inverse, after, warning = _minimum(logits, gold)
    if after > before:  # by rounding, when the minimum is at 1
        inverse, after = 1.0, before
    return FittedTemperature(1 / inverse, before, after, len(gold), warning)


def _minimum(logits: Tensor, gold: Tensor) -> tuple[float, float, str | None]:
    """Best 1 / T, its mean negative log-likelihood, and whether a bound stopped the search.

    Newton's method inside a bracket, halved where a step would leave it twice.
    """
    low, high = least, most = 1 / MOST, 1 / LEAST
    at, tried, warning = 1.0, set[float](), None
    for _ in range(STEPS):
        nll, slope, curvature = _moments(logits, gold, at)
        if at == least and slope >= 0:
            warning = f"the fit ends at the highest temperature, {MOST:g}: the logits mislead"
        if at == most and slope <= 0:
            warning = f"the fit ends at the lowest one, {LEAST:g}: the model is always right"
        tried.add(at)
        low, high = (at, high) if slope < 0 else (low, at)
        step = slope / curvature if curvature > 0 else math.copysign(math.inf, slope)
        target = min(max(at - step, low), high)
        target = (low + high) / 2 if target in tried and target != at else target
        if warning or abs(target - at) <= CLOSE * at:
            break
        at = target
    return at, nll, warning


def _moments(logits: Tensor, gold: Tensor, inverse: float) -> tuple[float, float, float]:
    """Mean negative log-likelihood at 1 / T, with its first and second derivative.

    The first is the mean expected logit minus the mean gold logit, the second the mean variance of
    the logits: so at the minimum the mean gold logit is the expected one.
    """
    sums = np.zeros(3)
    rows = max(1, 2**20 // logits.shape[1])  # stays in the cache
    for part, ids in zip(logits.split(rows), gold.split(rows), strict=True):
        values = part.float()  # at most 0, and 0 somewhere: the sum is at least 1
        at_gold = values.gather(1, ids[:, None])[:, 0]
        weights = (values * inverse).exp_()
        total = weights.sum(1)
        expected = weights.mul_(values).sum(1) / total
        squared = weights.mul_(values).sum(1) / total
        figures = (total.log() - inverse * at_gold, expected - at_gold, squared - expected**2)
        sums += [each.double().sum().item() for each in figures]
    nll, slope, curvature = sums / len(gold)
    return float(nll), float(slope), float(curvature)


def _sample(batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Centred logits in fp16 and gold ids of random positions (reservoir sampling, Vitter 1985).

    Less their greatest one, the logits that matter are near zero, where fp16 is exact enough.
    """
    generator = np.random.default_rng(SEED)
    kept = gold = torch.empty(0)
    seen = 0
    for batch in batches:
        logits = _centred(batch)
        if seen == 0:
            room = max(1, min(MOST_POSITIONS, MOST_VALUES // logits.shape[1]))
            kept = logits.new_empty(room, logits.shape[1])
            gold = batch.gold.new_empty(room)
        number = np.arange(seen, seen + len(logits))
        place = np.where(number < len(kept), number, generator.integers(0, number + 1))
        place, last = np.unique(place[::-1], return_index=True)  # the last one to come stays
        row = len(logits) - 1 - last[place < len(kept)]
        place = place[place < len(kept)]
        kept[place], gold[place] = logits[row], batch.gold[row]
        seen += len(logits)
    if seen == 0:
        raise SmallmError("a temperature cannot be fitted: there is no token to predict")
    return kept[:seen], gold[:seen].long()


def _centred(batch: Batch) -> Tensor:
    logits = batch.logits.float()
    logits = logits - logits.amax(1, keepdim=True)
    if bool(logits.isnan().any()):
        raise SmallmError("a temperature cannot be fitted: logits hold NaN or infinity")
    logits.clamp_(min=-FARTHEST)
    if bool((logits.gather(1, batch.gold[:, None]) == -FARTHEST).any()):
        raise SmallmError("a temperature cannot be fitted: the model rules out a token of the text")
    return logits.half()


def fitted_temperature(core: nn.Module, tokens: TokenTape, part: Slice, *, window: int) -> float:
    """The temperature of a SmaLLM, fitted on a random sample of a slice's predicted ids."""
    return fit_temperature(_predictions(core, tokens, part, window)).temperature


def _predictions(
    core: nn.Module, tokens: TokenTape, part: Slice, window: int
) -> Iterator[Predictions]:
    positions = predicted_positions(tokens, part)
    if len(positions) > MOST_POSITIONS:
        positions = _sampled(positions, run=BATCH if getattr(core, "reads_sequences", False) else 1)
    for logits, gold in predictions(core, tokens, positions, window=window):
        yield Predictions(logits, gold)


def _sampled(positions: NDArray[np.int64], *, run: int) -> NDArray[np.int64]:
    """Random ones in order, in runs that a model which reads sequences predicts at once."""
    chosen = np.random.default_rng(SEED).choice(
        len(positions) // run, MOST_POSITIONS // run, replace=False, shuffle=False
    )
    places: NDArray[np.int64] = (np.sort(chosen)[:, None] * run + np.arange(run)).ravel()
    found: NDArray[np.int64] = positions[places]
    return found


def calibration_error(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    *,
    bins: int = BINS,
    by: Binning = "width",
) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin, weighted by its tokens.

    Bins are of equal width, or hold equally many tokens each ("mass").
    """
    confidence, place = _binned(confidence, correct, bins, by)
    gaps = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def calibration_interval(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    tokens: NDArray[np.int64],
    *,
    bins: int = BINS,
    by: Binning = "width",
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """The calibration error with the 95 % interval that new documents would give it.

    `tokens` says how many tokens each document has. Resampling adds noise to a figure that noise
    can only raise, so the draws are moved down by what they are too high on average. What remains
    of the noise in the figure itself is `calibration_noise`.
    """
    if tokens.sum() != len(confidence):
        raise ValueError(f"{tokens.sum()} tokens in documents, but {len(confidence)} confidences")
    value = calibration_error(confidence, correct, bins=bins, by=by)
    confidence, place = _binned(confidence, correct, bins, by)
    row = np.repeat(np.arange(len(tokens)), tokens)
    gaps = np.bincount(
        row * bins + place, weights=correct - confidence, minlength=len(tokens) * bins
    ).reshape(len(tokens), bins)
    rng = np.random.default_rng(seed)
    errors = np.concatenate(
        [
            np.abs(counts @ gaps).sum(1) / (counts @ tokens)
            for counts in document_counts(rng, len(tokens), draws)
        ]
    )
    low, high = np.quantile(errors, (0.025, 0.975)) - (errors.mean() - value)
    return Interval(value, float(max(low, 0.0)), float(min(high, 1.0)))


def calibration_noise(
    confidence: NDArray[np.floating[Any]], *, bins: int = BINS, by: Binning = "width"
) -> float:
    """The calibration error to expect of a perfectly calibrated model that is as confident.

    A bin's gap is then a sum of independent coin tosses, near normal: its mean absolute value is
    the root of 2 / pi times its variance.
    """
    confidence, place = _binned(confidence, np.ones(len(confidence), dtype=bool), bins, by)
    variance = np.bincount(place, weights=confidence * (1 - confidence), minlength=bins)
    return float(np.sqrt(2 / math.pi * variance).sum() / len(confidence))


def reliability(
    confidence: NDArray[np.floating[Any]],
    correct: NDArray[np.bool_],
    *,
    bins: int = BINS,
    by: Binning = "width",
) -> list[ReliabilityRow]:
    """Mean confidence and accuracy of each bin that holds a token, the least confident first."""
    confidence, place = _binned(confidence, correct, bins, by)
    count = np.bincount(place, minlength=bins)
    sure = np.bincount(place, weights=confidence, minlength=bins)
    right = np.bincount(place, weights=correct, minlength=bins)
    return [
        ReliabilityRow(float(sure[at] / count[at]), float(right[at] / count[at]), int(count[at]))
        for at in np.flatnonzero(count)
    ]


def _binned(
    confidence: NDArray[np.floating[Any]], correct: NDArray[np.bool_], bins: int, by: Binning
) -> tuple[Floats, NDArray[np.intp]]:
    """Confidences in float64, and the bin of each; a bin holds its upper end, not its lower one.

    Equal confidences always share a bin, so equal masses are only as equal as ties allow.
    """
    values = np.asarray(confidence, dtype=np.float64)
    if len(values) == 0 or values.shape != correct.shape or bins < 1:
        raise ValueError(f"cannot bin {values.shape} confidences, {correct.shape} hits in {bins}")
    if not (values.min() >= 0 and values.max() <= 1 + 1e-6):
        raise ValueError(f"confidences must lie in [0, 1]: {values.min():g} to {values.max():g}")
    values = values.clip(max=1)  # a float32 softmax may round above
    inner = np.arange(1, bins) / bins
    if by == "mass":
        ends = -(-len(values) * np.arange(1, bins) // bins)  # rounded up
        inner = np.sort(values)[ends - 1]
    return values, np.searchsorted(inner, values, side="left")


def calibration_record(
    at_1: Scores, fitted: Scores, temperature: FittedTemperature
) -> dict[str, Any]:
    """What the fitted temperature changes on a text, for the result record.

    Figures have 95 % intervals over documents, whose ends are null for a single document.
    """
    return {
        **asdict(temperature),
        "before": _figures(at_1),
        "after": _figures(fitted),
        "nll_gain": _nats(at_1.nll - fitted.nll, at_1.tokens),  # paired by document
    }


def _figures(scores: Scores) -> dict[str, Any]:
    if scores.confidence is None or scores.correct is None:
        raise ValueError("calibration needs the scores' confidence and correct")
    confidence, correct = scores.confidence, scores.correct
    figures: dict[str, Any] = {"nll": _nats(scores.nll, scores.tokens)}
    for by in BINNINGS:
        value = calibration_error(confidence, correct, by=by)
        interval = None
        if len(scores.tokens) > 1:
            interval = calibration_interval(confidence, correct, scores.tokens, by=by)
        noise = calibration_noise(confidence, by=by)
        figures[f"ece_{by}"] = {**_row(value, interval), "noise": noise}
    figures["reliability"] = [row._asdict() for row in reliability(confidence, correct)]
    return figures


def _nats(nll: Floats, tokens: NDArray[np.int64]) -> dict[str, float | None]:
    """Nats per token, or a difference in them, with the interval over documents."""
    known = tokens > 0
    value = float(nll.sum() / tokens.sum())
    if known.sum() < 2:
        return _row(value, None)
    bits = multi_bootstrap(nll[None, known], tokens[known], draws=DRAWS, seed=SEED)
    return _row(value, Interval(value, math.log(2) * bits.low, math.log(2) * bits.high))


def _row(value: float, interval: Interval | None) -> dict[str, float | None]:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {"value": value, "low": low, "high": high}
