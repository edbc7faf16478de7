"""Documents on their way to the tape: cleaned, hashed and signed by all processors, kept on disk.

Everything waits in files, a column each: memory holds those that a step needs, at most about 110
bytes a document at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from smallm import duplicates
from smallm.documents import LARGEST_DOCUMENT, Document, Draft, Dropped
from smallm.hashes import HASH, content_hash

COLUMNS: dict[str, np.dtype[Any]] = {
    "hash": HASH,
    "size": np.dtype(np.int32),
    "words": np.dtype(np.int32),
    "id_size": np.dtype(np.int32),
    "source": np.dtype(np.int32),
}
"""What is kept of every document beside its text and signature, each in a file."""
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
    documents, encoded = [], []
    for item in items:
        document = item.finished(dropped) if isinstance(item, Draft) else item
        if document is None:
            continue
        content = document.text.encode("utf-8")
        if len(content) > LARGEST_DOCUMENT:
            dropped.add(f"document over {LARGEST_DOCUMENT:,} bytes", document.id)
            continue
        documents.append(document)
        encoded.append(content)
    texts = [document.text for document in documents]
    hashes = [content_hash(each) for each in encoded]
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


@dataclass(frozen=True)
class Spool:
    """The documents in the order they came, with duplicates, in files: a column is read at need."""

    folder: Path
    count: int
    bands: int
    names: Sequence[str]
    """The sources, by the numbers in their column."""

    def __len__(self) -> int:
        return self.count

    def column(self, name: str) -> NDArray[Any]:
        """A figure of every document, by a name of COLUMNS, or `band-N`: the hashes of a band."""
        kind: np.dtype[Any] = COLUMNS.get(name, duplicates.HASH)
        found: NDArray[Any] = np.fromfile(self.folder / f"{name}.bin", dtype=kind)
        return found.reshape(-1, 2) if name == "hash" else found

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        ends = np.cumsum(self.column("size"), dtype=np.int64)
        ends += np.cumsum(self.column("id_size"), dtype=np.int64)
        return np.concatenate([[0], ends])

    def records(self, rows: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """The id and the UTF-8 text of documents."""
        sizes = self.column("id_size")
        with (self.folder / "texts.bin").open("rb") as file:
            for row in rows:
                file.seek(self._starts[row])
                name = file.read(sizes[row]).decode("utf-8", "replace")
                yield name, file.read(self._starts[row + 1] - file.tell())

    def signatures_at(self, rows: NDArray[np.int64]) -> duplicates.Signatures:
        """The signatures of documents."""
        path = self.folder / "signatures.bin"
        mapped = np.memmap(path, dtype=np.uint32, mode="r").reshape(-1, duplicates.PERMUTATIONS)
        return np.asarray(mapped[rows])


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
    bands = duplicates.banding(threshold)[0]
    codes: dict[str, int] = {}
    count = 0
    arguments = ((batch, threshold) for batch in batches(items))
    with ExitStack() as files, closing(in_order(prepared, arguments, workers=workers)) as made:

        def opened(name: str) -> IO[bytes]:
            return files.enter_context((folder / f"{name}.bin").open("wb"))

        texts, signatures = opened("texts"), opened("signatures")
        columns = {name: opened(name) for name in COLUMNS}
        columns |= {f"band-{number}": opened(f"band-{number}") for number in range(bands)}
        for batch in made:
            dropped.merge(batch.dropped)
            number = len(batch.ids) if most is None else min(len(batch.ids), most - count)
            count += number
            labels = [each.encode("utf-8", "replace") for each in batch.ids[:number]]
            start = 0
            for label, size in zip(labels, batch.sizes[:number].tolist(), strict=True):
                texts.write(label + batch.text[start : start + size])
                start += size
            signatures.write(batch.signatures[:number].tobytes())
            figures = {
                "hash": batch.hashes,
                "size": batch.sizes,
                "words": batch.words,
                "id_size": np.array([len(label) for label in labels], dtype=np.int32),
                "source": np.array(
                    [codes.setdefault(each, len(codes)) for each in batch.sources], dtype=np.int32
                ),
                **{f"band-{n}": column for n, column in enumerate(batch.bands.T)},
            }
            for name, figure in figures.items():
                # on the way from a worker a column may have changed its byte order
                kind = COLUMNS.get(name, duplicates.HASH)
                columns[name].write(np.asarray(figure[:number], kind).tobytes())
            if count == most:
                break
    return Spool(folder, count, bands, list(codes))


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
) -> Generator[Made]:
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
