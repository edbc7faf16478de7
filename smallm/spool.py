"""Documents on their way to the tape: cleaned, hashed and signed by all processors, kept on disk.

What grows with their number in memory are arrays of about 50 bytes a document; texts, names and
signatures wait in files.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from smallm import duplicates
from smallm.documents import Document, Draft, Dropped

HASH_KEY = b"smallm tape 1"
HASH = np.dtype(">u8")  # two of them: bytes and numbers in the same order
BATCH_CHARACTERS = 2**20
ALONE = 8  # batches that are done before other processes are started: most corpora end there
IN_FLIGHT = 2  # batches for each process

Item = Document | Draft
Made = TypeVar("Made")


@dataclass
class Batch:
    """What became of some documents: a row each in the arrays, their texts one after another."""

    text: bytes
    sizes: NDArray[np.int32]
    words: NDArray[np.int32]
    hashes: NDArray[Any]  # (documents, 2) of HASH
    signatures: duplicates.Signatures
    bands: duplicates.Hashes
    ids: list[str]
    sources: list[str]
    dropped: Dropped


def prepared(items: list[Item], threshold: float) -> Batch:
    """Cleans, hashes and signs some documents."""
    dropped = Dropped()
    documents = []
    for item in items:
        document = item.finished(dropped) if isinstance(item, Draft) else item
        if document is not None:
            documents.append(document)
    texts = [document.text for document in documents]
    encoded = [text.encode("utf-8") for text in texts]
    hashes = [hashlib.blake2b(each, key=HASH_KEY, digest_size=16).digest() for each in encoded]
    signed = duplicates.signatures(texts)
    return Batch(
        text=b"".join(encoded),
        sizes=np.array([len(each) for each in encoded], dtype=np.int32),
        words=np.array([count_words(text) for text in texts], dtype=np.int32),
        hashes=np.frombuffer(b"".join(hashes), dtype=HASH).reshape(-1, 2),
        signatures=signed,
        bands=duplicates.band_hashes(signed, threshold=threshold),
        ids=[document.id for document in documents],
        sources=[document.source for document in documents],
        dropped=dropped,
    )


def count_words(text: str) -> int:
    r"""Parts between white space, as re.split(r"\s+") counts them for lm-evaluation-harness."""
    if not text or text.isspace():
        return 1 + bool(text)
    return len(text.split()) + text[0].isspace() + text[-1].isspace()


@dataclass
class Spool:
    """The documents in the order they came, with duplicates; texts and signatures in files."""

    folder: Path
    bands: int
    sizes: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    words: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    hashes: NDArray[Any] = field(default_factory=lambda: np.empty((0, 2), HASH))
    sources: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    id_sizes: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        ends = np.cumsum(self.sizes, dtype=np.int64)
        ends += np.cumsum(self.id_sizes, dtype=np.int64)
        return np.concatenate([[0], ends])

    def records(self, rows: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """The id and the UTF-8 text of documents."""
        with (self.folder / "texts.bin").open("rb") as file:
            for row in rows:
                file.seek(self._starts[row])
                name = file.read(self.id_sizes[row]).decode("utf-8", "replace")
                yield name, file.read(self.sizes[row])

    def signatures_at(self, rows: NDArray[np.int64]) -> duplicates.Signatures:
        """The signatures of documents."""
        path = self.folder / "signatures.bin"
        mapped = np.memmap(path, dtype=np.uint32, mode="r").reshape(-1, duplicates.PERMUTATIONS)
        return np.asarray(mapped[rows])

    def band(self, number: int) -> duplicates.Hashes:
        """The hashes of all documents in a band."""
        return np.fromfile(self.folder / f"band-{number:03}.bin", dtype=np.uint64)


def spool(
    items: Iterable[Item],
    folder: Path,
    dropped: Dropped,
    *,
    most: int | None,
    threshold: float,
    workers: int,
) -> Spool:
    """Writes at most so many documents as they come; the folder must exist."""
    kept = Spool(folder, duplicates.banding(threshold)[0])
    rows: dict[str, list[Any]] = {name: [] for name in ("sizes", "words", "hashes", "sources")}
    rows["id_sizes"] = []
    codes: dict[str, int] = {}
    count = 0
    arguments = ((batch, threshold) for batch in batches(items))
    with _writers(folder, kept.bands) as (texts, signatures, bands):
        for batch in in_order(prepared, arguments, workers=workers):
            dropped.merge(batch.dropped)
            number = len(batch.ids) if most is None else min(len(batch.ids), most - count)
            count += number
            names = [each.encode("utf-8", "replace") for each in batch.ids[:number]]
            start = 0
            for label, size in zip(names, batch.sizes[:number].tolist(), strict=True):
                texts.write(label + batch.text[start : start + size])
                start += size
            signatures.write(batch.signatures[:number].tobytes())
            for file, column in zip(bands, batch.bands[:number].T, strict=True):
                file.write(column.tobytes())
            rows["sizes"].append(batch.sizes[:number])
            rows["words"].append(batch.words[:number])
            rows["hashes"].append(batch.hashes[:number])
            rows["id_sizes"].append(np.array([len(each) for each in names], dtype=np.int32))
            known = [codes.setdefault(each, len(codes)) for each in batch.sources[:number]]
            rows["sources"].append(np.array(known, dtype=np.int32))
            if count == most:
                break
    for name, parts in rows.items():
        if parts:
            setattr(kept, name, np.concatenate(parts))
            parts.clear()
    kept.names = list(codes)
    return kept


@contextmanager
def _writers(folder: Path, bands: int) -> Iterator[tuple[Any, Any, list[Any]]]:
    files = [(folder / name).open("wb") for name in ("texts.bin", "signatures.bin")]
    files += [(folder / f"band-{number:03}.bin").open("wb") for number in range(bands)]
    try:
        yield files[0], files[1], files[2:]
    finally:
        for file in files:
            file.close()


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in runs of about a megabyte."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        parts = item.parts if isinstance(item, Draft) else (("", item.text),)
        size += sum(len(text) for _, text in parts)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def in_order(
    make: Callable[..., Made], arguments: Iterable[tuple[Any, ...]], *, workers: int
) -> Iterator[Made]:
    """The function's results in the order of its arguments, made by spawned processes.

    The first few are made here, and all of them with one worker. Memory holds a few results a
    worker, however many there are.
    """
    waiting = iter(arguments)
    if workers <= 1:
        yield from (make(*each) for each in waiting)
        return
    yield from (make(*each) for each in islice(waiting, ALONE))
    first = list(islice(waiting, 1))
    if not first:
        return
    futures: deque[Future[Made]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            for each in chain(first, waiting):
                futures.append(pool.submit(make, *each))
                if len(futures) >= IN_FLIGHT * workers:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
