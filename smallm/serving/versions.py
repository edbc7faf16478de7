"""A model that is served, whichever version is current: a new one drops no request of the old."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Awaitable
from functools import partial
from pathlib import Path
from typing import TypeVar

from smallm.errors import SmallmError, in_one_line
from smallm.serving.deaths import died_loading, mark_of_loading
from smallm.serving.engine import Engine
from smallm.serving.loading import load_engine, version_of
from smallm.serving.protocol import CompletionRequest, Delta, Json, RequestError
from smallm.serving.settings import Resources, is_registered
from smallm.serving.together import Answers
from smallm.serving.worker import Worker

T = TypeVar("T")
log = logging.getLogger(__name__)


class Versions:
    """The current worker of a name; where there is none, the reason."""

    def __init__(self, name: str, resources: Resources, *, home: Path) -> None:
        self.name = name
        self.resources = resources
        self.home = home
        self.version = ""
        self.trouble = ""
        self._worker: Worker | None = None
        self._given_up = False
        self._reloading = asyncio.Lock()
        if died_loading(name, home):  # to try it again and again could end others as well
            self._given_up = True
            self.trouble = (
                f"{name}: its process ended while it was loaded, as without enough memory; "
                "POST /v1/reload tries again"
            )
            return
        try:
            with mark_of_loading(name, home):
                self._take(*self._loaded())
        except SmallmError as error:  # the others are served without it
            self.trouble = str(error)

    def about(self) -> Json:
        """What is told of the model."""
        if self._worker is None:
            return {"available": False, "reason": self.trouble}
        return {"available": True, "version": self.version, **self._worker.engine.about()}

    async def poll(self, seconds: float) -> None:
        """Looks for a newer version every so many seconds; what has none needs no looking
        once it is loaded."""
        told = ""
        while self._given_up and self._worker is None:
            await asyncio.sleep(seconds)
        while is_registered(self.name) or self._worker is None:
            await asyncio.sleep(seconds)
            try:
                await self.reload()
                told = ""
            except RequestError as error:
                if str(error) != told:  # once is enough while it lasts
                    log.warning("%s goes on as it is: %s", self.name, error)
                told = str(error)
            except Exception:  # the next time it may work
                log.exception("%s goes on as it is", self.name)

    async def reload(self) -> Json:
        """Loads a newer version, if there is one, while the current one answers."""
        async with self._reloading:
            try:
                version = await asyncio.to_thread(version_of, self.name, self.home)
                changed = self._worker is None or version != self.version
                if changed:
                    self._take(*await asyncio.to_thread(self._loaded))
            except SmallmError as error:
                if self._worker is None:
                    self.trouble = str(error)
                raise RequestError(str(error), status=503) from None
        return {"version": self.version, "changed": changed}

    def _loaded(self) -> tuple[Engine, str]:
        try:
            return load_engine(self.name, self.resources, home=self.home)
        except SmallmError:
            raise
        except BaseException as error:  # also a panic in a tokenizer's Rust: the others are served
            raise SmallmError(f"{self.name}: cannot be loaded: {in_one_line(error)}") from error

    def _take(self, engine: Engine, version: str) -> None:
        # What a loaded model consists of stays: looking through it again and again for garbage
        # takes a fifth of the time of next words. Of older versions what lies in cycles goes.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        before, self._worker, self.version = (
            self._worker,
            Worker(engine, threads=self.resources.threads),
            version,
        )
        if before is not None:
            before.finish()

    def check_health(self) -> None:
        """RuntimeError where nothing will work any more in this process."""
        if self._worker is not None and self._worker.broken is not None:
            raise RuntimeError(f"{self.name}: its device failed") from self._worker.broken

    def _current(self) -> Worker:
        if self._worker is None:
            raise RequestError(f"model {self.name!r} is unavailable: {self.trouble}", status=503)
        return self._worker

    async def next_words(self, asked: list[tuple[str, int]]) -> Answers:
        """See Engine."""
        worker = self._current()
        size = worker.engine.together
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        jobs = [worker.do(partial(worker.engine.next_words, part)) for part in parts]
        found = await asyncio.gather(*map(_or_failure, jobs))
        each = [
            answer
            for part, answers in zip(parts, found, strict=True)
            for answer in (answers if isinstance(answers, list) else [answers] * len(part))
        ]
        return Answers(each, side_by_side=size)

    async def score(self, text: str) -> Json:
        """See Engine."""
        worker = self._current()
        return await worker.do(partial(worker.engine.score, text))

    async def attention(self, prompt: str, layer: int | None) -> Json:
        """See Inside."""
        worker = self._current()
        return await worker.do(partial(worker.engine.inside.attention, prompt, layer))

    async def neighbors(self, word: str, k: int) -> Json:
        """See Inside. Not in the worker's thread: continuations need not wait for it."""
        return await asyncio.to_thread(self._current().engine.inside.neighbors, word, k)

    async def word_map(self) -> Json:
        """See Inside."""
        return self._current().engine.inside.word_map()

    async def learning_curves(self) -> Json:
        """See Inside."""
        return self._current().engine.inside.learning_curves()

    async def completed(self, request: CompletionRequest) -> tuple[int, list[Delta]]:
        """The number of prompt tokens, and all of the continuations."""
        prompt_tokens, deltas = 0, []
        async for piece in self.complete(request):
            if isinstance(piece, int):
                prompt_tokens = piece
            else:
                deltas += piece
        return prompt_tokens, deltas

    def complete(self, request: CompletionRequest) -> AsyncGenerator[int | list[Delta], None]:
        """The number of prompt tokens, then what is new of the continuations."""
        return self._current().complete(request)


async def _or_failure(job: Awaitable[T]) -> T | RequestError:
    """What a job gives; that it fails concerns nobody but those who asked for it."""
    try:
        return await job
    except Exception:
        log.exception("a model failed")
        return RequestError("the model failed", status=500)
