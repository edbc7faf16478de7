"""Ids are drawn as often as they are probable, and never outside what is kept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smallm.errors import DamagedModelError
from smallm.predictors import Decoding
from smallm.predictors.sampling import choose, kept_logits


def test_ids_are_drawn_as_often_as_they_are_probable():
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, -torch.inf])
    generator = torch.Generator().manual_seed(1)
    count = 20_000
    drawn = torch.bincount(
        torch.tensor([choose(logits, Decoding(), generator) for _ in range(count)]), minlength=5
    )
    for share, probability in zip(
        (drawn / count).tolist(), logits.softmax(0).tolist(), strict=True
    ):
        assert share == pytest.approx(probability, abs=4 * (probability / count) ** 0.5)


@given(
    logits=st.lists(st.floats(-50, 50), min_size=1, max_size=40),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(1, 40),
    temperature=st.floats(0.05, 20),
    seed=st.integers(0, 2**40),
)
def test_what_is_drawn_was_kept(logits, top_p, top_k, temperature, seed):
    decoding = Decoding(top_p=top_p, top_k=top_k, temperature=temperature)
    values = torch.tensor(logits)
    chosen = choose(values, decoding, torch.Generator().manual_seed(seed))
    assert kept_logits(values, decoding)[chosen] > -torch.inf


@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_the_ends_of_chance_draw_ids_that_are_possible(monkeypatch, drawn):
    monkeypatch.setattr(torch, "rand", lambda *_, dtype, **__: torch.tensor(drawn, dtype=dtype))
    logits = torch.tensor([-torch.inf, 1.0, 1.0, -torch.inf])
    assert choose(logits, Decoding(), torch.Generator()) == (1 if drawn == 0 else 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_damaged_model_is_told(temperature, value):
    other = 1.0 if value != value else value
    with pytest.raises(DamagedModelError, match="damaged"):
        choose(torch.tensor([other, value]), Decoding(temperature=temperature), torch.Generator())
