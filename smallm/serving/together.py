"""Joins calls into one: a hop between processes costs more than what many small calls ask for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Generic, TypeVar

from smallm.serving.protocol import Json, RequestError

A = TypeVar("A")
Answers = list[Json | RequestError]

UNDER_WAY = 2  # one is worked on while the next one travels
MOST = 64  # calls in one


class Together(Generic[A]):
    """A function of one thing, made of one of many: what is asked while others wait goes along."""

    def __init__(self, ask: Callable[[list[A]], Awaitable[Answers]], *, under_way: int) -> None:
        self._ask = ask
        self._free = under_way
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
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            if batch := [each for each in batch if not each[1].cancelled()]:
                self._free -= 1
                # Not in the context of the request that happens to be here: when that one's client
                # goes away, Ray cancels all that was begun in it.
                task = asyncio.get_running_loop().create_task(self._send(batch), context=Context())
                self._tasks.add(task)  # the loop itself holds tasks only weakly
                task.add_done_callback(self._tasks.discard)

    async def _send(self, batch: list[tuple[A, asyncio.Future[Json]]]) -> None:
        answers: Answers | list[Exception]
        try:
            answers = await self._ask([asked for asked, _ in batch])
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
