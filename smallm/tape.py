"""The tape: a corpus without duplicates, in one stable order, memory-mapped.

Each document has a place in [0, 1) that follows from its content alone (order `hash`), so a cut
at ratio r parts the same documents everywhere and adding documents moves no old one. Training
parts are the prefixes below each ratio; the end of the tape, which no ratio trains on, is the
selection slice and the final slice.

    tape folder:   manifest.json and shards of consecutive documents: text-N.bin,
                   documents-N.parquet (id, source, hash, place, bytes, words)
    tokens folder: tokens.bin (uint16, each document opened by id 0), documents.npz, tokenizer files
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smallm import duplicates
from smallm.documents import Dropped, check_filters, mixture, source
from smallm.encoding import encoded_stretch
from smallm.errors import SmallmError
from smallm.files import read_json, whole_folder, write_json
from smallm.provenance import code_digest
from smallm.settings import CorpusSettings, TokenizerSettings
from smallm.spool import HASH, Item, Spool, in_order, spool
from smallm.strata import stratified_places
from smallm.tokens import Tokenizer, digest, load_tokenizer, train_tokenizer

FORMAT = 2
MINIMUM_DOCUMENTS, MINIMUM_BYTES = 3, 2_000  # of a slice: less cannot be scored or split
DOCUMENTS_AT_ONCE = 4096
BYTES_AT_ONCE = 2**20
TOKENIZER_BYTES = 2**28  # of the training prefix: more changes no merge that matters
# What decides the text of a tape, and its tokens: other code, other tape.
TAPE_CODE = ("documents", "duplicates.py", "spool.py", "strata.py", "tape.py")
TOKEN_CODE = ("encoding.py", "tokens.py", "ngrams.py")
Columns = dict[str, Any]
"""Documents in tape order: id, source, hash, place, bytes, words, and text as UTF-8."""


@dataclass(frozen=True)
class Slice:
    """Documents `first` up to, not including, `last` of a tape."""

    name: str
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first


class Tape:
    """An opened tape. Text is read on demand from the memory map."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / "manifest.json")
        if self.manifest["format"] > FORMAT:
            raise SmallmError(
                f"{folder}: tape format {self.manifest['format']} is from a newer SmaLLM"
            )

    @cached_property
    def documents(self) -> pd.DataFrame:
        """One row a document in tape order."""
        return pd.concat(
            [pd.read_parquet(self._table(shard)) for shard in self.manifest["shards"]],
            ignore_index=True,
        )

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Byte offset at which each document ends in the text, after a leading 0."""
        return np.concatenate([[0], np.cumsum(self.column("bytes"), dtype=np.int64)])

    @property
    def places(self) -> NDArray[np.float64]:
        """Place of each document in [0, 1), ascending."""
        return self.column("place")

    def column(self, name: str) -> NDArray[Any]:
        """One column of `documents`, without reading the others."""
        batches = (
            batch.to_pandas()[name].to_numpy()
            for shard in self.manifest["shards"]
            for batch in pq.ParquetFile(self._table(shard)).iter_batches(columns=[name])
        )
        first = next(batches)
        found = np.empty(len(self), dtype=first.dtype)
        done = 0
        for part in chain([first], batches):
            found[done : done + len(part)] = part
            done += len(part)
        pa.default_memory_pool().release_unused()
        return found

    @cached_property
    def _shard_starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(shard["bytes"] for shard in self.manifest["shards"])])

    def _table(self, shard: dict[str, Any]) -> Path:
        return self.folder / f"documents-{shard['name']}.parquet"

    def __len__(self) -> int:
        return int(self.manifest["documents"])

    def text(self, number: int) -> str:
        """The text of a document."""
        first, last = int(self.ends[number]), int(self.ends[number + 1])
        shard = int(np.searchsorted(self._shard_starts, first, side="right")) - 1
        place = first - int(self._shard_starts[shard])
        # read, not mapped: mapped pages of a large tape count as memory of this process
        file = _opened(self.folder / f"text-{self.manifest['shards'][shard]['name']}.bin")
        return os.pread(file.fileno(), last - first, place).decode("utf-8")

    def stretches(self, size: int) -> Iterator[tuple[Path, int, NDArray[np.int64]]]:
        """The text in runs of about so many bytes: file, first byte, bytes of each document."""
        first = 0
        for shard, start in zip(self.manifest["shards"], self._shard_starts, strict=False):
            path = self.folder / f"text-{shard['name']}.bin"
            last_of_shard = first + shard["documents"]
            while first < last_of_shard:
                wanted = self.ends[first] + size
                last = int(np.clip(np.searchsorted(self.ends, wanted), first + 1, last_of_shard))
                sizes = np.diff(self.ends[first : last + 1])
                yield path, int(self.ends[first] - start), sizes
                first = last

    def texts(self, part: Slice) -> Iterator[str]:
        """The texts of a slice in tape order."""
        return (self.text(number) for number in range(part.first, part.last))

    def training(self, ratio: float) -> Slice:
        """The prefix below a split ratio."""
        if not 0 < ratio < 1:
            raise SmallmError(f"split_ratio is {ratio}: must lie between 0 and 1, both excluded")
        return self._checked(Slice("training", 0, self._cut(ratio)))

    def heldout(self, ratios: Iterable[float]) -> tuple[Slice, Slice]:
        """The selection and the final slice: halves of what no ratio trains on."""
        largest = max(ratios)
        if not 0 < largest < 1:
            raise SmallmError(
                f"split_ratio {largest} leaves no held-out text: must lie between 0 and 1, "
                "both excluded"
            )
        first, middle = self._cut(largest), self._cut((1 + largest) / 2)
        return (
            self._checked(Slice("selection", first, middle)),
            self._checked(Slice("final", middle, len(self))),
        )

    def _cut(self, ratio: float) -> int:
        return int(np.searchsorted(self.places, ratio))

    def beginning(self, part: Slice, most_bytes: int | None) -> Slice:
        """The first documents of a slice that reach `most_bytes`: hash order makes them random."""
        if most_bytes is None:
            return part
        wanted = self.ends[part.first] + most_bytes
        last = int(np.searchsorted(self.ends, wanted))
        return Slice(part.name, part.first, min(max(last, part.first + 1), part.last))

    def bytes(self, part: Slice) -> int:
        """UTF-8 bytes of a slice."""
        return int(self.ends[part.last] - self.ends[part.first])

    def _checked(self, part: Slice) -> Slice:
        if len(part) < MINIMUM_DOCUMENTS or self.bytes(part) < MINIMUM_BYTES:
            raise SmallmError(
                f"the corpus is too small to split: its {part.name} slice would hold {len(part)} "
                f"documents and {self.bytes(part):,} bytes of {len(self)} documents and "
                f"{self.ends[-1]:,} bytes in all; every slice needs at least {MINIMUM_DOCUMENTS} "
                f"documents and {MINIMUM_BYTES:,} bytes"
            )
        return part


@lru_cache(maxsize=64)
def _opened(path: Path) -> IO[bytes]:
    """A file of a tape's text; only so many stay open, however many shards there are."""
    return path.open("rb", buffering=0)


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
    check_filters(settings)
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


