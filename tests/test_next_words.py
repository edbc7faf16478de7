"""Next words; the oracle is every text that a small model can write, read by a regular expression.

Other oracles: the model without a cache, minicons, and the telescoping identity.
"""

import itertools
import math
import re
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import random_core
from tiny_models import gpt2, gpt_neo, llama

from smallm import word_search
from smallm.errors import DamagedModelError, SmallmError
from smallm.models.huggingface import wrap
from smallm.next_words import (
    next_words,
    rank_at_most,
    searched,
    word_log_probability,
    word_positions,
)
from smallm.predictors import expansion as of_model
from smallm.predictors.causal import Causal
from smallm.settings import ModelSettings
from smallm.word_search import Lexicon, Node, Rest, Search, lexicon_of

# A special id, ids of white space only, with it before, inside and after, halves of a character.
POOL = [
    *(b"", b" ", b" a", b"a", b"b", b" ab", b"b ", b"a\nb", b" \xc3", b"\xa9", b"\n", b"\ta b"),
    *(b"a\n", b"b\n"),
]
DEPTH = 3  # ids that a table writes before it ends the text


class Table:
    """A random model: the next id depends on the number of ids and the last one."""

    def __init__(self, ids, seed, spread):
        rng = np.random.default_rng(seed)
        self.token_bytes = tuple(POOL[i] for i in ids)
        self.ends = frozenset({self.token_bytes.index(b"")})
        size = len(ids)
        self.scores = torch.tensor(rng.normal(0, spread, (DEPTH + 1, size + 1, size)))
        self.scores[DEPTH] = -math.inf
        self.scores[DEPTH, :, min(self.ends)] = 0
        self.scores = self.scores.log_softmax(-1)
        self.looked_at = 0

    def __call__(self, prefixes):
        self.looked_at += len(prefixes)
        return torch.stack([self.scores[len(p), p[-1] if p else -1] for p in prefixes])

    def texts(self):
        """Every text with its probability."""
        end = min(self.ends)
        others = [i for i in range(len(self.token_bytes)) if i != end]
        for length in range(DEPTH + 1):
            for ids in itertools.product(others, repeat=length):
                path = zip(itertools.count(), [-1, *ids], [*ids, end], strict=False)
                mass = sum(self.scores[place, last, new].item() for place, last, new in path)
                yield b"".join(self.token_bytes[i] for i in ids), math.exp(mass)

    def exhaustive(self):
        """Probability of each next word, and of the end of the text as b""."""
        found = Counter()
        for text, mass in self.texts():
            if not text or text[:1].isspace():
                found[b"".join(re.findall(rb"\S+", text)[:1])] += mass
        total = sum(found.values())
        return {word: mass / total for word, mass in found.items()}


def tables():
    chosen = st.sets(st.integers(1, len(POOL) - 1), min_size=3, max_size=11)
    usable = chosen.filter(lambda ids: any(POOL[i][:1].isspace() for i in ids))
    return st.builds(
        lambda ids, seed, spread: Table([*sorted(ids), 0], seed, spread),
        usable,
        st.integers(0, 10**6),
        st.sampled_from([0.5, 2.0, 5.0]),
    )


def check_bounds(found, exhaustive):
    """Every word lies between its bounds; different bytes may look the same when decoded."""
    for word in found.words:
        alike = [p for w, p in exhaustive.items() if w.decode(errors="replace") == word.word]
        assert word.probability <= max(alike) + 1e-6
        assert word.upper >= min(alike) - 1e-6
        assert word.upper <= word.probability + found.residual + 1e-9


