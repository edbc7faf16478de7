"""The tape: a corpus without duplicates, in one stable order, memory-mapped.

Each document has a place in [0, 1) that follows from its content alone (order `hash`), so a cut
at ratio r parts the same documents everywhere and adding documents moves no old one. Training
parts are the prefixes below each ratio; the end of the tape, which no ratio trains on, is the
selection slice and the final slice.

    tape folder:   text.bin, documents.parquet (id, source, hash, place, end), manifest.json
    tokens folder: tokens.bin (uint16, each document opened by id 0), documents.npz, tokenizer files
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from smallm import duplicates
from smallm.documents import Document, Dropped, mixture, source
from smallm.errors import SmallmError
from smallm.files import read_json, whole_folder, write_json
from smallm.provenance import code_digest
from smallm.settings import CorpusSettings, TokenizerSettings
from smallm.strata import stratified_places
from smallm.tokens import END_ID, Tokenizer, digest, load_tokenizer, train_tokenizer

FORMAT = 1
HASH_KEY = b"smallm tape 1"
MINIMUM_DOCUMENTS, MINIMUM_BYTES = 3, 2_000  # of a slice: less cannot be scored or split
SIGNATURE_BATCH = 512
# What decides the text of a tape, and its tokens: other code, other tape.
TAPE_CODE = ("documents", "duplicates.py", "strata.py", "tape.py")
TOKEN_CODE = ("tokens.py", "ngrams.py")
WHITE_SPACE = re.compile(r"\s+")  # the word count of lm-evaluation-harness' wikitext task


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
        return pd.read_parquet(self.folder / "documents.parquet")

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Byte offset at which each document ends in the text, after a leading 0."""
        return np.concatenate([[0], self.documents["end"].to_numpy()])

    @cached_property
    def places(self) -> NDArray[np.float64]:
        """Place of each document in [0, 1), ascending."""
        return self.documents["place"].to_numpy()

    @cached_property
    def _text(self) -> mmap.mmap:
        with (self.folder / "text.bin").open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.documents)

    def text(self, number: int) -> str:
        """The text of a document."""
        return self._text[self.ends[number] : self.ends[number + 1]].decode("utf-8")

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


def build_tape(settings: CorpusSettings, *, home: Path, workers: int = 1) -> Tape:
    """The tape of a corpus under the home: opened if it is there, else read, parted and written."""
    origin = source(settings.source)
    identity = {
        "format": FORMAT,
        "settings": settings.model_dump(mode="json"),
        "fingerprint": dict(origin.fingerprint(settings)),
        "code": code_digest(*TAPE_CODE),
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = home / "tapes" / f"{settings.source}-{name}"
    if not (folder / "manifest.json").exists():
        dropped = Dropped()
        documents = origin.read(settings, dropped, workers=workers)
        with whole_folder(folder) as temporary:
            _write_tape(documents, dropped, settings, identity, temporary)
    return Tape(folder)


def _write_tape(
    documents: Iterable[Document],
    dropped: Dropped,
    settings: CorpusSettings,
    identity: dict[str, Any],
    folder: Path,
) -> None:
    start = time.perf_counter()
    with (folder / "unordered.bin").open("w+b") as spool:
        table, rows = _spool(documents, settings.max_documents, spool)
        if not len(table):
            raise SmallmError(f"source {settings.source!r} holds no usable text{_reasons(dropped)}")
        exact = int(table["duplicate"].sum())
        table = table[~table["duplicate"]].drop(columns="duplicate").reset_index(drop=True)
        table = table.sort_values("hash").reset_index(drop=True)
        leader = duplicates.clusters(
            rows[table["row"].to_numpy()], threshold=settings.near_duplicate_threshold
        )
        table = table[leader == np.arange(len(table))].reset_index(drop=True)
        near = len(leader) - len(table)
        table = _weighted(table, mixture.weights(settings), dropped)
        texts = _Spooled(spool, table)
        if settings.order == "hash":
            table["place"] = [int(value[:13], 16) / 16**13 for value in table["hash"]]
        else:
            table["place"] = stratified_places(texts, table["hash"].to_list())
        table = table.sort_values(["place", "hash"]).reset_index(drop=True)
        written, words = _write_text(_Spooled(spool, table), folder / "text.bin")
    (folder / "unordered.bin").unlink()
    table["end"] = np.cumsum(table["end"] - table["start"])
    table.drop(columns=["start", "row"]).to_parquet(folder / "documents.parquet")
    write_json(
        folder / "manifest.json",
        {
            **identity,
            "source": settings.source,
            "documents": len(table),
            "bytes": int(table["end"].iloc[-1]),
            "words": words,
            "duplicates": {"exact": exact, "near": near},
            "dropped": dropped.as_dict(),
            "digest": written,
            "seconds": round(time.perf_counter() - start, 3),
        },
    )


def _weighted(table: pd.DataFrame, weights: Mapping[str, float], dropped: Dropped) -> pd.DataFrame:
    """The rows of a mixture whose bytes stand in the ratio of the weights, as many as there can be.

    Which rows stay follows from their content, by other digits than their place.
    """
    if not weights:
        return table
    sizes = (table["end"] - table["start"]).groupby(table["source"]).sum()
    missing = [name for name in weights if name not in sizes]
    if missing:
        raise SmallmError(f"part {missing[0]!r} of the mixture holds no text{_reasons(dropped)}")
    total = min(sizes[name] / weight for name, weight in weights.items())
    kept = {name: total * weight / sizes[name] for name, weight in weights.items()}
    draws = table["hash"].map(lambda value: int(value[-13:], 16) / 16**13)
    stays = draws < table["source"].map(kept)
    for name, number in (~stays).groupby(table["source"]).sum().items():
        if number:
            first = table[~stays & (table["source"] == name)]["id"].iloc[0]
            dropped.add(f"{name}: more than its weight in the mixture", first, int(number))
    return table[stays].reset_index(drop=True)


def _reasons(dropped: Dropped) -> str:
    reasons = [
        f"{count} {reason} (such as {dropped.places[reason][0]})"
        for reason, count in dropped.counts.items()
    ]
    return f"; left out: {', '.join(reasons)}" if reasons else ""


def _spool(
    documents: Iterable[Document], most: int | None, spool: IO[bytes]
) -> tuple[pd.DataFrame, duplicates.Signatures]:
    """Writes texts as they come; gives a row a document and the signatures of the new ones."""
    records: list[tuple[str, str, str, int, int, int, bool]] = []
    seen: set[str] = set()
    batch: list[str] = []
    rows: list[duplicates.Signatures] = []
    start = new = 0
    for document in documents:
        if most is not None and len(records) >= most:
            break
        encoded = document.text.encode("utf-8")
        content = hashlib.blake2b(encoded, key=HASH_KEY, digest_size=16).hexdigest()
        repeated = content in seen
        end = start if repeated else start + spool.write(encoded)
        records.append((document.id, document.source, content, start, end, new, repeated))
        start = end
        if not repeated:
            seen.add(content)
            batch.append(document.text)
            new += 1
        if len(batch) == SIGNATURE_BATCH:
            rows.append(duplicates.signatures(batch))
            batch = []
    rows.append(duplicates.signatures(batch))
    spool.flush()
    names = ["id", "source", "hash", "start", "end", "row", "duplicate"]
    return pd.DataFrame(records, columns=names), np.concatenate(rows)


class _Spooled(Sequence[str]):
    """Texts of a table's rows, read from the spool one at a time."""

    def __init__(self, spool: IO[bytes], table: pd.DataFrame) -> None:
        self._spool = spool
        self._bounds = table[["start", "end"]].to_numpy()

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, number: Any) -> Any:
        start, end = self._bounds[number]
        self._spool.seek(start)
        return self._spool.read(end - start).decode("utf-8")


