"""One continuation as a client sees it: text in whole characters, stop texts, probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smallm.predictors.causal import Causal, text_decoder
from smallm.predictors.continuations import Step
from smallm.serving.protocol import CompletionRequest, Delta, Json, check_at_most

MOST_ECHOED = 1024  # tokens of a prompt whose log-probabilities are told


def echoed(
    causal: Causal, request: CompletionRequest, prompt: str, ids: Sequence[int]
) -> list[Delta]:
    """The prompt itself; RequestError where it is too long to be told."""
    told = _LogProbs(causal, request.logprobs, 0)
    if request.logprobs is not None and len(ids) > 1:
        check_at_most("the tokens of a prompt with echo and logprobs", len(ids) - 1, MOST_ECHOED)
        for chosen, logits in zip(ids[1:], causal.logits_after_each(ids[:-1]), strict=True):
            told.add(chosen, logits)
    return [Delta(0, prompt, told.taken())]


class Pieces:
    """Makes deltas of the steps of one continuation, which begins `offset` characters after 0."""

    def __init__(
        self, causal: Causal, request: CompletionRequest, index: int, *, offset: int
    ) -> None:
        self.causal = causal
        self.index = index
        self.ended = False
        self._told = _LogProbs(causal, request.logprobs, offset)
        self._decoder, self._stop = text_decoder(), StopText(request.stop or ())
        self._tokens = 0  # since the last delta

    def add(self, step: Step | None) -> list[Delta]:
        """What a step adds; None ends the text."""
        if step is None:
            return [self._last(self._stop.rest(), "stop")]
        self._tokens += 1
        self._told.add(step.chosen, step.logits)
        text = self._stop.add(self._decoder.decode(self.causal.token_bytes[step.chosen]))
        if self._stop.met:
            return [self._last(text, "stop")]
        if step.last:
            return [self._last(text + self._stop.rest(), "length")]
        return [self._delta(text, None)] if text else []

    def _last(self, text: str, reason: str) -> Delta:
        self.ended = True
        return self._delta(text, reason)

    def _delta(self, text: str, reason: str | None) -> Delta:
        tokens, self._tokens = self._tokens, 0
        return Delta(self.index, text, self._told.taken(), reason, tokens)


class StopText:
    """Text up to the first of some stop texts; what may begin one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.met = False
        self._waiting = ""

    def add(self, text: str) -> str:
        """Takes in more text; gives what is certainly before every stop."""
        self._waiting += text
        places = [place for stop in self.stops if (place := self._waiting.find(stop)) >= 0]
        if places:
            self.met = True
            return self._waiting[: min(places)]
        held = max((_overlap(self._waiting, stop) for stop in self.stops), default=0)
        cut = len(self._waiting) - held
        text, self._waiting = self._waiting[:cut], self._waiting[cut:]
        return text

    def rest(self) -> str:
        """What still waits when the text ends."""
        return self._waiting


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)


class _LogProbs:
    """Log-probabilities in the shape of OpenAI's completions; nothing where none were asked for."""

    def __init__(self, causal: Causal, count: int | None, offset: int) -> None:
        self.causal = causal
        self.count = count
        self.offset = offset
        self._decoder = text_decoder()
        self._new()

    def _new(self) -> None:
        self.tokens: list[str] = []
        self.values: list[float | None] = []
        self.tops: list[dict[str, float] | None] = []
        self.offsets: list[int] = []

    def add(self, chosen: int, logits: Tensor) -> None:
        """One token and the logits of its place."""
        if self.count is None:
            return
        logprobs = logits.log_softmax(0)
        best = torch.topk(logprobs, self.count)
        name, value = self._name(chosen), float(logprobs[chosen])
        self.tokens.append(name)
        self.values.append(value)
        top: dict[str, float] = {}  # several tokens may have one name: the most probable one has it
        for other, likely in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            top.setdefault(self._name(other), likely)
        top.setdefault(name, value)
        self.tops.append(top)
        self.offsets.append(self.offset)
        self.offset += len(self._decoder.decode(self.causal.token_bytes[chosen]))

    def _name(self, token: int) -> str:
        """Its text; of a part of a character its bytes, as OpenAI writes them."""
        content = self.causal.token_bytes[token]
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def taken(self) -> Json | None:
        """What was added since the last time."""
        if self.count is None:
            return None
        found = {
            "tokens": self.tokens,
            "token_logprobs": self.values,
            "top_logprobs": self.tops,
            "text_offset": self.offsets,
        }
        self._new()
        return found
