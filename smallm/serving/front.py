"""What the routes do: asks one model or several, in time, and counts what is asked of each."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import Context
from typing import Protocol, TypeVar

from smallm.serving.completions import completion, streamed
from smallm.serving.keys import Keys
from smallm.serving.metrics import Metrics
from smallm.serving.protocol import (
    AttentionRequest,
    CompareRequest,
    CompletionRequest,
    Delta,
    Json,
    LearningCurvesRequest,
    NeighborsRequest,
    NextWordsRequest,
    RequestError,
    ScoreRequest,
    WordMapRequest,
    check_at_most,
    error_body,
    unknown_model,
)
from smallm.serving.settings import ServeSettings
from smallm.serving.together import UNDER_WAY, Answers, Together

T = TypeVar("T")

MOMENT = 1.0  # seconds for which what is told of the models holds
ABOUT_SECONDS = 5.0  # in which a model tells of itself
COMPLETIONS, NEXT_WORDS, SCORE = "/v1/completions", "/v1/next-words", "/v1/score"
ATTENTION, NEIGHBORS = "/v1/attention", "/v1/neighbors"
WORD_MAP, LEARNING_CURVES = "/v1/word-map", "/v1/learning-curves"


Pieces = AsyncGenerator[int | list[Delta], None]


class Served(Protocol):
    """A model, wherever it runs. What goes wrong is a RequestError."""

    async def about(self) -> Json:
        """What /v1/models tells of it."""

    async def next_words(self, asked: list[tuple[str, int]]) -> Answers:
        """See Engine."""

    async def score(self, text: str) -> Json:
        """See Engine."""

    async def attention(self, prompt: str, layer: int | None) -> Json:
        """See Inside."""

    async def neighbors(self, word: str, k: int) -> Json:
        """See Inside."""

    async def word_map(self) -> Json:
        """See Inside."""

    async def learning_curves(self) -> Json:
        """See Inside."""

    async def completed(self, request: CompletionRequest) -> tuple[int, list[Delta]]:
        """The number of prompt tokens, and all of the continuations."""

    def complete(self, request: CompletionRequest) -> Pieces:
        """The number of prompt tokens, then what is new of the continuations."""

    async def reload(self) -> Json:
        """Looks for a newer version."""


class Front:
    """Knows the models by name."""

    def __init__(
        self, settings: ServeSettings, models: Mapping[str, Served], keys: Keys | None
    ) -> None:
        self.settings = settings
        self.models = models
        self.metrics = Metrics(models)
        self.rules = settings.rules(keys)
        self.started = int(time.time())
        self._waiting = dict.fromkeys(models, 0)
        self._next_words = {
            name: Together(model.next_words, under_way=UNDER_WAY * settings.of(name).largest)
            for name, model in models.items()
        }
        self._about: asyncio.Task[dict[str, Json]] | None = None
        self._about_at = 0.0

    async def about(self) -> dict[str, Json]:
        """What is told of each model, also of those that are unavailable; a moment old at most.

        All who ask share one question, so that asking for it, which needs no key, costs little.
        """
        now = time.monotonic()
        if self._about is None or now > self._about_at + MOMENT:
            ask = self._ask_about()
            loop = asyncio.get_running_loop()
            # Of no request: Ray cancels with a request what was begun in its context.
            self._about, self._about_at = loop.create_task(ask, context=Context()), now
        return await asyncio.shield(self._about)

    async def _ask_about(self) -> dict[str, Json]:
        async def one(model: Served) -> Json:
            try:
                return await self._in_time(model.about(), time.monotonic() + ABOUT_SECONDS)
            except RequestError as error:
                return {"available": False, "reason": str(error)}

        answers = await asyncio.gather(*map(one, self.models.values()))
        return dict(zip(self.models, answers, strict=True))

    async def list_models(self) -> Json:
        """The models in OpenAI's shape."""
        data = [
            {"id": name, "object": "model", "created": self.started, "owned_by": "smallm", **about}
            for name, about in (await self.about()).items()
        ]
        return {"object": "list", "data": data}

    async def next_words(self, request: NextWordsRequest) -> Json:
        """The most probable next words by each model."""
        check_at_most("k", request.k, self.settings.most_words)
        self._check_length("prompt", request.prompt)
        return await self._all(
            request.models, lambda name: self._words_of(name, request.prompt, request.k)
        )

    async def score(self, request: ScoreRequest) -> Json:
        """How probable a text is by each model."""
        self._check_length("text", request.text)

        async def one(name: str) -> Json:
            with self._asked(name, SCORE):
                found = await self._in_time(self.models[name].score(request.text))
                self.metrics.tokens(name, prompt=found["tokens"])
                return found

        return await self._all(request.models, one)

    async def attention(self, request: AttentionRequest) -> Json:
        """Where the heads of a model look."""
        self._check_length("prompt", request.prompt)
        return await self._one(
            request.model, ATTENTION, lambda model: model.attention(request.prompt, request.layer)
        )

    async def neighbors(self, request: NeighborsRequest) -> Json:
        """The words that a model keeps nearest to a word."""
        check_at_most("k", request.k, self.settings.most_words)
        self._check_length("word", request.word)
        return await self._one(
            request.model, NEIGHBORS, lambda model: model.neighbors(request.word, request.k)
        )

    async def word_map(self, request: WordMapRequest) -> Json:
        """The words of a model in the plane."""
        return await self._one(request.model, WORD_MAP, lambda model: model.word_map())

    async def learning_curves(self, request: LearningCurvesRequest) -> Json:
        """How a model and the others of its search learned."""
        return await self._one(
            request.model, LEARNING_CURVES, lambda model: model.learning_curves()
        )

    async def _one(self, name: str, route: str, ask: Callable[[Served], Awaitable[Json]]) -> Json:
        """What one model tells, under its name."""
        self._check_known(name)
        with self._asked(name, route):
            return {"model": name, **await self._in_time(ask(self.models[name]))}

    async def compare(self, request: CompareRequest) -> Json:
        """The same prompt to several models at once: next words and a continuation of each."""
        check_at_most("k", request.k, self.settings.most_words)
        check_at_most("max_tokens", request.max_tokens, self.settings.most_tokens)
        self._check_length("prompt", request.prompt)

        async def one(name: str) -> Json:
            words, continuation = await asyncio.gather(
                _or_error(self._words_of(name, request.prompt, request.k)),
                _or_error(self._continuation(name, request)),
            )
            return {"next_words": words, "continuation": continuation}

        return await self._all(request.models or list(self.models), one)

    async def _words_of(self, name: str, prompt: str, k: int) -> Json:
        with self._asked(name, NEXT_WORDS):
            return await self._in_time(self._next_words[name]((prompt, k)))

    async def _continuation(self, name: str, request: CompareRequest) -> Json:
        start = time.perf_counter()
        asked = CompletionRequest(
            model=name,
            prompt=[request.prompt],
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
        )
        made = await self._completed(asked)
        (choice,) = made["choices"]
        return {
            "text": choice["text"],
            "tokens": made["usage"]["completion_tokens"],
            "milliseconds": 1000 * (time.perf_counter() - start),
        }

    async def completions(self, request: CompletionRequest) -> Json | AsyncIterator[str]:
        """The whole answer, or its events; what is wrong with a request is raised before them."""
        most = self.settings
        self._check_known(request.model)
        check_at_most("max_tokens", request.max_tokens, most.most_tokens)
        count = request.n * len(request.prompt)
        check_at_most("n times the number of prompts", count, most.most_continuations)
        for prompt in request.prompt:
            self._check_length("prompt", prompt)
        if request.stream_options is not None and not request.stream:
            raise RequestError("stream_options needs stream", param="stream_options")
        if not request.stream:
            return await self._completed(request)
        pieces = self._pieces(request)
        prompt_tokens = await anext(pieces)
        assert isinstance(prompt_tokens, int)
        return streamed(pieces, request, _identity(), prompt_tokens=prompt_tokens)

    async def _completed(self, request: CompletionRequest) -> Json:
        with self._asked(request.model, COMPLETIONS):
            asked = self.models[request.model].completed(request)
            prompt_tokens, deltas = await self._in_time(asked)
            self._count_tokens(request.model, prompt_tokens, deltas)
            return completion(deltas, request, _identity(), prompt_tokens=prompt_tokens)

    async def _pieces(self, request: CompletionRequest) -> Pieces:
        """The number of prompt tokens, then what is new of the continuations."""
        end = time.monotonic() + self.settings.request_timeout
        with self._asked(request.model, COMPLETIONS):
            async with aclosing(self.models[request.model].complete(request)) as pieces:
                while (piece := await self._in_time(anext(pieces, None), end)) is not None:
                    new = (piece, []) if isinstance(piece, int) else (0, piece)
                    self._count_tokens(request.model, *new)
                    yield piece

    def _count_tokens(self, name: str, prompt_tokens: int, deltas: list[Delta]) -> None:
        tokens = sum(delta.tokens for delta in deltas)
        self.metrics.tokens(name, prompt=prompt_tokens, completion=tokens)

    async def reload(self) -> Json:
        """Has each model look for a newer version."""
        names = list(self.models)
        answers = await asyncio.gather(
            *(_or_error(self._in_time(self.models[name].reload())) for name in names)
        )
        self._about = None
        return {"models": dict(zip(names, answers, strict=True))}

    async def _all(self, names: list[str] | None, ask: Callable[[str], Awaitable[Json]]) -> Json:
        """The answers of several models; one that fails gives its error beside the others."""
        if names is None:
            names = [name for name, about in (await self.about()).items() if about["available"]]
        chosen = list(dict.fromkeys(names))
        for name in chosen:
            self._check_known(name)
        if len(chosen) == 1:
            return {"models": {chosen[0]: await ask(chosen[0])}}
        answers = await asyncio.gather(*(_or_error(ask(name)) for name in chosen))
        return {"models": dict(zip(chosen, answers, strict=True))}

    @contextmanager
    def _asked(self, name: str, route: str) -> Iterator[None]:
        """Counts a request of a model; RequestError where too many wait already."""
        with self.metrics.asked(name, route):
            if self._waiting[name] >= self.settings.most_waiting:
                raise RequestError(f"too many requests wait for {name!r}; try again", status=429)
            self._waiting[name] += 1
            try:
                yield
            finally:
                self._waiting[name] -= 1

    def _check_known(self, name: str) -> None:
        if name not in self.models:
            raise unknown_model(name, list(self.models))

    def _check_length(self, field: str, text: str) -> None:
        if len(text) > (most := self.settings.most_characters):
            raise RequestError(
                f"{field} has {len(text)} characters: this server allows at most {most}",
                param=field,
            )

    async def _in_time(self, answer: Awaitable[T], end: float | None = None) -> T:
        """What is awaited, by a moment, else within the timeout."""
        left = self.settings.request_timeout if end is None else end - time.monotonic()
        try:
            async with asyncio.timeout(left):
                return await answer
        except TimeoutError:
            raise RequestError("no answer in time", status=504) from None


async def _or_error(answer: Awaitable[Json]) -> Json:
    try:
        return await answer
    except RequestError as error:
        return error_body(str(error), status=error.status, param=error.param)


def _identity() -> Json:
    return {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time())}