@settings(max_examples=60)
@given(tables(), st.integers(1, 4), st.integers(1, 5), st.sampled_from([5, 20, 60, 10_000]))
def test_certified_words_are_those_of_all_texts_that_the_model_can_write(table, k, batch, limit):
    exhaustive = table.exhaustive()
    found = next_words(table, table.token_bytes, table.ends, k=k, batch=batch, limit=limit)
    assert table.looked_at <= limit
    check_bounds(found, exhaustive)
    ended = exhaustive.get(b"", 0.0)
    assert found.end_of_text <= ended + 1e-6
    assert found.end_of_text + found.residual >= ended - 1e-6
    if not found.certified:
        assert limit < 10_000
        return
    true = sorted((p for word, p in exhaustive.items() if word and p > 2e-7), reverse=True)
    assert len(found.words) >= min(k, len(true))
    for word, expected in zip(found.words, true, strict=False):
        alike = [p for w, p in exhaustive.items() if w.decode(errors="replace") == word.word]
        assert min(abs(p - expected) for p in alike) < 1e-6
        assert word.probability - 1e-6 <= expected <= word.upper + 1e-6


@settings(max_examples=15)
@given(tables(), st.integers(1, 40))
def test_mass_is_conserved_wherever_the_search_ends(table, limit):
    lexicon = lexicon_of(table.token_bytes, table.ends)
    search = Search(lexicon, batch=2, limit=limit)
    searched(search.begin(), table)
    while searched(search.advance(search.gains(0.0)[2]), table):
        credited = sum(search.words.values()) + search.end_of_text
        assert credited + search.residual == pytest.approx(1, abs=1e-6)


@settings(max_examples=100)
@given(tables(), st.integers(1, 40), st.floats(1e-9, 0.3), st.data())
def test_no_word_exceeds_its_bounds_wherever_the_search_ends(table, limit, least, data):
    exhaustive = {word: p for word, p in table.exhaustive().items() if word}
    search = Search(lexicon_of(table.token_bytes, table.ends), batch=2, limit=limit)
    searched(search.begin(), table)
    while searched(search.advance(search.gains(data.draw(st.floats(0, 0.1)))[2]), table):
        pass
    gain, possible, blocking = search.gains(least)
    assert possible == (gain > least)
    assert bool(blocking) == possible
    for word, probability in exhaustive.items():
        lower = search.words.get(word, 0.0)
        assert lower - 1e-6 <= probability <= search.upper(word) + 1e-6
        assert probability <= lower + max(gain, least) + 1e-6
        assert possible or word in search.words or probability <= least + 1e-6


def test_a_bound_sums_up_all_ways_to_write_one_word_and_no_others():
    tokens = (b"", b" a", b" ab", b"b", b" abc", b" b", b" ab\n", b"\tab", b" ab c")
    lexicon = lexicon_of(tokens, frozenset({0}))
    masses = np.array([0, 0.1, 0.2, 0.05, 0.15, 0.3, 0.04, 0.08, 0.01], dtype=np.float32)
    most = dict(zip((lexicon.heads[n] for n in lexicon.order), lexicon.sums(masses), strict=True))
    assert most[b"ab"] == pytest.approx(0.1 + 0.2 + 0.08 + 0.04 + 0.01)
    assert most[b"abc"] == pytest.approx(0.1 + 0.2 + 0.08 + 0.15)  # " ab\n" ends before its c
    assert most[b"b"] == pytest.approx(0.05 + 0.3)
    assert sorted(lexicon.route(b"ab").on) == [0, 1, 2, 6, 7, 8]
    route = lexicon.route(b"a")
    assert sorted(lexicon.order[route.first : route.last]) == [1, 2, 4, 6, 7, 8]
    assert lexicon.route(b"zz").first == lexicon.route(b"zz").last


@settings(max_examples=60)
@given(tables(), st.sampled_from([5, 20, 10_000]), st.data())
def test_the_counting_rule_agrees_with_the_rank_among_all_words(table, limit, data):
    exhaustive = {word: p for word, p in table.exhaustive().items() if word}
    known = sorted(word for word in exhaustive if word.decode(errors="ignore").encode() == word)
    gold = data.draw(st.sampled_from([*known, b"never"]))
    own = exhaustive.get(gold, 0.0)
    rank = sum(p >= own for word, p in exhaustive.items() if word != gold)
    near = any(abs(p - own) < 1e-6 for word, p in exhaustive.items() if word != gold)
    found = rank_at_most(
        table, table.token_bytes, table.ends, word=gold.decode(), batch=2, limit=limit
    )
    for k, answer in found.items():
        assert near or answer is (rank < k) or (answer is None and (limit < 50 or own < 1e-6))


