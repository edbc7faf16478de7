"""A tape from documents: without duplicates, in order, written in shards."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smallm import duplicates
from smallm.documents import Dropped, check_heeded, mixture, source
from smallm.errors import SmallmError
from smallm.files import whole_folder, write_json
from smallm.hashes import distinct, hexadecimal, places_of, tape_digest
from smallm.provenance import code_digest
from smallm.settings import CorpusSettings
from smallm.spool import Item, Spool, spool
from smallm.strata import stratified_places
from smallm.tape import FORMAT, Tape

DOCUMENTS_AT_ONCE = 4096
# What decides the text of a tape: other code, other tape.
TAPE_CODE = (
    "documents", "duplicates.py", "hashes.py", "spool.py", "strata.py", "tape_building.py"
)  # fmt: skip
Columns = dict[str, Any]
"""Documents in tape order: id, source, hash, place, bytes, words, and text as UTF-8."""


def build_tape(settings: CorpusSettings, *, home: Path, workers: int = 1) -> Tape:
    """The tape of a corpus under the home: opened if it is there, else read, parted and written."""
    folder, identity = tape_folder(settings, home)
    if not (folder / "manifest.json").exists():
        dropped = Dropped()
        with whole_folder(folder) as temporary:
            documents = source(settings.source).read(
                settings, dropped, workers=workers, scratch=temporary
            )
            _write_tape(documents, dropped, settings, identity, temporary, workers=workers)
    return Tape(folder)


def tape_folder(settings: CorpusSettings, home: Path) -> tuple[Path, dict[str, Any]]:
    """Where the tape of a corpus lies, and what it is known by."""
    check_heeded(settings)
    identity = {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json"),
        "fingerprint": dict(source(settings.source).fingerprint(settings)),
        "code": code_digest(*TAPE_CODE),
        "source": settings.source,
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return home / "tapes" / f"{settings.source}-{name}", identity


def _write_tape(
    documents: Iterable[Item],
    dropped: Dropped,
    settings: CorpusSettings,
    identity: dict[str, Any],
    folder: Path,
    *,
    workers: int,
) -> None:
    start = time.perf_counter()
    threshold = settings.near_duplicate_threshold
    (folder / "spool").mkdir()
    waiting = spool(
        documents,
        folder / "spool",
        dropped,
        most=settings.max_documents,
        threshold=threshold,
        workers=workers,
    )
    if settings.max_documents is None or len(waiting) < settings.max_documents:
        dropped.check()  # everything was read
    if not len(waiting):
        raise no_text(settings, dropped)
    rows, removed = _distinct_rows(waiting, threshold)
    if weights := mixture.weights(settings):
        sources, sizes = waiting.column("source")[rows], waiting.column("size")[rows]
        members = {
            name: sources == (waiting.names.index(name) if name in waiting.names else -1)
            for name in weights
        }
        rows = rows[weighted(waiting.column("hash")[rows], sizes, members, weights, dropped)]
    hashes = waiting.column("hash")
    places: NDArray[np.float64] | None = None  # in hash order they follow from the hashes
    if settings.order == "stratified":
        named = [hexadecimal(each) for each in hashes[rows]]
        places = stratified_places(_Texts(waiting, rows), named)
        ranked = np.argsort(places, kind="stable")
        rows, places = rows[ranked], places[ranked]
    name = hexadecimal(hashes[rows[0]])
    shard = write_shard(_columns(waiting, hashes, rows, places), folder, name=name)
    pa.default_memory_pool().release_unused()
    shutil.rmtree(folder / "spool")
    write_manifest(
        folder,
        identity,
        [shard],
        digest=tape_digest(hashes[part] for part in _parts(rows)),
        removed=removed,
        dropped=dropped,
        seconds=time.perf_counter() - start,
    )


def _distinct_rows(waiting: Spool, threshold: float) -> tuple[NDArray[np.int64], dict[str, int]]:
    """The rows without duplicates and near duplicates, in hash order; how many were removed."""
    order = distinct(waiting.column("hash"))
    near = duplicates.followers(
        (
            pairs
            for number in range(waiting.bands)
            for pairs in duplicates.candidates(waiting.column(f"band-{number}")[order])
        ),
        lambda places: waiting.signatures_at(order[places]),
        threshold=threshold,
    )
    return np.delete(order, near), {"exact": len(waiting) - len(order), "near": len(near)}


def _parts(rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (rows[at : at + DOCUMENTS_AT_ONCE] for at in range(0, len(rows), DOCUMENTS_AT_ONCE))


def no_text(settings: CorpusSettings, dropped: Dropped) -> SmallmError:
    """What to raise for a corpus of which nothing is left: it says what took what."""
    return SmallmError(f"source {settings.source!r} holds no usable text{_reasons(dropped)}")


def write_shard(columns: Iterable[Columns], folder: Path, *, name: str) -> dict[str, Any]:
    """Writes a run of documents in tape order, given in parts; says what the shard holds."""
    documents = size = words = 0
    sources: dict[str, dict[str, int]] = {}
    schema = pa.schema(
        {
            "id": pa.string(),
            "source": pa.dictionary(pa.int32(), pa.string()),
            "hash": pa.string(),
            "place": pa.float64(),
            "bytes": pa.int32(),
            "words": pa.int32(),
        }
    )
    with (
        (folder / f"text-{name}.bin").open("wb") as texts,
        pq.ParquetWriter(folder / f"documents-{name}.parquet", schema) as table,
    ):
        for part in columns:
            texts.writelines(part.pop("text"))
            table.write_table(pa.table({**part}, schema=schema))
            documents += len(part["id"])
            size += int(sum(part["bytes"]))
            words += int(sum(part["words"]))
            named, sizes = np.asarray(part["source"]), np.asarray(part["bytes"])
            for each in sorted(set(part["source"])):
                total = sources.setdefault(str(each), {"documents": 0, "bytes": 0})
                total["documents"] += int((named == each).sum())
                total["bytes"] += int(sizes[named == each].sum())
    about = {"documents": documents, "bytes": size, "words": words, "sources": sources}
    return {"name": name, **about}


def write_manifest(
    folder: Path,
    identity: dict[str, Any],
    shards: Sequence[dict[str, Any]],
    *,
    digest: str,
    removed: dict[str, int],
    dropped: Dropped,
    seconds: float,
) -> None:
    """Writes what makes a folder a tape, last of all."""
    totals = {
        name: sum(shard[name] for shard in shards) for name in ("documents", "bytes", "words")
    }
    write_json(
        folder / "manifest.json",
        {
            **identity,
            **totals,
            "duplicates": removed,
            "dropped": dropped.as_dict(),
            "digest": digest,
            "shards": list(shards),
            "seconds": round(seconds, 3),
        },
    )


def _columns(
    waiting: Spool,
    hashes: NDArray[Any],
    rows: NDArray[np.int64],
    places: NDArray[np.float64] | None,
) -> Iterator[Columns]:
    """The documents of a spool in this order, in parts as `write_shard` takes them."""
    sources, sizes, words = (waiting.column(name) for name in ("source", "size", "words"))
    done = 0
    records = waiting.records(rows.tolist())
    for part in _parts(rows):
        ids, texts = zip(*islice(records, len(part)), strict=True)
        mine = hashes[part]
        yield {
            "id": ids,
            "source": [waiting.names[code] for code in sources[part].tolist()],
            "hash": [hexadecimal(each) for each in mine],
            "place": places_of(mine) if places is None else places[done : done + len(part)],
            "bytes": sizes[part],
            "words": words[part],
            "text": texts,
        }
        done += len(part)


def weighted(
    hashes: NDArray[Any],
    sizes: NDArray[Any],
    members: Mapping[str, NDArray[np.bool_]],
    weights: Mapping[str, float],
    dropped: Dropped,
) -> NDArray[np.bool_]:
    """Which documents stay so that the bytes of the sources stand in the ratio of the weights.

    `members` says for each source which documents are its own.

    As many as there can be, so that every part's bytes are its share but for half a document; which
    ones follows from their hashes, by other digits than their place.
    """
    held = {name: int(sizes[mine].sum()) for name, mine in members.items()}
    missing = [name for name, size in held.items() if not size]
    if missing:
        raise SmallmError(f"part {missing[0]!r} of the mixture holds no text{_reasons(dropped)}")
    total = min(held[name] / weight for name, weight in weights.items())
    draws = (hashes[:, 1].astype(np.uint64) >> np.uint64(12)) / 2**52
    stays = np.zeros(len(hashes), dtype=bool)
    for name, weight in weights.items():
        mine = np.flatnonzero(members[name])
        drawn = mine[np.argsort(draws[mine], kind="stable")]
        middles = np.cumsum(sizes[drawn], dtype=np.float64) - sizes[drawn] / 2
        stays[drawn[middles <= total * weight]] = True
        stays[drawn[0]] = True
        left = hashes[mine[~stays[mine]]]
        if len(left):
            first = f"document {hexadecimal(left[0])}"
            dropped.add(f"{name}: more than its weight in the mixture", first, len(left))
    return stays


def _reasons(dropped: Dropped) -> str:
    reasons = [
        f"{count} {reason} (such as {dropped.places[reason][0]})"
        for reason, count in dropped.counts.items()
    ]
    return f"; left out: {', '.join(reasons)}" if reasons else ""


class _Texts(Sequence[str]):
    """Texts of some rows of a spool, read one at a time."""

    def __init__(self, waiting: Spool, rows: NDArray[np.int64]) -> None:
        self._waiting = waiting
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        ((_, text),) = self._waiting.records([int(self._rows[number])])
        return text.decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (text.decode("utf-8") for _, text in self._waiting.records(self._rows.tolist()))
