"""The word tokenizer as transformers knows it; the logic is in `smallm.tokens`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from smallm.tokens import END, FINAL, PIECES, UNKNOWN, WordTokenizer, spelled

BYTES = [f"<byte {b:02x}>" for b in range(256)] + [f"<byte {b:02x} final>" for b in range(256)]


class SmaLLMWordTokenizer(PreTrainedTokenizer):
    """Whole words and the bytes of unknown words; saved as one file, `words.json`."""

    vocab_files_names = {"words_file": WordTokenizer.FILE}  # noqa: RUF012 (transformers' contract)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self, words_file: str | None = None, words: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        if words is None:
            if words_file is None:
                raise ValueError("needs `words` or `words_file`")
            words = json.loads(Path(words_file).read_text(encoding="utf-8"))
        self.words = list(words)
        self._tokens = [*self.words, *BYTES]
        self._ids = {token: number for number, token in enumerate(self._tokens)}
        specials = {"bos_token": END, "eos_token": END, "unk_token": UNKNOWN}
        # "<|endoftext|>" in a text is text
        options = {"clean_up_tokenization_spaces": False, "split_special_tokens": True}
        super().__init__(**{**specials, **options, **kwargs})  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        """Words and bytes."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """The id of each token."""
        return dict(self._ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        tokens: list[str] = []
        for piece in PIECES.findall(text):
            if self._ids.get(piece, 0) > 1:
                tokens.append(piece)
            else:
                tokens.extend(BYTES[symbol] for symbol in spelled(piece))
        return tokens

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return str(self._tokens[index])

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Joins words and bytes."""
        first = len(self.words)
        parts = [
            token.encode()
            if (number := self._ids[token]) < first
            else bytes([(number - first) % FINAL])
            for token in tokens
        ]
        return b"".join(parts).decode("utf-8", errors="replace")

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Writes `words.json`."""
        name = f"{filename_prefix}-{WordTokenizer.FILE}" if filename_prefix else WordTokenizer.FILE
        path = Path(save_directory) / name
        path.write_text(json.dumps(self.words, ensure_ascii=False), encoding="utf-8")
        return (str(path),)
