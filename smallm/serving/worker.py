"""The thread that does a model's work, so that its process goes on listening.

It gives every continuation under way one more token, then does one of the other jobs that wait, and
so on: many questions cannot starve the continuations, though each slows them by its own time.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from smallm.serving.engine import Answer, Engine
from smallm.serving.protocol import CompletionRequest, Delta, RequestError

T = TypeVar("T")
News = list[Delta] | Exception


@dataclass(frozen=True)
class _Job:
    run: Callable[[], object]
    quick: bool


class Worker:
    """An engine in a thread of its own."""

    def __init__(self, engine: Engine, *, threads: int) -> None:
        self.engine = engine
        self.threads = threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ending = False
        self.broken: Exception | None = None
        """What the device failed by, after which it does nothing more for this process."""
        self._listeners: dict[Answer, Callable[[News], object]] = {}
        threading.Thread(target=self._run, name="model", daemon=True).start()

    def do(self, work: Callable[[], T], *, quick: bool = False) -> asyncio.Future[T]:
        """What a function gives that is called in the thread; its turn is taken at once."""
        future: Future[T] = Future()
        self._jobs.put(_Job(partial(self._fulfil, future, work), quick))
        return asyncio.wrap_future(future)

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[int | list[Delta], None]:
        """The number of prompt tokens, then what is new of the continuations, until they end."""
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[News] = asyncio.Queue()

        def listen(news: News) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, news)

        # All at once, so that a newer version cannot come between.
        told: list[list[Delta]] = []
        echoes = [
            self.do(partial(self._echo, request, prompt, told))
            for prompt in (request.prompt if request.echo else ())
        ]
        begun = self.do(partial(self._begin, request, told, listen), quick=True)
        try:
            await asyncio.gather(*echoes)
            answer = await asyncio.shield(begun)
            yield answer.prompt_tokens
            left = len(answer.rows)
            while left:
                deltas = await _all_in(heard)
                left -= sum(delta.finish_reason is not None for delta in deltas)
                yield deltas
        finally:  # who goes away may do so while it begins
            for echo in echoes:
                echo.cancel()
            begun.add_done_callback(_give_up)

    def finish(self) -> None:
        """Ends the thread once all that was asked for is done."""
        self._jobs.put(None)

    def _echo(self, request: CompletionRequest, prompt: str, told: list[list[Delta]]) -> None:
        told.append(self.engine.echo(request, prompt))

    def _begin(
        self,
        request: CompletionRequest,
        told: list[list[Delta]],
        listen: Callable[[News], object],
    ) -> Answer:
        if request.echo and len(told) < len(request.prompt):
            raise RequestError("the request was given up")
        answer = self.engine.begin(request, told)
        self._listeners[answer] = listen
        return answer

    def _run(self) -> None:
        torch.set_num_threads(self.threads)  # OpenMP's number is each thread's own
        while self.engine.busy or not self._ending:
            self._work()
            if self.engine.busy:
                self._step()

    def _work(self) -> None:
        """Does what waits: all that is quick, up to one other job; waits where nothing is begun."""
        while not self._ending:
            try:
                job = self._jobs.get(block=not self.engine.busy)
            except queue.Empty:
                return
            if job is None:
                self._ending = True
                return
            job.run()
            if not job.quick:
                return

    def _step(self) -> None:
        try:
            self.engine.step()
        except BaseException as error:  # whatever a model fails by, all whom it concerns are told
            self.engine.give_up()
            seen = self._seen(error)
            for listen in self._listeners.values():
                listen(seen)
            self._listeners.clear()
            return
        for answer, listen in list(self._listeners.items()):
            if new := answer.taken():
                listen(new)
            if answer.ended:
                del self._listeners[answer]

    def _fulfil(self, future: Future[T], work: Callable[[], T]) -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # it is raised where the result is awaited
                future.set_exception(self._seen(error))

    def _seen(self, error: BaseException) -> Exception:
        """The error; a panic in a tokenizer's Rust is no Exception, and would end the thread."""
        if isinstance(error, torch.AcceleratorError):
            self.broken = error
        return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _give_up(begun: asyncio.Future[Answer]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().given_up = True


async def _all_in(heard: asyncio.Queue[News]) -> list[Delta]:
    """All that was heard since, at least something."""
    news = [await heard.get()]
    while not heard.empty():
        news.append(heard.get_nowait())
    found: list[Delta] = []
    for each in news:
        if isinstance(each, Exception):
            raise each
        found += each
    return found
