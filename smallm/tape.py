"""The tape: a corpus without duplicates, in one stable order, memory-mapped.

Each document has a place in [0, 1) that follows from its content alone (order `hash`), so a cut
at ratio r parts the same documents everywhere and adding documents moves no old one. Training
parts are the prefixes below each ratio; the end of the tape, which no ratio trains on, is the
selection slice and the final slice.

    tape folder:   manifest.json and shards of consecutive documents: text-N.bin,
                   documents-N.parquet (id, source, hash, place, bytes, words)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from smallm.errors import SmallmError
from smallm.files import read_json

FORMAT = 2
MINIMUM_DOCUMENTS, MINIMUM_BYTES = 3, 2_000  # of a slice: less cannot be scored or split


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
        batches = self._batches(name)
        first = next(batches)
        found = np.empty(len(self), dtype=first.dtype)
        done = 0
        for part in chain([first], batches):
            found[done : done + len(part)] = part
            done += len(part)
        pa.default_memory_pool().release_unused()
        return found

    def _batches(self, name: str) -> Iterator[NDArray[Any]]:
        for shard in self.manifest["shards"]:
            for batch in pq.ParquetFile(self._table(shard)).iter_batches(columns=[name]):
                yield batch.to_pandas()[name].to_numpy()

    def by_source(self) -> dict[str, dict[str, int]]:
        """Documents and bytes of each source."""
        found: dict[str, dict[str, int]] = {}
        for shard in self.manifest["shards"]:
            for name, sizes in shard["sources"].items():
                total = found.setdefault(name, {"documents": 0, "bytes": 0})
                for what, size in sizes.items():
                    total[what] += size
        return dict(sorted(found.items()))

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
        return sum(int(np.searchsorted(places, ratio)) for places in self._batches("place"))

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
                f"the corpus is too small to split: of {len(self)} documents and "
                f"{self.ends[-1]:,} bytes in all its {part.name} slice would hold {len(part)} and "
                f"{self.bytes(part):,}; every slice needs at least {MINIMUM_DOCUMENTS} documents "
                f"and {MINIMUM_BYTES:,} bytes: give more text, or the same in more files or records"
            )
        return part


@lru_cache(maxsize=64)
def _opened(path: Path) -> IO[bytes]:
    """A file of a tape's text; only so many stay open, however many shards there are."""
    return path.open("rb", buffering=0)
