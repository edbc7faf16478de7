"""The server: every model a deployment of its own, behind one front that speaks HTTP.

serve run serve.app:build models=champion,smollm2-135m
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from smallm.errors import SmallmError, in_one_line
from smallm.home import open_home
from smallm.serving.completions import completion, streamed
from smallm.serving.protocol import (
    CompareRequest,
    CompletionRequest,
    Delta,
    Json,
    NextWordsRequest,
    RequestError,
    ScoreRequest,
    check_at_most,
    error_body,
    unknown_model,
)
from smallm.serving.settings import ServeSettings, from_arguments

api = FastAPI(title="SmaLLM", description="Small language models beside pretrained ones.")


# Ray copies the class below with what it names: so no deferred annotations, and all of it above.
@api.exception_handler(RequestError)
async def _told(_: Request, error: RequestError) -> JSONResponse:
    body = error_body(str(error), status=error.status, param=error.param)
    return JSONResponse(body, error.status)


@api.exception_handler(RequestValidationError)
async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    place = ".".join(str(each) for each in first["loc"][1:])
    message = f"{place}: {first['msg']}" if place else str(first["msg"])
    return JSONResponse(error_body(message, status=400, param=place or None), 400)


@api.exception_handler(HTTPException)
async def _http(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(error_body(str(error.detail), status=error.status_code), error.status_code)


@serve.deployment(max_ongoing_requests=256)
class Model:
    """One model; its work is done in a thread, so that the replica goes on answering."""

    def __init__(self, name: str, settings: ServeSettings) -> None:
        from smallm.serving.loading import load_engine

        self.name = name
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="model")
        self.trouble, self.version = "", ""
        try:
            self.engine, self.version = load_engine(
                name, home=open_home(), threads=settings.threads, device=settings.device
            )
        except (SmallmError, RuntimeError) as error:  # the others are served without it
            self.trouble = in_one_line(error)

    async def about(self) -> Json:
        """What is told of the model."""
        if self.trouble:
            return {"available": False, "reason": self.trouble}
        return {"available": True, "version": self.version, **self.engine.about()}

    async def next_words(self, prompt: str, k: int) -> Json:
        """See Engine."""
        return await self._in_thread(lambda: self.engine.next_words(prompt, k))

    async def score(self, text: str) -> Json:
        """See Engine."""
        return await self._in_thread(lambda: self.engine.score(text))

    async def complete(self, request: CompletionRequest) -> AsyncIterator[int | Delta]:
        """The number of prompt tokens, then the continuations."""
        prompts = await self._in_thread(lambda: self.engine.opened(request))
        yield sum(len(ids) - 1 for ids in prompts)  # without the opening
        deltas = self.engine.complete(request, prompts)
        try:
            while (delta := await self._in_thread(lambda: next(deltas, None))) is not None:
                yield delta
        finally:
            await self._in_thread(deltas.close)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        if self.trouble:
            raise RequestError(f"model {self.name!r} is unavailable: {self.trouble}", status=503)
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


async def _all_of(pieces: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in pieces]


async def _or_error(answer: Awaitable[Json]) -> Json:
    try:
        return await answer
    except RequestError as error:
        return error_body(str(error), status=error.status, param=error.param)


def _own_error(error: RayTaskError) -> RequestError:
    """The error that a model's process raised; what is no RequestError is not shown outside."""
    cause = error.cause
    return (
        cause if isinstance(cause, RequestError) else RequestError("the model failed", status=500)
    )