def distinct(hashes: NDArray[Any]) -> NDArray[np.int64]:
    """The rows in the order of their hashes (documents, 2), the first of equal ones."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    ranked = hashes[order]
    new = np.concatenate([[True], (ranked[1:] != ranked[:-1]).any(axis=1)])
    return np.asarray(order[new])


def rows_of(wanted: NDArray[Any], ranked: NDArray[Any]) -> NDArray[np.int64]:
    """Where hashes (n, 2) stand among ascending ones, all different; -1 where they do not."""
    if not len(ranked):
        return np.full(len(wanted), -1)
    rows = np.searchsorted(ranked[:, 0], wanted[:, 0])
    while True:  # past those that share the first half, of which there is hardly ever one
        inside = np.minimum(rows, len(ranked) - 1)
        passed = (ranked[inside, 0] == wanted[:, 0]) & (ranked[inside, 1] < wanted[:, 1])
        passed &= rows < len(ranked)
        if not passed.any():
            found = (ranked[inside] == wanted).all(axis=1)
            return np.where(found, inside, -1)
        rows = rows + passed


def places_of(hashes: NDArray[Any]) -> NDArray[np.float64]:
    """The place of each hash in [0, 1): its first 52 bits."""
    return np.asarray((hashes[:, 0].astype(np.uint64) >> np.uint64(12)) / 2**52)


def hexadecimal(row: NDArray[Any]) -> str:
    """A hash as text."""
    return np.asarray(row, HASH).tobytes().hex()


def tape_digest(hashes: Iterable[NDArray[Any]]) -> str:
    """Identifies a tape: the digest of its documents' hashes in tape order, in any parts."""
    content = hashlib.sha256()
    for part in hashes:
        content.update(np.asarray(part, HASH).tobytes())
    return content.hexdigest()