@pytest.mark.parametrize("few", [0, 1])
def test_words_are_certified_where_texts_are_bounded_all_at_once(few, monkeypatch):
    monkeypatch.setattr(word_search, "FEW", few)
    for seed in range(30):
        table = Table([1, 2, 3, 4, 5, 7, 12, 13, 0], seed, 2.0)
        exhaustive = table.exhaustive()
        found = next_words(table, table.token_bytes, table.ends, k=3, batch=2, limit=10_000)
        true = sorted((p for word, p in exhaustive.items() if word), reverse=True)
        assert found.certified
        for each, probability in zip(found.words, true[:3], strict=True):
            assert each.probability - 1e-6 <= probability <= each.upper + 1e-6


@settings(max_examples=60)
@given(tables(), st.integers(1, 3))
def test_each_look_is_at_new_mass(table, batch):
    search = Search(lexicon_of(table.token_bytes, table.ends), batch=batch, limit=10_000)
    searched(search.begin(), table)
    seen, taken = set(), []
    take = search._take
    search._take = lambda continuations: taken.extend(continuations) or take(continuations)
    while searched(search.advance(search.gains(0.0)[2]), table):
        assert all(each.mass > 0 for each in taken)
        ids = [(*each.rest.ids, each.number) for each in taken]
        assert seen.isdisjoint(ids)
        assert len(set(ids)) == len(ids)
        seen.update(ids)
        taken.clear()
    assert search.residual == pytest.approx(0, abs=1e-6)  # it went on to the end


def test_a_long_search_takes_more_prefixes_at_once_up_to_a_number(monkeypatch):
    monkeypatch.setattr(word_search, "MOST_TOGETHER", 3)
    table = Table([1, 2, 3, 4, 5, 7, 12, 13, 0], seed=0, spread=0.0)
    sizes = []

    def expand(prefixes):
        sizes.append(len(prefixes))
        return table(prefixes)

    next_words(expand, table.token_bytes, table.ends, k=4, batch=1, limit=10_000)
    assert sizes[:3] == [1, 1, 1]
    assert set(sizes) == {1, 2, 3}


class Listed:
    """A model given as probabilities after prefixes; elsewhere the text ends."""

    def __init__(self, **after):
        """`after` names tokens joined by commas, `_` for white space, "" being the prompt."""
        self.after = {
            name: {each.replace("_", " ").encode(): p for each, p in row.items()}
            for name, row in after.items()
        }
        self.token_bytes = (b"", *sorted({t for row in self.after.values() for t in row}))

    def __call__(self, prefixes):
        rows = []
        for prefix in prefixes:
            name = b",".join(self.token_bytes[i] for i in prefix).decode().replace(" ", "_")
            row = self.after.get(name or "prompt", {b"": 1.0})
            rows.append([row.get(token, 0.0) for token in self.token_bytes])
        return torch.tensor(rows).log()


