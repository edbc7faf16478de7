"""What a corpus holds: sizes, lengths, growth of its vocabulary, overlap of its slices, strata.

One record, which the command line and the report show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from scipy.stats import chisquare

from smallm.duplicates import Hashes, ngrams
from smallm.strata import strata
from smallm.tape import Slice, Tape

Record = dict[str, Any]

NGRAM = 13  # words: what GPT-3 and others count as seen before
OVERLAP_BYTES = 16 * 2**20  # of a held-out slice: the rest of a larger one is as the first
TRAINING_BYTES = 2**30  # of the training text that is searched for them
GROWTH_BYTES = 2**28  # of the tape, whose different words fit into memory
STRATA_DOCUMENTS = 200_000
GROWTH_POINTS = 24
SAMPLE = 300  # characters


def corpus_profile(tape: Tape, ratios: Sequence[float], *, samples: int) -> Record:
    """Everything that `smallm corpus inspect` shows of a tape, for those split ratios."""
    parts = slices_of(tape, ratios)
    manifest = tape.manifest
    return {
        **{name: manifest[name] for name in ("documents", "words", "bytes", "duplicates")},
        "dropped": {reason: found["count"] for reason, found in manifest["dropped"].items()},
        "sources": tape.by_source(),
        "slices": {
            name: {"documents": len(part), "bytes": tape.bytes(part)}
            for name, part in parts.items()
        },
        "lengths": _lengths(tape),
        "vocabulary_growth": _growth(tape),
        "overlap": {
            name: _overlap(tape, training=parts[f"training {max(ratios):g}"], part=parts[name])
            for name in ("selection", "final")
        },
        "strata": _strata(tape, parts),
        "samples": [tape.text(n)[:SAMPLE] for n in range(min(samples, len(tape)))],
    }


def slices_of(tape: Tape, ratios: Sequence[float]) -> dict[str, Slice]:
    """The parts of a tape: training at each ratio, and the two that none of them trains on."""
    selection, final = tape.heldout(ratios)
    training = {f"training {ratio:g}": tape.training(ratio) for ratio in sorted(ratios)}
    return {**training, "selection": selection, "final": final}


def _lengths(tape: Tape) -> list[Record]:
    """Documents by their bytes, in classes that double."""
    sizes = np.diff(tape.ends)
    classes = Counter(int(size).bit_length() - 1 for size in sizes)
    first, last = min(classes), max(classes)
    return [
        {"from": 2**power, "to": 2 ** (power + 1) - 1, "documents": classes[power]}
        for power in range(first, last + 1)
    ]


def _growth(tape: Tape) -> list[Record]:
    """Distinct words among the first words of the tape, at points of equal ratio."""
    shown = tape.beginning(Slice("all", 0, len(tape)), GROWTH_BYTES)
    words = int(tape.column("words")[: shown.last].sum())
    ends = np.unique(np.geomspace(min(100, words), words, GROWTH_POINTS).astype(int)).tolist()
    seen: set[str] = set()
    stream = (word for text in tape.texts(shown) for word in text.split())
    points, read = [], 0
    for end in ends:
        seen.update(islice(stream, end - read))
        read = end
        points.append({"words": end, "distinct": len(seen)})
    return points


def _overlap(tape: Tape, *, training: Slice, part: Slice) -> Record:
    """The share of a held-out slice's 13-grams that the training text has, and the documents."""
    part = tape.beginning(part, OVERLAP_BYTES)
    training = tape.beginning(training, TRAINING_BYTES)
    rows = [long_ngrams(text) for text in tape.texts(part)]
    wanted = np.unique(np.concatenate(rows))
    found = np.zeros(len(wanted), dtype=bool)
    for text in tape.texts(training):
        hashes = long_ngrams(text)
        places = np.searchsorted(wanted, hashes)
        places[places == len(wanted)] = 0
        if len(wanted):
            found[places[wanted[places] == hashes]] = True
    known = wanted[found]
    seen = [int(np.isin(row, known).sum()) for row in rows]
    total = sum(map(len, rows))
    return {
        "documents": len(part),
        "training_bytes": tape.bytes(training),
        "ngrams": total,
        "seen": sum(seen),
        "share": sum(seen) / total if total else 0.0,
        "documents_with_any": sum(count > 0 for count in seen),
    }


def long_ngrams(text: str) -> Hashes:
    """A hash of each run of 13 words, lower-cased; none for a shorter text."""
    hashes, _ = ngrams([text], NGRAM)
    return hashes if len(text.split()) >= NGRAM else hashes[:0]


def _strata(tape: Tape, parts: dict[str, Slice]) -> Record:
    """How documents with many rare words spread over the slices, and whether that is chance."""
    # of more documents every so many: the held-out slices lie at the end
    places = range(0, len(tape), -(-len(tape) // STRATA_DOCUMENTS))
    rare = strata([tape.text(place) for place in places])["rare"].to_numpy()
    overall = np.bincount(rare, minlength=3) / len(rare)
    shares = {}
    for name, part in parts.items():
        first, last = np.searchsorted(places, [part.first, part.last])
        counts = np.bincount(rare[first:last], minlength=3)
        if counts.sum():
            expected = overall * counts.sum()
            kept = expected > 0
            tested = chisquare(counts[kept], expected[kept])
            shares[name] = {
                "shares": (counts / counts.sum()).tolist(),
                "p": float(tested.pvalue) if kept.sum() > 1 else 1.0,
            }
    return {"overall": overall.tolist(), "slices": shares}


def lines(profile: Record) -> Iterator[str]:
    """The profile as the terminal shows it."""
    for name in ("documents", "words", "bytes", "vocabulary", "bytes_per_token"):
        if name in profile:  # the last two are of a tokenizer
            yield f"{name.replace('_', ' '):18} {profile[name]:,}"
    if len(profile["sources"]) > 1:
        for name, sizes in profile["sources"].items():
            yield f"{name:18} {sizes['documents']:,} documents, {sizes['bytes']:,} bytes"
    removed = profile["duplicates"]
    yield f"{'duplicates':18} {removed['exact']:,} exact, {removed['near']:,} near, removed"
    for name, sizes in profile["slices"].items():
        yield f"{name:18} {sizes['documents']:,} documents, {sizes['bytes']:,} bytes"
    for name, found in profile["overlap"].items():
        yield (
            f"{'seen in training':18} {found['share']:.2%} of the {NGRAM}-grams of {name}, in "
            f"{found['documents_with_any']:,} of {found['documents']:,} documents"
        )
    yield from _strata_lines(profile["strata"])
    yield "\nlength in bytes"
    most = max(each["documents"] for each in profile["lengths"])
    for each in profile["lengths"]:
        bar = "#" * round(40 * each["documents"] / most)
        yield f"{each['from']:>11,}-{each['to']:<11,} {bar:40} {each['documents']:,}"
    yield "\nwords read, and how many of them are different"
    for each in profile["vocabulary_growth"][::4]:
        yield f"{each['words']:>12,} {each['distinct']:>12,}"


def _strata_lines(found: Record) -> Iterator[str]:
    yield "\ndocuments with few, some and many rare words; p is of a share like this by chance"
    shown = " ".join(f"{share:4.0%}" for share in found["overall"])
    yield f"{'all':18} {shown}"
    for name, each in found["slices"].items():
        shown = " ".join(f"{share:4.0%}" for share in each["shares"])
        yield f"{name:18} {shown}  p {each['p']:.2f}"
