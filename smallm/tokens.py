"""Tokenizers: byte-level BPE, and whole words with a spelling model. Both are lossless.

The word tokenizer writes an unknown word as its bytes, the last one marked as final. A model
predicts only the first `vocabulary` ids, where one id, UNKNOWN, stands for every unknown word;
the spelling model gives the probability of the bytes: p(word) = p(unknown) * p(bytes). So text
has a probability whatever words it holds (Mielke and Eisner 2019, "Spell once, summon anywhere").
Spellings that are words of the vocabulary keep a little mass they can never use: bits per byte
of word models are an upper bound.

    id      0          end of text, opens every document
    id      1          unknown word (words only; predicted, never written)
    id      2 .. V-1   words, or BPE tokens from 1 on
    id      V .. V+255 byte inside an unknown word; V+256 .. V+511 its final byte (words only)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import regex
import tiktoken
import tokenizers
from numpy.typing import NDArray

from smallm.ngrams import KneserNey
from smallm.settings import TokenizerSettings

Ids = NDArray[np.uint16]

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
END_ID, UNKNOWN_ID = 0, 1
FINAL = 256  # a byte symbol plus this ends its word
SPELLING_BOUNDARY = 512
SPELLING_ORDER = 6
ENDLESS_SPACE = re.compile(r"\s{10000}")  # tiktoken's expressions run out of stack on more
WORD = re.compile(r"\S+", re.ASCII)  # what stands between ASCII white space, for every model
# Words, numbers and runs of signs with the space before them, then other white space: every
# character falls in exactly one piece, so joining the pieces gives the text back.
GPT2_PIECES = (  # the pieces of tokenizers' ByteLevel, none of which is merged with another
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
)
PIECES = regex.compile(r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+")


class Tokenizer(Protocol):
    """What the tape, the models and the evaluation need of a tokenizer."""

    vocabulary: int
    """Number of ids that a model predicts."""

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Lossless ids of each text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    def predicted(self, ids: Ids) -> Ids:
        """The ids as a model sees them: an unknown word is one id."""

    def spelling_nll(self, ids: Ids) -> NDArray[np.float64]:
        """Negative log-likelihood in nats that the spelling adds at each lossless id."""

    def huggingface(self) -> Any:
        """The same tokenizer as transformers loads and saves it."""

    def save(self, folder: Path) -> None:
        """Writes the files from which `load` and transformers' AutoTokenizer read it again."""


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """A tokenizer of the kind in the settings, trained on the texts."""
    if settings.tokenizer == "words":
        return WordTokenizer.train(texts, settings.vocabulary)
    return BytePairTokenizer.train(texts, settings.vocabulary)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `save` wrote, or that a saved SmaLLM holds."""
    kind = WordTokenizer if (folder / WordTokenizer.FILE).exists() else BytePairTokenizer
    return kind.load(folder)


def digest(tokenizer: Tokenizer) -> str:
    """Identifies a tokenizer by its content."""
    return hashlib.sha256(repr(tokenizer).encode()).hexdigest()[:16]


class BytePairTokenizer:
    """Byte-level BPE of the `tokenizers` library."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self.backend = backend
        self.vocabulary = backend.get_vocab_size()

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> BytePairTokenizer:
        """Merges the most frequent pairs until the vocabulary is full."""
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        backend.train_from_iterator(
            texts,
            tokenizers.trainers.BpeTrainer(
                vocab_size=vocabulary,
                special_tokens=[END],
                initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        return cls(backend)

    @classmethod
    def load(cls, folder: Path) -> BytePairTokenizer:
        """Reads `tokenizer.json`."""
        return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Lossless ids of each text."""
        quick = self._quick
        return [
            np.array(quick.encode_ordinary(text), dtype=np.uint16)
            if quick is not None and not ENDLESS_SPACE.search(text)
            else np.array(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.uint16)
            for text in texts
        ]

    @cached_property
    def _quick(self) -> tiktoken.Encoding | None:
        """The same merges in tiktoken, which is several times faster on a core.

        It takes the merge that gives the lowest id, tokenizers the earliest merge: the same as long
        as each merge made a new token. None where two merges gave the same one.
        """
        merges = json.loads(self.backend.to_str())["model"]["merges"]
        if len(merges) != self.vocabulary - 257:  # the end of text and 256 bytes
            return None
        ranks = {
            bytes(BYTE_SIGNS[sign] for sign in token): number
            for token, number in self.backend.get_vocab().items()
            if number != END_ID
        }
        return tiktoken.Encoding(
            "smallm", pat_str=GPT2_PIECES, mergeable_ranks=ranks, special_tokens={}
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def predicted(self, ids: Ids) -> Ids:
        """The ids themselves: BPE knows every text."""
        return ids

    def spelling_nll(self, ids: Ids) -> NDArray[np.float64]:
        """Nothing: BPE has no unknown words."""
        return np.zeros(len(ids))

    def huggingface(self) -> Any:
        """A fast tokenizer of transformers."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=self.backend,
            bos_token=END,
            eos_token=END,
            clean_up_tokenization_spaces=False,
            split_special_tokens=True,
        )

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and what transformers needs beside it."""
        self.huggingface().save_pretrained(folder)

    def __repr__(self) -> str:
        return str(self.backend.to_str())


class WordTokenizer:
    """Whole words, each with the space before it; unknown ones as bytes, with a spelling model."""

    FILE = "words.json"
    SPELLING_FILE = "spelling.npz"

    def __init__(self, words: Sequence[str], spelling: KneserNey) -> None:
        self.words = list(words)
        self.vocabulary = len(self.words)
        self.spelling = spelling

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> WordTokenizer:
        """Keeps the most frequent words seen at least twice; the others train the spelling.

        Each occurrence of an unknown word counts, as it will in held-out text.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(PIECES.findall(text))
        frequent = sorted(
            (word for word in counts if counts[word] > 1), key=lambda w: (-counts[w], w)
        )
        words = [END, UNKNOWN, *frequent[: vocabulary - 2]]
        known = set(words)
        stream: list[int] = [SPELLING_BOUNDARY]
        for word in sorted(counts):
            if word not in known:
                stream.extend([SPELLING_BOUNDARY, *spelled(word)] * min(counts[word], 1000))
        spelling = KneserNey.fit(
            np.array(stream), vocabulary=513, boundary=SPELLING_BOUNDARY, order=SPELLING_ORDER
        )
        return cls(words, spelling)

    @classmethod
    def load(cls, folder: Path) -> WordTokenizer:
        """Reads the words and the spelling model."""
        words = json.loads((folder / cls.FILE).read_text(encoding="utf-8"))
        with np.load(folder / cls.SPELLING_FILE, allow_pickle=False) as arrays:
            return cls(words, KneserNey.from_arrays(arrays))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words) if number > UNKNOWN_ID}

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Lossless ids of each text."""
        return [np.array(self._encode(text), dtype=np.uint16) for text in texts]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in PIECES.findall(text):
            known = self._ids.get(piece)
            if known is None:
                ids.extend(self.vocabulary + symbol for symbol in spelled(piece))
            else:
                ids.append(known)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become replacement characters."""
        parts = [
            self.words[i].encode()
            if i < self.vocabulary
            else bytes([(i - self.vocabulary) % FINAL])
            for i in (int(each) for each in ids)
        ]
        return b"".join(parts).decode("utf-8", errors="replace")

    def predicted(self, ids: Ids) -> Ids:
        """Each unknown word as the one id that a model predicts."""
        kept = ids[(ids < self.vocabulary) | (ids >= self.vocabulary + FINAL)]
        return np.where(kept < self.vocabulary, kept, UNKNOWN_ID).astype(np.uint16)

    def spelling_nll(self, ids: Ids) -> NDArray[np.float64]:
        """Negative log-likelihood in nats of the bytes of unknown words, at each lossless id."""
        symbols = ids.astype(np.int64) - self.vocabulary
        places = np.flatnonzero(symbols >= 0)
        nll = np.zeros(len(ids))
        if not len(places):
            return nll
        spelled_out = symbols[places]
        opens = np.concatenate([[True], spelled_out[:-1] >= FINAL])
        stream = np.insert(spelled_out, np.flatnonzero(opens), SPELLING_BOUNDARY)
        scores = self.spelling.log_probabilities(stream)
        nll[places] = -scores[stream != SPELLING_BOUNDARY]
        return nll

    def huggingface(self) -> Any:
        """A tokenizer of transformers, registered by `smallm.models`."""
        from smallm.models.word_tokenizer import SmaLLMWordTokenizer

        return SmaLLMWordTokenizer(words=self.words)

    def save(self, folder: Path) -> None:
        """Writes the words, the spelling model and what transformers needs beside them."""
        self.huggingface().save_pretrained(folder)
        arrays: dict[str, Any] = dict(self.spelling.arrays())
        np.savez(folder / self.SPELLING_FILE, **arrays)

    def __repr__(self) -> str:
        spelling = hashlib.sha256(b"".join(a.tobytes() for a in self.spelling.arrays().values()))
        return json.dumps([self.words, spelling.hexdigest()])


def _byte_signs() -> dict[str, int]:
    """The byte behind each sign of byte-level BPE: printable Latin-1, then from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


BYTE_SIGNS = _byte_signs()


def spelled(word: str) -> list[int]:
    """The bytes of a word as symbols, the last one marked as final."""
    symbols = list(word.encode("utf-8"))
    symbols[-1] += FINAL
    return symbols
