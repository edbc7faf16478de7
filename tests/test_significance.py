"""Intervals and comparisons against scipy, a slow loop, a published table and simulations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from smallm import significance
from smallm.significance import (
    Comparison,
    Interval,
    bits_per_byte,
    compare,
    intraclass_correlation,
    multi_bootstrap,
    ratio_interval,
    replication_advice,
    sentence,
)

LN2 = math.log(2)
# Six subjects rated by four judges each: Shrout & Fleiss 1979, table 2; ICC(1,1) = 0.17.
SHROUT_FLEISS = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]


def scores(seeds, documents, *, rng, mean=2.0, seed_noise=0.01, document_noise=0.1):
    """A table of nats and the bytes of its documents, around a known true bits per byte."""
    sizes = rng.integers(100, 2000, documents)
    per_byte = (
        mean
        + seed_noise * rng.normal(size=(seeds, 1))
        + document_noise * rng.normal(size=(1, documents))
    )
    return per_byte * LN2 * sizes, sizes


def student(drawn):
    """What a bootstrap deviation of so many is multiplied with, by scipy."""
    return math.sqrt(drawn / (drawn - 1)) * stats.t.ppf(0.975, drawn - 1) / stats.norm.ppf(0.975)


def by_a_loop(nll, sizes, *, draws, rng, widening=(1.0, 1.0)):
    """The multi-bootstrap written out: draw seeds, draw documents, score."""
    seeds, documents = nll.shape
    of_seeds, of_documents = widening
    found = nll.sum() / (LN2 * seeds * sizes.sum())
    estimates = []
    for _ in range(draws):
        chosen = rng.integers(documents, size=documents)
        per_seed = nll[:, chosen].sum(axis=1) / (LN2 * sizes[chosen].sum())
        mean = per_seed.mean()
        moved = of_seeds * (rng.choice(per_seed, seeds).mean() - mean)
        estimates.append(found + of_documents * (mean - found) + moved)
    return np.quantile(estimates, [0.025, 0.975])


def plain_interval(nll, sizes, *, draws, rng):
    """The percentile bootstrap over documents, not widened."""
    chosen = rng.integers(len(sizes), size=(draws, len(sizes)))
    return np.quantile(nll[chosen].sum(1) / (LN2 * sizes[chosen].sum(1)), [0.025, 0.975])


def test_a_uniform_byte_model_has_eight_bits_per_byte():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0, abs=1e-12)


@pytest.mark.parametrize(("nll", "size"), [(1, 0), (1, -3), (math.nan, 2), (1, math.inf)])
def test_bits_per_byte_of_no_text_or_no_number_is_refused(nll, size):
    with pytest.raises(ValueError, match="undefined"):
        bits_per_byte(nll, size)


def test_with_one_seed_the_interval_is_scipys_document_bootstrap():
    nll, sizes = scores(1, 150, rng=np.random.default_rng(0), document_noise=0.3)
    ours = multi_bootstrap(nll, sizes, draws=8000, seed=1)
    oracle = stats.bootstrap(
        (nll[0], sizes),
        lambda nats, length, axis: nats.sum(axis) / (LN2 * length.sum(axis)),
        paired=True,
        vectorized=True,
        n_resamples=8000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert ours.value == pytest.approx(nll.sum() / (LN2 * sizes.sum()))
    expected = [ours.value + student(150) * (end - ours.value) for end in oracle]
    assert [ours.low, ours.high] == pytest.approx(expected, abs=0.05 * (ours.high - ours.low))


@pytest.mark.parametrize(("seeds", "documents"), [(3, 60), (8, 60), (8, 6)])
def test_seeds_and_documents_are_resampled_as_a_slow_loop_does(seeds, documents):
    rng = np.random.default_rng(3)
    nll, sizes = scores(seeds, documents, rng=rng, seed_noise=0.02)
    widening = student(seeds), student(documents)
    low, high = by_a_loop(nll, sizes, draws=8000, rng=rng, widening=widening)
    ours = multi_bootstrap(nll, sizes, draws=8000, seed=4)
    assert [ours.low, ours.high] == pytest.approx([low, high], abs=0.05 * (high - low))


def test_intervals_of_three_seeds_cover_the_truth_where_a_plain_bootstrap_does_not():
    rng = np.random.default_rng(5)
    ours = plain = 0
    for simulation in range(200):
        nll, sizes = scores(3, 40, rng=rng, seed_noise=0.02, document_noise=0.02)
        interval = multi_bootstrap(nll, sizes, draws=300, seed=simulation)
        low, high = by_a_loop(nll, sizes, draws=100, rng=rng)
        ours += interval.low <= 2.0 <= interval.high
        plain += low <= 2.0 <= high
    assert plain / 200 < 0.85
    assert 0.92 <= ours / 200 <= 0.99


SIMULATIONS = 1000


@pytest.mark.parametrize(("documents", "before"), [(5, 0.88), (12, 0.93)])
def test_intervals_of_few_documents_cover_the_truth_where_a_plain_bootstrap_does_not(
    documents, before
):
    rng = np.random.default_rng(16)
    pretrained = champion = difference = plain = 0
    for simulation in range(SIMULATIONS):
        nll, sizes = scores(1, documents, rng=rng)
        seeds = np.repeat(nll, 5, axis=0) + 0.01 * LN2 * sizes * rng.normal(size=(5, 1))
        gaps = (0.5 + 0.1 * rng.normal(size=documents)) * LN2 * sizes
        one = ratio_interval(nll[0] / LN2, sizes, draws=300, seed=simulation)
        mean = multi_bootstrap(seeds, sizes, draws=300, seed=simulation)
        gap = compare(seeds, seeds + gaps, sizes, draws=300, seed=simulation).difference
        low, high = plain_interval(nll[0], sizes, draws=300, rng=rng)
        pretrained += one.low <= 2.0 <= one.high
        champion += mean.low <= 2.0 <= mean.high
        difference += gap.low <= 0.5 <= gap.high
        plain += low <= 2.0 <= high
    assert plain / SIMULATIONS < before
    for covered in (pretrained, champion, difference):
        assert 0.91 <= covered / SIMULATIONS <= 0.98


def test_a_win_on_a_handful_of_documents_is_called_what_so_few_allow():
    rng = np.random.default_rng(17)
    nll, sizes = scores(5, 4, rng=rng)
    gaps = np.array([0.01, 0.2, 0.02, 0.01]) * LN2 * sizes
    low, _ = plain_interval(gaps, sizes, draws=2000, rng=rng)
    few = compare(nll, nll + gaps, sizes, seed=18)
    assert low > 0
    assert not few.real
    assert "5 seeds and 4 documents this search cannot tell them apart" in sentence(few, "A", "B")
    many = compare(np.tile(nll, 10), np.tile(nll + gaps, 10), np.tile(sizes, 10), seed=18)
    assert many.real


def test_draws_in_small_blocks_are_the_same_draws(monkeypatch):
    nll, sizes = scores(3, 50, rng=np.random.default_rng(6))
    at_once = multi_bootstrap(nll, sizes, seed=7)
    monkeypatch.setattr(significance, "WEIGHTS_IN_MEMORY", 700)
    in_blocks = multi_bootstrap(nll, sizes, seed=7)
    assert (in_blocks.low, in_blocks.high) == pytest.approx((at_once.low, at_once.high), rel=1e-12)


@given(st.integers(1, 5), st.integers(2, 30), st.floats(0.1, 10), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_an_interval_scales_with_the_scores_and_encloses_them(seeds, documents, factor, seed):
    nll, sizes = scores(seeds, documents, rng=np.random.default_rng(seed))
    first = multi_bootstrap(nll, sizes, draws=200, seed=seed)
    scaled = multi_bootstrap(factor * nll, sizes, draws=200, seed=seed)
    assert first.low <= first.high
    assert (scaled.value, scaled.low, scaled.high) == pytest.approx(
        (factor * first.value, factor * first.low, factor * first.high)
    )


@given(st.integers(1, 6), st.integers(2, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_turning_a_comparison_round_turns_its_signs(seeds, documents, seed):
    rng = np.random.default_rng(seed)
    nll_a, sizes = scores(seeds, documents, rng=rng)
    nll_b = nll_a * rng.normal(1, 0.01, nll_a.shape)
    one = compare(nll_a, nll_b, sizes, draws=200, seed=seed)
    other = compare(nll_b, nll_a, sizes, draws=200, seed=seed)
    gap, back = one.difference, other.difference
    assert (gap.value, gap.low, gap.high) == pytest.approx((-back.value, -back.high, -back.low))
    chance, reverse = one.probability_of_improvement, other.probability_of_improvement
    assert chance.value == pytest.approx(1 - reverse.value)
    assert 0 <= chance.low <= chance.value <= chance.high <= 1
    assert one.real == other.real
    assert sentence(one, "X", "Y") == sentence(other, "Y", "X")


def test_the_difference_is_paired_over_documents_and_seeds():
    rng = np.random.default_rng(8)
    nll, sizes = scores(5, 200, rng=rng, document_noise=1.0)
    worse = nll + 0.02 * LN2 * sizes * rng.uniform(0.9, 1.1, nll.shape)
    gap = compare(nll, worse, sizes, seed=9).difference
    single = multi_bootstrap(nll, sizes, seed=9)
    assert gap.value == pytest.approx(0.02, rel=0.01)
    assert gap.high - gap.low < 0.02 * (single.high - single.low)


def test_equal_configs_are_a_tie_and_not_a_difference():
    nll, sizes = scores(6, 30, rng=np.random.default_rng(10))
    tie = compare(nll, nll, sizes, seed=11)
    assert tie.difference == Interval(0, 0, 0)
    assert tie.probability_of_improvement.value == 0.5
    assert not tie.real


@pytest.mark.parametrize("seeds", [1, 3, 4, 5, 8])
def test_a_clear_win_is_real_from_five_seeds_on_and_its_probability_has_wilsons_limit(seeds):
    nll, sizes = scores(seeds, 50, rng=np.random.default_rng(12))
    win = compare(nll, 1.1 * nll, sizes, seed=13)
    wilson = stats.binomtest(seeds, seeds).proportion_ci(method="wilson")
    chance = win.probability_of_improvement
    assert win.real == (seeds >= 5)
    assert (chance.value, chance.high) == (1.0, 1.0)
    assert chance.low == pytest.approx(wilson.low)


def test_documents_move_the_probability_of_improvement():
    sizes = np.full(9, 1000)
    gaps = np.tile([30.0, -20, 30, -20, 30, -20, 30, -20, -10], (40, 1))
    nll = np.full((40, 9), 1400.0)
    chance = compare(nll, nll + gaps, sizes, seed=14).probability_of_improvement
    assert chance.value == 1.0
    assert chance.low == 0.0


def test_five_seeds_of_the_same_config_are_seldom_called_different():
    rng = np.random.default_rng(15)
    false_alarms = 0
    for simulation in range(200):
        nll_a, sizes = scores(5, 30, rng=rng)
        nll_b = nll_a + 0.02 * LN2 * sizes * rng.normal(size=(5, 1))
        false_alarms += compare(nll_a, nll_b, sizes, draws=300, seed=simulation).real
    assert false_alarms / 200 <= 0.05


@pytest.mark.parametrize("seeds", range(2, 60))
def test_the_widening_is_students(seeds):
    assert significance._widening(seeds) == pytest.approx(student(seeds), rel=1e-3)


@pytest.mark.parametrize(("agreeing", "seeds"), [(3, 3), (5, 5), (5, 6), (9, 10), (0, 4)])
def test_the_sign_test_is_scipys(agreeing, seeds):
    exact = stats.binomtest(agreeing, seeds, alternative="greater").pvalue
    assert significance._sign_test(agreeing, seeds) == pytest.approx(exact)


def comparison(value, low, high, *, real, seeds=5, agreeing=5):
    chance = Interval(1, 0.5, 1)
    return Comparison(Interval(value, low, high), chance, real, seeds, 1812, agreeing)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (
            comparison(0.021, 0.010, 0.033, real=True),
            "A is better than B by 0.021 bits per byte (95 % interval 0.010 to 0.033): "
            "the difference is real, with 5 seeds and 1,812 documents.",
        ),
        (
            comparison(-0.021, -0.033, -0.010, real=False, seeds=3, agreeing=3),
            "B is better than A by 0.021 bits per byte (95 % interval 0.010 to 0.033): "
            "the difference is probably real, but 3 seeds cannot prove it (by a sign test p is at "
            "least 0.125); 5 seeds could.",
        ),
        (
            comparison(0.004, -0.003, 0.011, real=False, seeds=3, agreeing=2),
            "A is ahead of B by 0.004 bits per byte, but the 95 % interval (-0.003 to 0.011) "
            "includes zero: with 3 seeds and 1,812 documents this search cannot tell them apart.",
        ),
        (
            comparison(0.004, 0.001, 0.011, real=False, seeds=6, agreeing=4),
            "A is better than B by 0.004 bits per byte (95 % interval 0.001 to 0.011), but only "
            "in 4 of 6 seeds: with 1,812 documents this search cannot tell them apart.",
        ),
        (
            comparison(0.00043, 0.00031, 0.00052, real=False, seeds=1, agreeing=1),
            "A is better than B by 0.00043 bits per byte (95 % interval 0.00031 to 0.00052): "
            "the difference is probably real, but 1 seed cannot prove it (by a sign test p is at "
            "least 0.5); 5 seeds could.",
        ),
    ],
)
def test_the_sentence_says_no_more_than_the_seeds_allow(result, words):
    assert sentence(result, "A", "B") == words


def test_the_intraclass_correlation_is_the_published_one():
    assert intraclass_correlation(SHROUT_FLEISS) == pytest.approx(0.17, abs=0.005)


def test_unequal_groups_follow_the_analysis_of_variance():
    groups = [[1.0, 1.2], [2.0, 2.3, 2.1], [1.4, 1.9, 1.6, 1.5]]
    ratio = stats.f_oneway(*groups).statistic
    typical_size = (9 - (4 + 9 + 16) / 9) / 2
    expected = (ratio - 1) / (ratio + typical_size - 1)
    assert intraclass_correlation(groups) == pytest.approx(expected)


@pytest.mark.parametrize(
    "undefined", [[], [[1.0, 2.0]], [[1.0], [2.0]], [[0.1, 0.1, 0.1], [0.1, 0.1]]]
)
def test_an_undefined_intraclass_correlation_is_none(undefined):
    assert intraclass_correlation(undefined) is None


def test_configs_that_differ_less_than_their_seeds_have_correlation_zero():
    assert intraclass_correlation([[1.0, 3.0], [1.0, 3.0], [1.1, 2.9]]) == 0.0


@pytest.mark.parametrize(
    ("correlation", "words"),
    [
        (None, "unknown"),
        (0.0, "noise hides the differences"),
        (0.4, "6 seeds are needed to rank them reliably, not 3"),
        (0.95, "95 % of the scores' variance is between configs, not seeds: 3 seeds rank"),
    ],
)
def test_the_advice_says_whether_to_add_seeds_or_configs(correlation, words):
    assert words in replication_advice(correlation, seeds=3)


@pytest.mark.parametrize(
    ("nll", "sizes", "words"),
    [
        ([1.0, 2.0], [1, 1], "found shape"),
        (np.ones((0, 4)), [1] * 4, "found shape"),
        (np.ones((2, 1)), [1], "at least 2 documents"),
        (np.ones((2, 3)), [1, 1], "one per document"),
        ([[1.0, math.nan]], [1, 1], "nll holds values that are not finite"),
        ([[1.0, 2.0]], [1, 0], "bytes must be positive"),
        ([[1.0, 2.0]], [1, math.inf], "bytes must be positive"),
    ],
)
def test_tables_of_the_wrong_shape_or_with_holes_are_refused(nll, sizes, words):
    with pytest.raises(ValueError, match=words):
        multi_bootstrap(nll, sizes, seed=0)


def test_unpaired_tables_lists_with_holes_and_no_draws_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        compare(np.ones((2, 3)), np.ones((3, 3)), [1, 1, 1], seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        multi_bootstrap(np.ones((2, 3)), [1, 1, 1], draws=0, seed=0)
    with pytest.raises(ValueError, match="finite numbers for each config"):
        intraclass_correlation([[1.0, math.nan], [1.0]])
