"""One model as a server asks it: next words, scores, and continuations side by side."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from smallm.errors import DamagedModelError, SmallmError
from smallm.predictors import Decoding, NextWords, Predictor
from smallm.predictors.causal import Causal
from smallm.predictors.continuations import Continuations, Row
from smallm.predictors.expansion import next_words_side_by_side
from smallm.serving.inside import Inside
from smallm.serving.pieces import Pieces, echoed
from smallm.serving.protocol import CompletionRequest, Delta, Json, RequestError

SEEDS = 2**62
TOGETHER = 32
COLDEST = 1e-6  # below it is greedy: logits divided by much less are infinite


@dataclass(eq=False)
class Answer:
    """The continuations of one request; what is new of them since they were last looked at."""

    prompt_tokens: int
    rows: dict[Row, Pieces] = field(default_factory=dict)
    new: list[Delta] = field(default_factory=list)
    given_up: bool = False
    """Its continuations end before the next step: only the engine's thread may end them."""

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.given_up or all(row.room == 0 for row in self.rows)

    def taken(self) -> list[Delta]:
        """What is new since the last time."""
        new, self.new = self.new, []
        return new


class Engine:
    """A predictor behind the requests of the protocol. It belongs to one thread."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        temperature: float | None,
        words: Json | None = None,
        learned: Json | None = None,
    ) -> None:
        self.predictor = predictor
        self.temperature = temperature
        self.inside = Inside(predictor, words, learned)
        self._under_way = Continuations(predictor) if isinstance(predictor, Causal) else None
        self._answers: dict[Row, Answer] = {}

    def about(self) -> Json:
        """What /v1/models tells."""
        found = self.predictor
        return {
            "kind": found.kind,
            "parameters": found.parameters,
            "context": found.context,
            "temperature": self.temperature,
            "word_map": self.inside.words is not None,
            "learning_curves": self.inside.learned is not None,
        }

    @property
    def together(self) -> int:
        """Prompts whose next words are searched side by side: more only hold up each other."""
        return TOGETHER if isinstance(self.predictor, Causal) and not self.predictor.keeps else 1

    def next_words(self, asked: Sequence[tuple[str, int]]) -> list[Json | RequestError]:
        """The k most probable next words of each (prompt, k), with their bounds."""
        start = time.perf_counter()
        found: list[NextWords | SmallmError]
        if isinstance(self.predictor, Causal) and not self.predictor.keeps:
            found = next_words_side_by_side(self.predictor, asked)
        else:
            found = [_or_error(self.predictor, prompt, k) for prompt, k in asked]
        milliseconds = 1000 * (time.perf_counter() - start)
        return [_words(each, milliseconds) for each in found]

    def score(self, text: str) -> Json:
        """Log-likelihood and bits per byte of a text; RequestError where there is none."""
        start = time.perf_counter()
        try:
            (found,) = self.predictor.score([text])
        except DamagedModelError:
            raise
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

    def echo(self, request: CompletionRequest, prompt: str) -> list[Delta]:
        """One of the prompts itself; RequestError where it cannot be told."""
        causal, _ = self._causal()
        return echoed(causal, request, prompt, _opened(causal, prompt))

    def begin(self, request: CompletionRequest, echoes: Sequence[list[Delta]]) -> Answer:
        """Begins to continue all prompts, n times each; RequestError where that cannot be.

        What is told of a prompt before its continuations is given, where the request asks for it.
        """
        causal, under_way = self._causal()
        temperature = self._temperature_of(request)
        prompts = [_opened(causal, prompt) for prompt in request.prompt]
        answer = Answer(sum(len(ids) - 1 for ids in prompts))  # without the opening
        for place, (prompt, ids) in enumerate(zip(request.prompt, prompts, strict=True)):
            decodings = _decodings(request, temperature)
            for row in under_way.add(ids, decodings, room=causal.room(ids)):  # nothing fails now
                index = len(answer.rows)
                offset = len(prompt) if request.echo else 0
                answer.rows[row] = Pieces(causal, request, index, offset=offset)
                if request.echo:
                    answer.new += [replace(delta, index=index) for delta in echoes[place]]
                self._answers[row] = answer
        return answer

    def _causal(self) -> tuple[Causal, Continuations]:
        if self._under_way is None or not isinstance(self.predictor, Causal):
            raise RequestError(
                f"model {self.predictor.name!r} is a {self.predictor.kind} model: it fills gaps "
                "and cannot continue a text",
                param="model",
            )
        return self.predictor, self._under_way

    def _temperature_of(self, request: CompletionRequest) -> float:
        if request.temperature != "fitted":
            return request.temperature if request.temperature >= COLDEST else 0
        if self.temperature is None:
            raise RequestError(
                f"model {self.predictor.name!r} has no fitted temperature", param="temperature"
            )
        return self.temperature

    @property
    def busy(self) -> bool:
        """Whether a continuation is under way."""
        return self._under_way is not None and self._under_way.busy

    def step(self) -> None:
        """One more token for every continuation that somebody waits for."""
        _, under_way = self._causal()
        for row, answer in self._answers.items():
            if answer.given_up:
                row.room = 0
        for row, step in under_way.step():
            answer = self._answers[row]
            pieces = answer.rows[row]
            answer.new += pieces.add(step)
            if pieces.ended:
                row.room = 0
        self._answers = {row: answer for row, answer in self._answers.items() if row.room}

    def give_up(self) -> None:
        """Ends all continuations."""
        for answer in self._answers.values():
            answer.given_up = True
        self._answers = {}
        if isinstance(self.predictor, Causal):
            self._under_way = Continuations(self.predictor)


def _or_error(predictor: Predictor, prompt: str, k: int) -> NextWords | SmallmError:
    try:
        return predictor.next_words(prompt, k=k)
    except SmallmError as error:
        return error


def _decodings(request: CompletionRequest, temperature: float) -> list[Decoding]:
    """Of the continuations of one prompt; without a seed equal prompts go on differently."""
    first = secrets.randbelow(SEEDS) if request.seed is None else request.seed
    return [
        Decoding(
            max_tokens=request.max_tokens,
            temperature=temperature,
            top_p=request.top_p,
            seed=first + number,
        )
        for number in range(request.n)
    ]


def _opened(causal: Causal, prompt: str) -> list[int]:
    try:
        return causal.opened(prompt)
    except SmallmError as error:
        raise RequestError(str(error), param="prompt") from None


def _words(found: NextWords | SmallmError, milliseconds: float) -> Json | RequestError:
    if isinstance(found, DamagedModelError):
        return RequestError(str(found), status=500)
    if isinstance(found, SmallmError):
        return RequestError(str(found), param="prompt")
    return {
        "words": [
            {"word": each.word, "probability": each.probability, "upper": each.upper}
            for each in found.words
        ],
        "end_of_text": found.end_of_text,
        "residual": found.residual,
        "certified": found.certified,
        "milliseconds": milliseconds,
    }