@serve.deployment(max_ongoing_requests=1024)
@serve.ingress(api)
class Front:
    """Speaks HTTP; knows the models by name."""

    def __init__(self, settings: ServeSettings, models: dict[str, DeploymentHandle]) -> None:
        self.settings = settings
        self.models = models
        self.started = int(time.time())

    @api.get("/healthz")
    async def healthz(self) -> Json:
        """Whether the front is there."""
        return {"status": "ok"}

    @api.get("/readyz")
    async def readyz(self) -> JSONResponse:
        """Whether at least one model answers."""
        found = await self._about()
        ready = any(each["available"] for each in found.values())
        return JSONResponse(
            {"status": "ok" if ready else "no model is available"}, 200 if ready else 503
        )

    @api.get("/v1/models")
    async def list_models(self) -> Json:
        """The models, also those that are unavailable, with the reason."""
        found = await self._about()
        data = [
            {"id": name, "object": "model", "created": self.started, "owned_by": "smallm", **about}
            for name, about in found.items()
        ]
        return {"object": "list", "data": data}

    @api.post("/v1/completions")
    async def completions(self, request: CompletionRequest) -> Any:
        """Continue prompts, as OpenAI's clients ask for it."""
        most = self.settings
        check_at_most("max_tokens", request.max_tokens, most.most_tokens)
        check_at_most("n", request.n, most.most_prompts)
        check_at_most("prompt", len(request.prompt), most.most_prompts)
        about = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        if not request.stream:
            prompt_tokens, *deltas = await self._in_time(_all_of(self._pieces(request)))
            return completion(deltas, request, about, prompt_tokens=prompt_tokens)
        pieces = self._pieces(request)
        await self._in_time(anext(pieces))  # what is wrong with a request has its status
        events = streamed(pieces, request, about)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _pieces(self, request: CompletionRequest) -> AsyncIterator[int | Delta]:
        """The number of prompt tokens, then the continuations, as the model gives them."""
        try:
            model = self._handle(request.model).options(stream=True)
            async for piece in model.complete.remote(request):
                yield piece
        except RayTaskError as error:
            raise _own_error(error) from None

    @api.post("/v1/next-words")
    async def next_words(self, request: NextWordsRequest) -> Json:
        """The most probable next words by each model, with bounds."""
        check_at_most("k", request.k, self.settings.most_words)
        return await self._all(
            request.models, lambda model: model.next_words.remote(request.prompt, request.k)
        )

    @api.post("/v1/score")
    async def score(self, request: ScoreRequest) -> Json:
        """How probable a text is by each model."""
        return await self._all(request.models, lambda model: model.score.remote(request.text))

    @api.post("/v1/compare")
    async def compare(self, request: CompareRequest) -> Json:
        """The same prompt to all models at once: next words and a continuation of each."""
        check_at_most("k", request.k, self.settings.most_words)
        check_at_most("max_tokens", request.max_tokens, self.settings.most_tokens)
        names = request.models or list(self.models)
        both = await asyncio.gather(
            self._all(names, lambda model: model.next_words.remote(request.prompt, request.k)),
            *(self._continuation(name, request) for name in names),
        )
        words, continuations = both[0]["models"], both[1:]
        return {
            "models": {
                name: {"next_words": words[name], "continuation": found}
                for name, found in zip(names, continuations, strict=True)
            }
        }

    async def _continuation(self, name: str, request: CompareRequest) -> Json:
        asked = CompletionRequest(
            model=name,
            prompt=[request.prompt],
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed,
        )
        start = time.perf_counter()

        async def text() -> Json:
            _, *deltas = await _all_of(self._pieces(asked))
            return {
                "text": "".join(delta.text for delta in deltas),
                "milliseconds": 1000 * (time.perf_counter() - start),
            }

        return await _or_error(self._in_time(text()))

    async def _all(
        self, names: list[str] | None, ask: Callable[[DeploymentHandle], Awaitable[Json]]
    ) -> Json:
        """The answers of several models; one that fails gives its error beside the others."""
        chosen = names or [n for n, about in (await self._about()).items() if about["available"]]
        handles = [self._handle(name) for name in chosen]
        answers = await asyncio.gather(
            *(_or_error(self._in_time(ask(handle))) for handle in handles)
        )
        if len(chosen) == 1 and "error" in answers[0]:
            found = answers[0]["error"]
            raise RequestError(found["message"], status=found["code"], param=found["param"])
        return {"models": dict(zip(chosen, answers, strict=True))}

    async def _about(self) -> dict[str, Json]:
        async def one(handle: DeploymentHandle) -> Json:
            try:
                return await self._in_time(handle.about.remote())
            except RequestError as error:
                return {"available": False, "reason": str(error)}

        answers = await asyncio.gather(*map(one, self.models.values()))
        return dict(zip(self.models, answers, strict=True))

    def _handle(self, name: str) -> DeploymentHandle:
        if name not in self.models:
            raise unknown_model(name, list(self.models))
        return self.models[name]

    async def _in_time(self, answer: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(_awaited(answer), self.settings.request_timeout)
        except TimeoutError:
            raise RequestError(
                f"no answer within {self.settings.request_timeout:g} s", status=504
            ) from None
        except RayTaskError as error:
            raise _own_error(error) from None
        except RayError as error:
            raise RequestError("the model failed; try again", status=503) from error


def build(arguments: dict[str, str]) -> serve.Application:
    """The application that `serve run serve.app:build name=value ...` starts."""
    settings = from_arguments(arguments)
    models = {
        name: Model.options(name=name.replace("/", "-"), ray_actor_options={"num_cpus": 0}).bind(
            name, settings
        )
        for name in settings.models
    }
    return Front.options(ray_actor_options={"num_cpus": 0}).bind(settings, models)
