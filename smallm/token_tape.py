"""A tape in the tokens of a tokenizer, memory-mapped: what training and scoring read.

tokens folder: tokens.bin (uint16, each document opened by id 0), documents.npz, tokenizer files
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallm.encoding import encoded_stretch
from smallm.files import read_json, whole_folder, write_json
from smallm.provenance import code_digest
from smallm.settings import TokenizerSettings
from smallm.spool import in_order
from smallm.tape import FORMAT, Slice, Tape
from smallm.tokens import Tokenizer, digest, load_tokenizer, train_tokenizer

BYTES_AT_ONCE = 2**20
TOKENIZER_BYTES = 2**28  # of the training prefix: more changes no merge that matters
# What decides the tokens of a tape: other code, other tokens.
TOKEN_CODE = ("encoding.py", "tokens.py", "ngrams.py")


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
    folder = tokens_folder(tape.folder, settings, shortest=shortest)
    if not (folder / "manifest.json").exists():
        sample = tape.beginning(tape.training(shortest), TOKENIZER_BYTES)
        tokenizer = train_tokenizer(tape.texts(sample), settings)
        origin = {"settings": settings.model_dump(mode="json"), "trained_below": shortest}
        _write_token_folder(tape, tokenizer, folder, origin, workers=workers)
    return TokenTape(tape, folder)


def tokens_folder(tape: Path, settings: TokenizerSettings, *, shortest: float) -> Path:
    """Where the tokens of a tape lie, of a tokenizer trained below the shortest split ratio."""
    name = f"{settings.tokenizer}-{settings.vocabulary}-{shortest:g}-{code_digest(*TOKEN_CODE)}"
    return tape / "tokens" / name


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
