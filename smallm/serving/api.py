"""The HTTP interface: routes, errors in OpenAI's shape, the pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

import smallm
from smallm.serving import api_page
from smallm.serving.front import Front
from smallm.serving.guard import RETRY_AFTER, Guard
from smallm.serving.page import add_page
from smallm.serving.protocol import (
    AttentionRequest,
    CompareRequest,
    CompletionRequest,
    ErrorBody,
    Json,
    LearningCurvesRequest,
    NeighborsRequest,
    NextWordsRequest,
    RequestError,
    ScoreRequest,
    WordMapRequest,
    error_body,
)

AGAIN = {429, 503}  # worth trying again
EVENTS = "text/event-stream"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": says}
    for status, says in {
        400: "A field is wrong: the message names it.",
        401: "The key is missing or wrong.",
        404: "No such model or path; the message lists the models.",
        405: "The path takes another method.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        421: "Without keys, only this machine is answered.",
        429: "Too many requests; see Retry-After.",
        500: "The model failed.",
        503: "The model is unavailable; see Retry-After.",
        504: "No answer in time.",
    }.items()
}


def build_api(front: Front) -> FastAPI:
    """The application that answers for a front."""
    api = FastAPI(
        title="SmaLLM",
        version=smallm.__version__,
        description="Small language models beside pretrained ones.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
    )
    api.add_exception_handler(RequestError, _told)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    _add_status(api, front)
    _add_models(api, front)
    add_page(api)
    _add_api_page(api)
    _describe(api)
    api.add_middleware(Guard, rules=lambda: front.rules, refused=front.metrics.refused)
    return api


def _describe(api: FastAPI) -> None:
    """Leaves out of the description FastAPI's own error, which is never given here."""
    described = api.openapi()
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(name, None)


async def _told(_: Request, error: Any) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER)} if error.status in AGAIN else None
    body = error_body(str(error), status=error.status, param=error.param)
    return JSONResponse(body, error.status, headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    first = error.errors()[0]
    field, *inside = first["loc"][1:] or ("the body",)
    if first["type"] == "json_invalid":
        message, field = f"the body is no JSON: {first['ctx']['error']} at {field}", "the body"
    elif field == "the body" and "json" not in request.headers.get("content-type", ""):
        message = "the body must be JSON, with Content-Type: application/json"
    else:  # of a field of several kinds, pydantic names the kind as if it were a place
        inside = [each for each in inside if isinstance(each, int) or each.isidentifier()]
        message = f"{'.'.join(map(str, (field, *inside)))}: {first['msg']}"
    param = None if field == "the body" else field
    return JSONResponse(error_body(message, status=400, param=param), 400)


async def _http(_: Request, error: Any) -> JSONResponse:
    body = error_body(str(error.detail), status=error.status_code)
    return JSONResponse(body, error.status_code, getattr(error, "headers", None))


def _add_status(api: FastAPI, front: Front) -> None:
    @api.get("/healthz")
    async def healthz() -> Json:
        """Whether the front is there."""
        return {"status": "ok"}

    @api.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether at least one model answers."""
        ready = any(each["available"] for each in (await front.about()).values())
        status = "ok" if ready else "no model is available"
        return JSONResponse({"status": status}, 200 if ready else 503)

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Requests, latency, tokens and queue of each model, for Prometheus."""
        body, kind = front.metrics.text()
        return Response(body, media_type=kind)


def _add_models(api: FastAPI, front: Front) -> None:
    @api.get("/v1/models")
    async def models() -> Json:
        """The models, also those that are unavailable, with the reason."""
        return await front.list_models()

    @api.post("/v1/completions", responses={200: {"content": {EVENTS: {}}}})
    async def completions(asked: CompletionRequest) -> Any:
        """Continue prompts, as OpenAI's clients ask for it."""
        made = await front.completions(asked)
        if isinstance(made, dict):
            return JSONResponse(made)
        return StreamingResponse(made, media_type=EVENTS)

    @api.post("/v1/next-words")
    async def next_words(asked: NextWordsRequest) -> JSONResponse:
        """The most probable next words by each model, with bounds."""
        return JSONResponse(await front.next_words(asked))

    @api.post("/v1/score")
    async def score(asked: ScoreRequest) -> JSONResponse:
        """How probable a text is by each model."""
        return JSONResponse(await front.score(asked))

    @api.post("/v1/compare")
    async def compare(asked: CompareRequest) -> JSONResponse:
        """The same prompt to several models at once: next words and a continuation of each."""
        return JSONResponse(await front.compare(asked))

    @api.post("/v1/attention")
    async def attention(asked: AttentionRequest) -> JSONResponse:
        """The attention of each head of a layer over a prompt: rows look at columns."""
        return JSONResponse(await front.attention(asked))

    @api.post("/v1/neighbors")
    async def neighbors(asked: NeighborsRequest) -> JSONResponse:
        """The words whose embeddings lie nearest to that of a word, by cosine."""
        return JSONResponse(await front.neighbors(asked))

    @api.post("/v1/word-map")
    async def word_map(asked: WordMapRequest) -> JSONResponse:
        """The frequent words of a champion by t-SNE, and how far the picture can be trusted."""
        return JSONResponse(await front.word_map(asked))

    @api.post("/v1/learning-curves")
    async def learning_curves(asked: LearningCurvesRequest) -> JSONResponse:
        """How a champion and the other trials of its search learned, and their hidden units."""
        return JSONResponse(await front.learning_curves(asked))

    @api.post("/v1/reload")
    async def reload() -> Json:
        """Have each model look for a newer version; requests go on meanwhile."""
        return await front.reload()


def _add_api_page(api: FastAPI) -> None:
    def route(path: str) -> Callable[[], Response]:
        def read() -> Response:
            content, headers = api_page.api_file(path)
            return Response(content, headers=headers)

        return read

    for path in sorted(api_page.PATHS):
        api.add_api_route(path, route(path), include_in_schema=False)
