"""Joins calls into one: a hop between processes costs more than what many small calls ask for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from smallm.serving.protocol import Json, RequestError

A = TypeVar("A")

UNDER_WAY = 2  # one is worked on while the next one travels


@dataclass(frozen=True)
class Answers:
    """What many were answered, in their order."""

    each: list[Json | RequestError]
    side_by_side: int
    """How many are answered in hardly more time than one: more would wait for each other."""


class Together(Generic[A]):
    """A function of one thing, made of one of many: what is asked while others wait goes along.

    As many go in one call as the last answers were side by side. The others wait here, where those
    that nobody waits for any more are left out.
    """

    def __init__(self, ask: Callable[[list[A]], Awaitable[Answers]], *, under_way: int) -> None:
        self._ask = ask
        self._free = under_way
        self._most = 1
        self._waiting: deque[tuple[A, asyncio.Future[Json]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, asked: A) -> Json:
        """The answer to one; raises its RequestError."""
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        self._go()
        return await future

    def _go(self) -> None:
        while self._free and self._waiting:
            if batch := self._next():
                self._free -= 1
                # Not in the context of the request that happens to be here: when that one's client
                # goes away, Ray cancels all that was begun in it.
                task = asyncio.get_running_loop().create_task(self._send(batch), context=Context())
                self._tasks.add(task)  # the loop itself holds tasks only weakly
                task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[tuple[A, asyncio.Future[Json]]]:
        batch: list[tuple[A, asyncio.Future[Json]]] = []
        while self._waiting and len(batch) < self._most:
            if not (each := self._waiting.popleft())[1].cancelled():
                batch.append(each)
        return batch

    async def _send(self, batch: list[tuple[A, asyncio.Future[Json]]]) -> None:
        answers: Sequence[Json | Exception]
        try:
            found = await self._ask([asked for asked, _ in batch])
            answers, self._most = found.each, found.side_by_side
        except Exception as error:  # it is raised where each of them is awaited
            answers = [error] * len(batch)
        finally:
            self._free += 1
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.cancelled():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        self._go()
