"""The server: every model a deployment of its own, behind one front that speaks HTTP.

serve run serve.app:build models=champion,smollm2-135m
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import click
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from smallm.errors import SmallmError
from smallm.home import open_home
from smallm.serving.api import build_api
from smallm.serving.front import Front
from smallm.serving.keys import Keys, check_address, given_keys
from smallm.serving.protocol import CompletionRequest, Delta, Json, RequestError
from smallm.serving.settings import ServeSettings, from_arguments, is_on_this_machine
from smallm.serving.together import Answers

HEAD = {"node:__internal_head__": 0.001}  # a resource that Ray gives the head of a cluster

log = logging.getLogger(__name__)


@serve.deployment(
    max_ongoing_requests=1024,
    health_check_period_s=2,
    logging_config={"enable_access_log": False},  # the front writes a line for each request
)
class Model:
    """One model; a newer version takes over while the old one ends what it has begun."""

    def __init__(self, name: str, settings: ServeSettings) -> None:
        from smallm.serving.versions import Versions

        self.versions = Versions(name, settings.of(name), home=open_home())
        self.polling = asyncio.ensure_future(self.versions.poll(settings.poll_seconds))

    def check_health(self) -> None:
        """Ray asks now and then, and starts another process where this one is of no more use."""
        self.versions.check_health()

    async def about(self) -> Json:
        """What is told of the model."""
        return self.versions.about()

    async def reload(self) -> Json:
        """Looks for a newer version."""
        return await self.versions.reload()

    async def next_words(self, asked: list[tuple[str, int]]) -> Answers:
        """See Engine."""
        return await self.versions.next_words(asked)

    async def score(self, text: str) -> Json:
        """See Engine."""
        return await self.versions.score(text)

    async def attention(self, prompt: str, layer: int | None) -> Json:
        """See Inside."""
        return await self.versions.attention(prompt, layer)

    async def neighbors(self, word: str, k: int) -> Json:
        """See Inside."""
        return await self.versions.neighbors(word, k)

    async def word_map(self) -> Json:
        """See Inside."""
        return await self.versions.word_map()

    async def learning_curves(self) -> Json:
        """See Inside."""
        return await self.versions.learning_curves()

    async def completed(self, request: CompletionRequest) -> tuple[int, list[Delta]]:
        """The number of prompt tokens, and all of the continuations."""
        return await self.versions.completed(request)

    async def complete(self, request: CompletionRequest) -> AsyncIterator[int | list[Delta]]:
        """The number of prompt tokens, then what is new of the continuations."""
        async for piece in self.versions.complete(request):
            yield piece


class Replicas:
    """The replicas of one model, as the front knows a model."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def about(self) -> Json:
        """What one of them tells."""
        return await self._answer(self.handle.about.remote)

    async def reload(self) -> Json:
        """Has all of them look for a newer version; the answer of one."""
        try:
            answers = await self.handle.broadcast("reload").results_async()
        except Exception as error:
            raise _told(error) from None
        if not answers:
            raise _ended()
        return answers[0]

    async def next_words(self, asked: list[tuple[str, int]]) -> Answers:
        """See Engine."""
        return await self._answer(partial(self.handle.next_words.remote, asked))

    async def score(self, text: str) -> Json:
        """See Engine."""
        return await self._answer(partial(self.handle.score.remote, text))

    async def attention(self, prompt: str, layer: int | None) -> Json:
        """See Inside."""
        return await self._answer(partial(self.handle.attention.remote, prompt, layer))

    async def neighbors(self, word: str, k: int) -> Json:
        """See Inside."""
        return await self._answer(partial(self.handle.neighbors.remote, word, k))

    async def word_map(self) -> Json:
        """See Inside."""
        return await self._answer(self.handle.word_map.remote)

    async def learning_curves(self) -> Json:
        """See Inside."""
        return await self._answer(self.handle.learning_curves.remote)

    async def completed(self, request: CompletionRequest) -> tuple[int, list[Delta]]:
        """The number of prompt tokens, and all of the continuations."""
        return await self._answer(partial(self.handle.completed.remote, request))

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[int | list[Delta], None]:
        """The number of prompt tokens, then what is new of the continuations."""
        pieces = self.handle.options(stream=True).complete.remote(request)
        try:
            async for piece in pieces:
                yield piece
        except Exception as error:
            raise _told(error) from None
        finally:
            with suppress(Exception):  # where it was never begun, that has been told
                pieces.cancel()

    async def _answer(self, ask: Callable[[], DeploymentResponse[Any]]) -> Any:
        try:
            try:
                return await _answer_of(ask())
            except RayActorError:  # it died under the question, which another one can answer
                return await _answer_of(ask())
        except Exception as error:
            raise _told(error) from None


async def _answer_of(response: DeploymentResponse[Any]) -> Any:
    try:
        return await response
    except asyncio.CancelledError:  # nobody waits for it any more
        response.cancel()
        raise


def _told(error: Exception) -> RequestError:
    """The error that a model's process raised; what is no RequestError is not shown outside.

    Ray gives it as the cause of an error of its own, or as it is where it speaks gRPC.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RequestError):
        return cause
    if isinstance(cause, SmallmError):
        return RequestError(str(cause), status=500)
    if isinstance(cause, RayError | RayServeException):
        return _ended()
    if not isinstance(error, RayTaskError):  # of the others the model's own process tells
        log.error("a model failed", exc_info=error)
    return RequestError("the model failed", status=500)


def _ended() -> RequestError:
    return RequestError("the model's process has ended; try again", status=503)


@serve.deployment(max_ongoing_requests=4096, health_check_period_s=2)
@serve.ingress()
class Ingress:
    """Speaks HTTP."""

    def __init__(
        self, settings: ServeSettings, models: dict[str, DeploymentHandle], keys: Keys | None
    ) -> None:
        check_address(_host(), keys=keys, fast_front=_fast_front())
        replicas = {name: Replicas(handle) for name, handle in models.items()}
        self.front = Front(settings, replicas, keys)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_api(self.front)


def _host() -> str:
    """The address that the server listens on."""
    return str(_get_global_client().http_config.host)


def _fast_front() -> bool:
    """Whether HAProxy answers, which listens on all addresses."""
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application that `serve run serve.app:build name=value ...` starts."""
    try:
        settings = from_arguments(arguments)
        keys = given_keys(settings.key_file)
        check_address("127.0.0.1", keys=keys, fast_front=_fast_front())
    except SmallmError as error:  # one line on the command line
        raise click.ClickException(str(error)) from None
    models = {name: deployment_of(name, settings).bind(name, settings) for name in settings.models}
    front = Ingress.options(
        ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=ending(settings)
    )
    return front.bind(settings, models, keys)


def ending(settings: ServeSettings) -> float:
    """Seconds that a process gets to end what it has begun: no request takes longer."""
    return settings.body_timeout + settings.request_timeout + 5


def deployment_of(name: str, settings: ServeSettings) -> serve.Deployment:
    """The deployment of a model, with what its settings give it."""
    own = settings.of(name)
    options: dict[str, Any] = {"num_replicas": own.replicas}
    if own.most_replicas is not None:
        options = {
            "autoscaling_config": {
                "min_replicas": own.replicas,
                "max_replicas": own.most_replicas,
            }
        }
    return Model.options(
        name=re.sub(r"[^\w.-]", "-", name),
        ray_actor_options={
            "num_cpus": own.cpus,
            "num_gpus": own.gpus,
            "resources": HEAD if is_on_this_machine(name) else {},
        },
        graceful_shutdown_timeout_s=ending(settings),
        **options,
    )