def _write_text(texts: Sequence[str], path: Path) -> tuple[str, int]:
    """Writes the texts one after another; gives their digest and the number of words."""
    content = hashlib.sha256()
    words = 0
    with path.open("wb") as file:
        for text in texts:
            encoded = text.encode("utf-8")
            content.update(len(encoded).to_bytes(8, "little"))
            content.update(encoded)
            file.write(encoded)
            words += len(WHITE_SPACE.split(text))
    return content.hexdigest(), words


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


def tokenize_tape(tape: Tape, settings: TokenizerSettings, *, ratios: Iterable[float]) -> TokenTape:
    """The tape's tokens; the tokenizer is trained on the shortest training prefix of the ratios."""
    shortest = min(ratios)
    name = f"{settings.tokenizer}-{settings.vocabulary}-{shortest:g}-{code_digest(*TOKEN_CODE)}"
    folder = tape.folder / "tokens" / name
    if not (folder / "manifest.json").exists():
        tokenizer = train_tokenizer(tape.texts(tape.training(shortest)), settings)
        origin = {"settings": settings.model_dump(mode="json"), "trained_below": shortest}
        _write_token_folder(tape, tokenizer, folder, origin)
    return TokenTape(tape, folder)


def tokenize_with(tape: Tape, tokenizer: Tokenizer) -> TokenTape:
    """The tape in the tokens of a tokenizer that was trained elsewhere, such as a saved model's."""
    folder = tape.folder / "tokens" / f"given-{digest(tokenizer)}"
    if not (folder / "manifest.json").exists():
        _write_token_folder(tape, tokenizer, folder, {})
    return TokenTape(tape, folder)


def _write_token_folder(
    tape: Tape, tokenizer: Tokenizer, folder: Path, origin: dict[str, Any]
) -> None:
    with whole_folder(folder) as temporary:
        tokenizer.save(temporary)
        _write_tokens(tape, tokenizer, temporary)
        known = {"vocabulary": tokenizer.vocabulary, "digest": digest(tokenizer)}
        write_json(temporary / "manifest.json", {"format": FORMAT, **origin, **known})


def _write_tokens(tape: Tape, tokenizer: Tokenizer, folder: Path) -> None:
    ends, words, spelling = [0], [], []
    with (folder / "tokens.bin").open("wb") as file:
        for first in range(0, len(tape), SIGNATURE_BATCH):
            part = Slice("batch", first, min(first + SIGNATURE_BATCH, len(tape)))
            texts = list(tape.texts(part))
            for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
                predicted = tokenizer.predicted(ids)
                file.write(np.uint16(END_ID).tobytes() + predicted.tobytes())
                ends.append(ends[-1] + 1 + len(predicted))
                words.append(len(WHITE_SPACE.split(text)))
                spelling.append(float(tokenizer.spelling_nll(ids).sum()))
    np.savez(
        folder / "documents.npz",
        ends=np.array(ends),
        bytes=np.diff(tape.ends),
        words=np.array(words),
        spelling_nll=np.array(spelling),
    )


def copy_tokenizer(tokens: TokenTape, folder: Path) -> None:
    """Copies the tokenizer's files beside a model."""
    for path in tokens.folder.iterdir():
        if path.name not in {"manifest.json", "tokens.bin", "documents.npz"}:
            shutil.copyfile(path, folder / path.name)
