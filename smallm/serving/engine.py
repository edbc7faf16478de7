"""One model as a server asks it: next words, continuations token by token, scores of texts."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from smallm.errors import SmallmError
from smallm.next_words import check_prompt
from smallm.predictors import Decoding, Predictor
from smallm.predictors.causal import Causal, text_decoder
from smallm.serving.protocol import CompletionRequest, Delta, Json, RequestError

SEEDS = 2**62


class Engine:
    """A predictor behind the requests of the protocol."""

    def __init__(self, predictor: Predictor, *, temperature: float | None) -> None:
        self.predictor = predictor
        self.temperature = temperature

    def about(self) -> Json:
        """What /v1/models tells."""
        found = self.predictor
        return {"kind": found.kind, "parameters": found.parameters, "context": found.context}

    def next_words(self, prompt: str, k: int) -> Json:
        """The k most probable next words with their bounds."""
        start = time.perf_counter()
        try:
            check_prompt(prompt)
            found = self.predictor.next_words(prompt, k=k)
        except SmallmError as error:
            raise RequestError(str(error), param="prompt") from None
        return {
            "words": [
                {"word": each.word, "probability": each.probability, "upper": each.upper}
                for each in found.words
            ],
            "end_of_text": found.end_of_text,
            "residual": found.residual,
            "certified": found.certified,
            "milliseconds": 1000 * (time.perf_counter() - start),
        }

    def score(self, text: str) -> Json:
        """Log-likelihood and bits per byte of a text."""
        start = time.perf_counter()
        try:
            (found,) = self.predictor.score([text])
        except SmallmError as error:
            raise RequestError(str(error), param="text") from None
        nats, size = float(found.nll.sum()), len(text.encode("utf-8"))
        return {
            "log_likelihood": -nats,
            "tokens": int(found.tokens.sum()),
            "bytes": size,
            "bits_per_byte": nats / math.log(2) / size,
            "milliseconds": 1000 * (time.perf_counter() - start),
        }

    def complete(
        self, request: CompletionRequest, prompts: Sequence[Sequence[int]]
    ) -> Iterator[Delta]:
        """Yields the continuations of all `opened` prompts, n of each, one after another."""
        first = secrets.randbelow(SEEDS) if request.seed is None else request.seed
        index = 0
        for prompt, ids in zip(request.prompt, prompts, strict=True):
            for number in range(request.n):
                yield from self._continuation(request, prompt, ids, index, first + number)
                index += 1

    def _causal(self) -> Causal:
        if not isinstance(self.predictor, Causal):
            raise RequestError(
                f"model {self.predictor.name!r} is a {self.predictor.kind} model: it fills gaps "
                "and cannot continue a text",
                param="model",
            )
        return self.predictor

    def opened(self, request: CompletionRequest) -> list[list[int]]:
        """The ids of each prompt after an opening; RequestError for what cannot be continued."""
        causal = self._causal()
        if request.temperature == "fitted" and self.temperature is None:
            raise RequestError(
                f"model {causal.name!r} has no fitted temperature", param="temperature"
            )
        try:
            return [causal.opened(prompt) for prompt in request.prompt]
        except SmallmError as error:
            raise RequestError(str(error), param="prompt") from None

    def _continuation(
        self,
        request: CompletionRequest,
        prompt: str,
        ids: Sequence[int],
        index: int,
        seed: int,
    ) -> Iterator[Delta]:
        causal = self._causal()
        told = _LogProbs(causal, request.logprobs)
        if request.echo:
            if request.logprobs is not None:
                told.prompt(ids)
            yield Delta(index, prompt, told.taken())
        temperature = request.temperature
        decoding = Decoding(
            max_tokens=request.max_tokens,
            temperature=self.temperature or 1.0 if temperature == "fitted" else temperature,
            top_p=request.top_p,
            seed=seed,
        )
        decoder, stop = text_decoder(), StopText(request.stop or ())
        reason, tokens = "stop", 0
        for step in causal.steps(ids, decoding):
            tokens += 1
            told.add(step.chosen, step.logits)
            text = stop.add(decoder.decode(causal.token_bytes[step.chosen]))
            if stop.met:
                yield Delta(index, text, told.taken(), "stop", tokens)
                return
            if text:
                yield Delta(index, text, told.taken(), None, tokens)
                tokens = 0
            reason = "length" if step.last else "stop"
        yield Delta(index, stop.rest(), told.taken(), reason, tokens)


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

    def __init__(self, causal: Causal, count: int | None) -> None:
        self.causal = causal
        self.count = count
        self.offset = 0
        self._new()

    def _new(self) -> None:
        self.tokens: list[str] = []
        self.values: list[float | None] = []
        self.tops: list[dict[str, float] | None] = []
        self.offsets: list[int] = []

    def prompt(self, ids: Sequence[int]) -> None:
        """The tokens of a prompt after its opening."""
        for chosen, logits in zip(ids[1:], self.causal.logits_after_each(ids[:-1]), strict=True):
            self.add(chosen, logits)

    def add(self, chosen: int, logits: Tensor) -> None:
        """One token and the logits of its place."""
        if self.count is None:
            return
        logprobs = logits.log_softmax(0)
        best = torch.topk(logprobs, self.count)
        name = self._name(chosen)
        self.tokens.append(name)
        self.values.append(float(logprobs[chosen]))
        self.tops.append(
            {
                self._name(token): value
                for token, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            }
        )
        self.offsets.append(self.offset)
        self.offset += len(name)

    def _name(self, token: int) -> str:
        return self.causal.token_bytes[token].decode("utf-8", "replace")

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
