"""Next words of a model in LitServe; a module of its own, as LitServe's workers import it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import litserve

from benchmarks.servers import PATH, words_of

TOGETHER = 32  # most requests of one batch
WAIT = 0.005  # seconds for a batch to fill


class Words(litserve.LitAPI):
    """A batch of prompts, one list of answers."""

    def __init__(self, options: Namespace) -> None:
        super().__init__(max_batch_size=TOGETHER, batch_timeout=WAIT, api_path=PATH)
        self.options = options

    def setup(self, device: str) -> None:
        """Loads the model in a worker."""
        self.words = words_of(self.options)

    def decode_request(self, request, **_):  # type: ignore[no-untyped-def]
        """Prompt and k; LitServe would read an annotation as the body's model."""
        return request["prompt"], request["k"]

    def batch(self, inputs: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """As they are."""
        return inputs

    def predict(self, asked: list[tuple[str, int]]) -> list[Any]:
        """The answers of a batch, searched side by side as SmaLLM's own server does."""
        return self.words(asked)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """As they are."""
        return output

    def encode_response(self, output: Any) -> Any:
        """As it is."""
        return output