def write_shard(columns: Iterable[Columns], folder: Path, *, name: str) -> dict[str, Any]:
    """Writes a run of documents in tape order, given in parts; says what the shard holds."""
    documents = size = words = 0
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
    return {"name": name, "documents": documents, "bytes": size, "words": words}


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

    As many as there can be; which ones follows from their hashes, by other digits than their place.
    """
    held = {name: int(sizes[mine].sum()) for name, mine in members.items()}
    missing = [name for name, size in held.items() if not size]
    if missing:
        raise SmallmError(f"part {missing[0]!r} of the mixture holds no text{_reasons(dropped)}")
    total = min(held[name] / weight for name, weight in weights.items())
    draws = (hashes[:, 1].astype(np.uint64) >> np.uint64(12)) / 2**52
    stays = np.zeros(len(hashes), dtype=bool)
    for name, weight in weights.items():
        mine = members[name]
        stays[mine] = draws[mine] < total * weight / held[name]
        left = hashes[mine & ~stays]
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


class TokenTape:
    """A tape with a tokenizer's tokens, memory-mapped; what training and evaluation read."""

    def __init__(self, tape: Tape, folder: Path) -> None:
        self.tape = tape
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / "manifest.json")
        self.tokens: NDArray[np.uint16] = np.memmap(
            folder / "tokens.bin", dtype=np.uint16, mode="r"
        )
        with np.load(folder / "documents.npz", allow_pickle=False) as table:
            self.ends: NDArray[np.int64] = table["ends"]  # (documents + 1,), opening ids included
            self.bytes: NDArray[np.int64] = table["bytes"]  # (documents,)
            self.words: NDArray[np.int64] = table["words"]
            self.spelling_nll: NDArray[np.float64] = table["spelling_nll"]  # nats

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of this tape."""
        return load_tokenizer(self.folder)

    @property
    def vocabulary(self) -> int:
        """Number of ids that a model predicts."""
        return int(self.manifest["vocabulary"])

    def span(self, part: Slice) -> tuple[int, int]:
        """First and last token position of a slice."""
        return int(self.ends[part.first]), int(self.ends[part.last])


def tokenize_tape(
    tape: Tape, settings: TokenizerSettings, *, ratios: Iterable[float], workers: int = 1
) -> TokenTape:
    """The tape's tokens; the tokenizer is trained on the shortest training prefix of the ratios."""
    shortest = min(ratios)
    name = f"{settings.tokenizer}-{settings.vocabulary}-{shortest:g}-{code_digest(*TOKEN_CODE)}"
    folder = tape.folder / "tokens" / name
    if not (folder / "manifest.json").exists():
        sample = tape.beginning(tape.training(shortest), TOKENIZER_BYTES)
        tokenizer = train_tokenizer(tape.texts(sample), settings)
        origin = {"settings": settings.model_dump(mode="json"), "trained_below": shortest}
        _write_token_folder(tape, tokenizer, folder, origin, workers=workers)
    return TokenTape(tape, folder)


def tokenize_with(tape: Tape, tokenizer: Tokenizer, *, workers: int = 1) -> TokenTape:
    """The tape in the tokens of a tokenizer that was trained elsewhere, such as a saved model's."""
    folder = tape.folder / "tokens" / f"given-{digest(tokenizer)}"
    if not (folder / "manifest.json").exists():
        _write_token_folder(tape, tokenizer, folder, {}, workers=workers)
    return TokenTape(tape, folder)


def _write_token_folder(
    tape: Tape, tokenizer: Tokenizer, folder: Path, origin: dict[str, Any], *, workers: int
) -> None:
    with whole_folder(folder) as temporary:
        tokenizer.save(temporary)
        _write_tokens(tape, temporary, workers=workers)
        known = {"vocabulary": tokenizer.vocabulary, "digest": digest(tokenizer)}
        write_json(temporary / "manifest.json", {"format": FORMAT, **origin, **known})


def _write_tokens(tape: Tape, folder: Path, *, workers: int) -> None:
    ends = np.zeros(len(tape) + 1, dtype=np.int64)
    spelling = np.zeros(len(tape))
    done = 0
    parts = ((folder, *part) for part in tape.stretches(BYTES_AT_ONCE))
    with (folder / "tokens.bin").open("wb") as file:
        for tokens, lengths, nll in in_order(encoded_stretch, parts, workers=workers):
            file.write(tokens.tobytes())
            last = done + len(lengths)
            ends[done + 1 : last + 1], spelling[done:last] = lengths, nll
            done = last
    np.savez(
        folder / "documents.npz",
        ends=np.cumsum(ends, out=ends),
        bytes=tape.column("bytes"),
        words=tape.column("words"),
        spelling_nll=spelling,
    )


def copy_tokenizer(tokens: TokenTape, folder: Path) -> None:
    """Copies the tokenizer's files beside a model."""
    for path in tokens.folder.iterdir():
        if path.name not in {"manifest.json", "tokens.bin", "documents.npz"}:
            shutil.copyfile(path, folder / path.name)