@pytest.mark.parametrize(
    ("model", "word", "probability"),
    [
        # "b" is behind "a" until the lone space is followed, too
        (Listed(prompt={"_a": 0.4, "_b": 0.35, "_": 0.25}, _={"b": 1.0}), "b", 0.6),
        # two ids end the word "b", each less probable than the one of "a"
        (Listed(prompt={"_a": 0.4, "_": 0.6}, _={"b_x": 0.5, "b_y": 0.5}), "b", 0.6),
        # two ids lead to "bb", each less probable than the one of "a"
        (Listed(prompt={"_a": 0.35, "_b": 0.3, "_bb": 0.3, "_c": 0.05}, _b={"b": 1.0}), "bb", 0.6),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_word_that_gains_late_is_not_overlooked(model, word, probability, batch):
    found = next_words(model, model.token_bytes, frozenset({0}), k=1, batch=batch)
    assert found.certified
    assert found.words[0].word == word
    assert found.words[0].probability <= probability + 1e-6 <= found.words[0].upper + 2e-6


def test_ids_that_end_one_word_count_together_in_its_rank():
    model = Listed(prompt={"_a": 0.4, "_": 0.6}, _={"b_x": 0.5, "b_y": 0.5})
    for word, rank in (("a", 1), ("b", 0)):
        found = rank_at_most(model, model.token_bytes, frozenset({0}), word=word, ks=(1, 2))
        assert found == {1: rank < 1, 2: True}


def test_a_word_as_probable_as_the_asked_one_counts():
    model = Listed(prompt={"_a": 0.4, "_b": 0.4, "_c": 0.2})
    found = rank_at_most(model, model.token_bytes, frozenset({0}), word="a", ks=(1, 2))
    assert found == {1: False, 2: True}


class Spaces:
    """A model that writes white space nearly for ever."""

    token_bytes = (b"", b" ", b" x", b" y")

    def __call__(self, prefixes):
        rows = (
            [1, 0, 0, 0] if any(n > 1 for n in p) else [0, 0.99, 0.006, 0.004] for p in prefixes
        )
        return torch.tensor(list(rows), dtype=torch.float64).log()


@pytest.mark.parametrize("batch", [1, 8])
def test_prefixes_that_are_too_long_to_go_on_do_not_hold_up_the_others(batch):
    model = Spaces()
    search = Search(lexicon_of(model.token_bytes, frozenset({0})), batch=batch, limit=256)
    searched(search.begin(), model)
    while searched(search.advance(search.gains(1e-9)[2]), model):
        pass
    stuck = 0.99**word_search.LONGEST
    assert search.words[b"x"] == pytest.approx(0.6 * (1 - stuck), abs=1e-6)
    assert search.residual == pytest.approx(stuck, abs=1e-6)


@pytest.mark.parametrize(
    ("longest", "after", "best"),
    [
        # "ax" cannot be looked at, which another word on the same way can
        (
            2,
            {
                **{"prompt": {"_": 0.35, "_a": 0.3, "_ay": 0.2, "_z": 0.15}},
                **{"_": {"a": 0.9, "_": 0.1}, "_,a": {"x": 1.0}, "_a": {"y": 1.0}},
                "_,_": {"_": 1.0},
            },
            "ay",
        ),
        # "z" stays open, which the best word passes by what it still gains
        (1, {"prompt": {"_w": 0.3, "_": 0.35, "_v": 0.25, "\tw": 0.1}, "_": {"z": 1.0}}, "w"),
    ],
)
def test_a_word_that_cannot_be_looked_at_does_not_hold_up_the_others(
    longest, after, best, monkeypatch
):
    monkeypatch.setattr(word_search, "LONGEST", longest)
    model = Listed(**after)
    found = next_words(model, model.token_bytes, frozenset({0}), k=1, batch=1)
    assert found.certified
    assert [each.word for each in found.words] == [best]
    ranked = rank_at_most(model, model.token_bytes, frozenset({0}), word=best, ks=(1,), batch=1)
    assert ranked == {1: True}


def test_words_that_end_inside_an_id_need_no_look():
    after = {f"_w{n}_x": 0.2 - n / 100 for n in range(5)}
    model = Listed(prompt={**after, "_v": 1 - sum(after.values())})
    found = next_words(model, model.token_bytes, frozenset({0}), k=3, batch=1, limit=1)
    assert [each.word for each in found.words] == ["w0", "w1", "w2"]
    assert found.certified


def test_words_that_end_inside_ids_are_credited_when_the_limit_is_reached():
    model = Listed(prompt={"_v": 0.35, "_u_x": 0.33, "_u_y": 0.32})
    found = next_words(model, model.token_bytes, frozenset({0}), k=1, batch=1, limit=1)
    assert [each.word for each in found.words] == ["u"]
    assert found.certified


def test_what_is_remembered_of_texts_has_an_end(monkeypatch):
    monkeypatch.setattr(word_search, "REMEMBERED", 2)
    table = Table([1, 2, 3, 4, 5, 7, 0], 3, 2.0)
    lexicon = Lexicon(table.token_bytes, table.ends)
    for text in (b"a", b"ab", b"b", b"", b"a"):
        fresh = Lexicon(table.token_bytes, table.ends).route(text)
        found = lexicon.route(text)
        assert (found.on.tolist(), found.first, found.last) == (
            fresh.on.tolist(),
            fresh.first,
            fresh.last,
        )
        assert len(lexicon._routes) <= 2


def test_what_is_proposed_bounds_all_words_once_it_is_gone():
    tokens = tuple(POOL)
    lexicon = Lexicon(tokens, frozenset({0}))
    rng = np.random.default_rng(0)
    for _ in range(50):
        masses = rng.dirichlet(np.full(len(tokens), 0.5)).astype(np.float32)
        node = Node(lexicon, b"", [Rest((), masses)])
        node.changed()
        least = rng.uniform(0, node.mass)
        found = node.heaviest(least, 1000)
        left = node.masses.copy()
        for each in found:
            assert each.mass == pytest.approx(float(left[each.number]))
            assert lexicon.sums(left).max() > least  # each was needed
            left[each.number] = 0
        assert lexicon.sums(left).max() <= least + 1e-12


def test_a_search_looks_at_few_prefixes():
    looks = []
    for seed in range(20):
        table = Table([1, 2, 3, 4, 5, 7, 12, 13, 0], seed, 3.0)
        found = next_words(table, table.token_bytes, table.ends, k=2, batch=2)
        assert found.certified
        looks.append(table.looked_at)
    assert sum(looks) / len(looks) <= 7  # of 585 prefixes that such a table can have


def test_equally_probable_words_do_not_keep_the_search_going():
    table = Table([0, 2, 3, 4, 5], seed=0, spread=0.0)
    found = next_words(table, table.token_bytes, table.ends, k=2, limit=10_000)
    assert found.certified
    assert table.looked_at < 1000


def test_more_words_asked_for_than_there_are_gives_all_of_them():
    table = Table([0, 2], seed=0, spread=1.0)  # only " a" and the end
    assert [word.word for word in next_words(table, table.token_bytes, table.ends, k=2).words] == [
        "a"
    ]


@pytest.mark.parametrize("k", [0, -1, 6])
def test_an_impossible_k_is_one_line(k):
    table = Table([0, 2, 3, 4, 5], seed=0, spread=1.0)
    with pytest.raises(SmallmError, match=rf"k is {k}: it must be from 1 to the vocabulary's 5"):
        next_words(table, table.token_bytes, table.ends, k=k)


def test_a_model_that_lets_no_word_begin_is_one_line():
    table = Table([0, 2, 3], seed=0, spread=1.0)
    table.scores[0, :, :2] = -math.inf
    with pytest.raises(SmallmError, match="no word begin"):
        next_words(table, table.token_bytes, table.ends, k=1)


@pytest.mark.parametrize("depth", [0, 1])
def test_a_damaged_model_is_told_at_whichever_look_it_shows(depth):
    table = Table([0, 2, 3, 5], seed=0, spread=1.0)
    table.scores[depth] = math.nan
    with pytest.raises(DamagedModelError):
        next_words(table, table.token_bytes, table.ends, k=1)


# Real models


def causal(make, **options):
    return Causal("tiny", *make(**options))


def smallm_of(tokens, seed=3):
    shape = ModelSettings(window=5, embedding=6, hidden=7)
    core = random_core(shape, tokens.vocabulary)
    with torch.no_grad():
        core.bias.mul_(4)  # peaked, as trained models are
    model = wrap(core, shape, tokens.tokenizer)
    return Causal("smallm", model, tokens.tokenizer.huggingface())


def without_cache(predictor, prompt):
    """Expand by reading every prefix on its own from the beginning."""

    def expand(prefixes):
        prompt_ids = [*predictor.opening, *predictor.encode(prompt)]
        rows = []
        with torch.no_grad():
            for prefix in prefixes:
                ids = torch.tensor([[*prompt_ids, *prefix]])
                rows.append(predictor.model(ids).logits[0, -1].float().log_softmax(-1))
        return torch.stack(rows)

    return expand


PROMPT = "Neural networks are layers of weights"
PREFIXES = [[], [7], [40, 41], [12, 300, 33], [9]]


@pytest.mark.parametrize(
    ("make", "options"), [(gpt2, {"context": 96}), (gpt_neo, {"context": 96}), (llama, {})]
)
def test_a_shared_cache_gives_what_the_model_gives_without_one(make, options, monkeypatch):
    predictor = causal(make, **options)
    prompt = " ".join(PROMPT.split()[:2])
    expand = of_model.expansion(predictor, prompt)
    expected = without_cache(predictor, prompt)(PREFIXES)
    torch.testing.assert_close(expand(PREFIXES).log_softmax(1), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(expand([[]]), expand([[], [5]])[:1])
    monkeypatch.setattr(of_model, "MOST_COLUMNS", 20)  # as after a long prompt: few go together
    torch.testing.assert_close(expand(PREFIXES).log_softmax(1), expected, atol=1e-4, rtol=1e-4)


def test_a_smallm_of_either_tokenizer_reads_its_window_again(tokens):
    predictor = smallm_of(tokens)
    prompt = "The zqx model"
    last = len(predictor.token_bytes) - 1
    prefixes = [[], [7], [40, 41], [last], [last - 300, last - 256, 9]]
    torch.testing.assert_close(
        of_model.expansion(predictor, prompt)(prefixes).log_softmax(1),
        without_cache(predictor, prompt)(prefixes),
        atol=1e-4,
        rtol=1e-4,
    )


def test_prompts_side_by_side_are_looked_at_in_parts_that_fit(tokens, monkeypatch):
    predictor = smallm_of(tokens)
    asked = [("The small model", 3), ("A deep layer learns", 2), ("It", 4)]
    together = of_model.next_words_side_by_side(predictor, asked)
    monkeypatch.setattr(of_model, "MOST_COLUMNS", 12)
    parts = of_model.next_words_side_by_side(predictor, asked)
    for one, other, (_, k) in zip(together, parts, asked, strict=True):
        assert len(one.words) == k
        assert [each.word for each in one.words] == [each.word for each in other.words]
        assert [each.probability for each in one.words] == pytest.approx(
            [each.probability for each in other.words], abs=1e-6
        )


def test_next_words_of_a_smallm_hold_every_way_to_write_them(tokens):
    predictor = smallm_of(tokens)
    prompt = "The small model"
    found = predictor.next_words(prompt, k=5)
    assert found.certified
    assert len(found.words) == 5
    expand = of_model.expansion(predictor, prompt)
    for word in found.words:
        ids = predictor.encode(" " + word.word)
        one_way = word_log_probability(
            expand, predictor.token_bytes, predictor.end_ids, word_ids=ids
        )
        assert math.exp(one_way) <= word.upper + 1e-6


def test_a_word_model_knows_the_words_it_must_spell(word_tokens):
    predictor = smallm_of(word_tokens)
    prompt, word = "The small model", "zqx"
    ids = predictor.encode(" " + word)
    assert min(ids) >= word_tokens.vocabulary
    expand = of_model.expansion(predictor, prompt)
    chance = word_log_probability(expand, predictor.token_bytes, predictor.end_ids, word_ids=ids)
    assert -math.inf < chance < 0
    found = rank_at_most(
        expand, predictor.token_bytes, predictor.end_ids, word=word, ks=(1,), limit=500
    )
    assert found == {1: False}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty"),
        ("The model ", "ends in white space"),
        ("The model\n", "ends in white space"),
        ("word " * 60 + "end", "takes at most 32 before a next word"),
    ],
)
def test_a_prompt_without_a_next_word_is_one_line(prompt, message):
    with pytest.raises(SmallmError, match=message) as raised:
        causal(llama).next_words(prompt, k=3)
    assert "\n" not in str(raised.value)


def word_spans(predictor, text):
    """For each word after the first, (context, ids)."""
    for match in list(re.finditer(r"\S+", text))[1:]:
        context = text[: match.start()].rstrip()
        yield context, predictor.encode(text[len(context) : match.end()])


TEXT = "Neural networks are layers of weights. Each layer transforms its input"


def test_corrections_telescope_over_a_text():
    predictor = causal(gpt2, context=96)
    difference, tokens, ends = 0.0, predictor.token_bytes, predictor.end_ids
    begins = [i for i, t in enumerate(tokens) if i in ends or t[:1].isspace() or not t]
    spans = list(word_spans(predictor, TEXT))
    for context, ids in spans:
        expand = without_cache(predictor, context)
        corrected = word_log_probability(expand, tokens, ends, word_ids=ids)
        scores = expand([ids[:end] for end in range(len(ids))]).double()
        difference += corrected - sum(scores[i, each].item() for i, each in enumerate(ids))
    start, end = (
        without_cache(predictor, text)([[]])[0, begins].logsumexp(0).item()
        for text in (spans[0][0], TEXT)
    )
    assert difference == pytest.approx(end - start, abs=1e-4)


def test_word_probabilities_agree_with_minicons():
    """minicons begins words with the space sign alone, without the end of the text.

    It does not divide the first word that it scores by P(B | context); the last one counts as
    followed by P(B | text), as all words do here.
    """
    scorer_of = pytest.importorskip("minicons.scorer").IncrementalLMScorer
    predictor = causal(gpt2, context=96)
    predictor.opening = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = scorer_of(predictor.model, "cpu", tokenizer=predictor.tokenizer)
        scored = scorer.token_score(TEXT, bow_correction=True)[0]
    sign = predictor.tokenizer.convert_ids_to_tokens(predictor.encode(" "))[0][0]
    names = predictor.tokenizer.convert_ids_to_tokens(range(len(predictor.token_bytes)))
    as_minicons = tuple(b" " if name.startswith(sign) else b"x" for name in names)
    place = len(predictor.encode(TEXT.split(" ")[0]))
    for number, (context, ids) in enumerate(word_spans(predictor, TEXT)):
        theirs = sum(score for _, score in scored[place : place + len(ids)])
        place += len(ids)
        expand = without_cache(predictor, context)
        ours = word_log_probability(expand, as_minicons, frozenset(), word_ids=ids)
        if number or len(predictor.encode(TEXT.split(" ")[0])) > 1:
            assert ours == pytest.approx(theirs, abs=1e-3), context
    assert place == len(scored)


def test_positions_are_evenly_spread_words_with_their_context():
    texts = ["a b\tc d e f g h  i\nj ", "too short", " ".join(str(n) for n in range(100))]
    every = word_positions(texts, 1000, context_words=3)
    assert every[:2] == [("f g h", "i"), ("g h  i", "j")]
    assert len(every) == 2 + 92
    some = word_positions(texts, 5, context_words=3)
    assert some == [every[i] for i in (0, 23, 46, 70, 93)]
    assert word_positions(["one two"], 5) == []


def test_word_accuracy_counts_the_gold_words_in_the_certified_top(bpe_tokens):
    predictor = smallm_of(bpe_tokens)
    contexts = [c for c, _ in word_positions([bpe_tokens.tape.text(i) for i in range(6)], 6)]
    tops = [predictor.next_words(context, k=4) for context in contexts]
    assert all(top.certified for top in tops)
    places = [0, 1, 2, 3, 0, 2]
    gold = [top.words[place].word for top, place in zip(tops, places, strict=True)]
    found = of_model.word_accuracy(predictor, list(zip(contexts, gold, strict=True)), ks=(1, 3))
    assert found.hits == {1: 2, 3: 5}
    assert found.undecided == {1: 0, 3: 0}
    stopped = of_model.word_accuracy(
        predictor, list(zip(contexts, gold, strict=True)), ks=(1, 3), limit=1
    )
    assert stopped.positions == 6
    assert all(stopped.undecided[k] + stopped.hits[k] <= 6 for k in (1, 3))
    assert stopped.undecided[3] > 0
    with pytest.raises(SmallmError, match="no positions"):
        of_model.word_accuracy(predictor, [])
