"""Properties of the tape: cuts nest, nothing is on two sides, adding moves nothing."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallm.errors import SmallmError
from smallm.settings import CorpusSettings, TokenizerSettings
from smallm.strata import strata, stratified_places
from smallm.tape import Tape
from smallm.tape_building import build_tape
from smallm.token_tape import tokenize_tape

RATIOS = (0.75, 0.8, 0.9)


def write(folder, texts):
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:04}.txt").write_text(text, encoding="utf-8")
    return CorpusSettings(source="folder", path=folder)


def side_of(tape, ratio):
    cut = tape.training(ratio).last
    return {tape.text(number): number < cut for number in range(len(tape))}


def numbered(count, *, words=30):
    rng = np.random.default_rng(0)
    return [" ".join(f"w{w}" for w in rng.integers(0, 5000, words)) for _ in range(count)]


@given(st.floats(0.3, 0.95), st.floats(0.3, 0.95))
@settings(max_examples=30)
def test_a_smaller_cut_is_a_prefix_of_a_larger_one(tape, one, two):
    small, large = sorted((one, two))
    assert tape.training(small).first == tape.training(large).first == 0
    assert tape.training(small).last <= tape.training(large).last


def test_no_ratio_trains_on_the_held_out_slices(tape):
    selection, final = tape.heldout(RATIOS)
    assert selection.first == tape.training(0.9).last
    assert selection.last == final.first
    assert final.last == len(tape)


def test_shares_are_near_their_ratio(tape):
    for ratio in RATIOS:
        assert len(tape.training(ratio)) / len(tape) == pytest.approx(ratio, abs=0.06)


def test_adding_documents_moves_no_old_one(tmp_path):
    texts = numbered(400)
    few = build_tape(write(tmp_path / "few", texts[:200]), home=tmp_path / "home")
    many = build_tape(write(tmp_path / "many", texts), home=tmp_path / "home")
    for ratio in (0.5, 0.75, 0.9):
        before, after = side_of(few, ratio), side_of(many, ratio)
        assert all(after[text] == side for text, side in before.items())


def test_exact_and_near_duplicates_leave_one_copy_each(tmp_path):
    texts = numbered(60, words=60)
    near = [text + f" end {number}" for number, text in enumerate(texts[:10])]
    settings = write(tmp_path / "corpus", [*texts, *texts[:5], *near])
    tape = build_tape(settings, home=tmp_path / "home")
    assert tape.manifest["duplicates"] == {"exact": 5, "near": 10}
    assert len(tape) == 60
    kept = {tape.text(number) for number in range(len(tape))}
    for text, twin in zip(texts[:10], near, strict=True):
        assert (text in kept) != (twin in kept)


def test_another_process_builds_the_same_tape_and_tokens(small_corpus, tape, bpe_tokens, tmp_path):
    code = (
        "import sys; from pathlib import Path; from smallm.settings import *;"
        "from smallm.tape_building import *; from smallm.token_tape import *;"
        "t = build_tape(CorpusSettings(source='folder', path=Path(sys.argv[1])),"
        " home=Path(sys.argv[2]));"
        "k = tokenize_tape(t, TokenizerSettings(vocabulary=400), ratios=[.75, .8, .9]);"
        "print(t.manifest['digest'], k.manifest['digest'])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, str(small_corpus), str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed == [tape.manifest["digest"], bpe_tokens.manifest["digest"]]


def test_texts_and_bytes_come_back_as_they_were(small_corpus, tape):
    originals = {path.read_text(encoding="utf-8") for path in small_corpus.iterdir()}
    assert {tape.text(number) for number in range(len(tape))} <= originals
    assert tape.ends[-1] == sum(len(tape.text(n).encode()) for n in range(len(tape)))


@pytest.mark.parametrize("kind", ["bpe_tokens", "word_tokens"])
def test_tokens_of_each_document_decode_or_count_right(kind, request, tape):
    tokens = request.getfixturevalue(kind)
    tokenizer = tokens.tokenizer
    for number in (0, 17, len(tape) - 1):
        (ids,) = tokenizer.encode([tape.text(number)])
        first, last = tokens.ends[number], tokens.ends[number + 1]
        assert tokens.tokens[first] == 0
        np.testing.assert_array_equal(tokens.tokens[first + 1 : last], tokenizer.predicted(ids))
        assert tokens.spelling_nll[number] == pytest.approx(tokenizer.spelling_nll(ids).sum())


def test_stratified_places_are_even_where_the_hash_is_not(tmp_path):
    texts = [f"{f'rare{n} ' * 3}{' '.join(['common'] * (5 + n % 40))}" for n in range(120)]
    settings = write(tmp_path / "corpus", texts).model_copy(
        update={"order": "stratified", "near_duplicate_threshold": 1.0}
    )
    tape = build_tape(settings, home=tmp_path / "home")
    lengths = np.diff(tape.ends)
    half = tape.training(0.5).last
    assert half / len(tape) == pytest.approx(0.5, abs=0.06)
    assert lengths[:half].mean() == pytest.approx(lengths.mean(), rel=0.06)


@given(st.integers(1, 300), st.floats(0.05, 0.95))
@settings(max_examples=30)
def test_every_stratum_has_its_share_on_each_side_to_within_a_document(count, ratio):
    texts = numbered(count, words=12)
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    below = pd.Series(stratified_places(texts, hashes) < ratio)
    for _, members in below.groupby([column for _, column in strata(texts).items()]):
        assert abs(members.sum() - ratio * len(members)) <= 1 + 1e-9


def test_a_corpus_too_small_to_split_says_how_much_is_needed(tmp_path):
    tape = build_tape(write(tmp_path / "corpus", numbered(4)), home=tmp_path / "home")
    with pytest.raises(SmallmError, match=r"too small to split.*every slice needs at least"):
        tape.heldout(RATIOS)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 1.5])
def test_a_ratio_outside_zero_and_one_is_refused(tape, ratio):
    with pytest.raises(SmallmError, match="between 0 and 1"):
        tape.training(ratio)


def test_an_error_in_the_middle_leaves_nothing_behind(tmp_path, monkeypatch):
    settings = write(tmp_path / "corpus", numbered(50))
    home = tmp_path / "home"

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("smallm.tape_building.write_shard", full)
        with pytest.raises(SmallmError, match="No space left on device"):
            build_tape(settings, home=home)
    assert not list((home / "tapes").iterdir())
    assert isinstance(build_tape(settings, home=home), Tape)


def test_a_second_build_opens_the_first(tmp_path):
    settings = write(tmp_path / "corpus", numbered(50))
    first = build_tape(settings, home=tmp_path / "home")
    changed = (first.folder / "manifest.json").stat().st_mtime_ns
    again = build_tape(settings, home=tmp_path / "home")
    assert (again.folder / "manifest.json").stat().st_mtime_ns == changed
    (tmp_path / "corpus" / "new.txt").write_text("something else entirely, " * 5)
    assert build_tape(settings, home=tmp_path / "home").folder != first.folder


def test_a_tape_from_a_newer_version_is_refused(tape, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(SmallmError, match="newer"):
        Tape(tmp_path)


def test_the_tokenizer_learns_from_the_shortest_prefix_alone(tape):
    one = tokenize_tape(tape, TokenizerSettings(vocabulary=350), ratios=[0.75, 0.9])
    two = tokenize_tape(tape, TokenizerSettings(vocabulary=350), ratios=[0.75])
    assert one.folder == two.folder


def test_other_code_makes_another_tape(small_corpus, tmp_path, monkeypatch):
    settings = CorpusSettings(source="folder", path=small_corpus)
    first = build_tape(settings, home=tmp_path).folder
    assert build_tape(settings, home=tmp_path).folder == first
    monkeypatch.setattr("smallm.tape_building.code_digest", lambda *parts: "changed")
    assert build_tape(settings, home=tmp_path).folder != first


def test_documents_and_bytes_of_each_source_are_those_of_the_table(tape):
    rows = tape.documents.groupby("source", observed=True)["bytes"].agg(["size", "sum"])
    assert tape.by_source() == {
        name: {"documents": row["size"], "bytes": row["sum"]} for name, row in rows.iterrows()
    }
