"""Requests and errors of the HTTP interface: OpenAI's completions, and SmaLLM's own routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from smallm.errors import SmallmError

Json = dict[str, Any]


class RequestError(SmallmError):
    """What is wrong with a request, with the status it is answered by."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:  # it travels between processes
        return _remade, (str(self), self.status, self.param)


def _remade(message: str, status: int, param: str | None) -> RequestError:
    return RequestError(message, status=status, param=param)


class ErrorContent(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """An error as OpenAI's clients understand it."""

    error: ErrorContent


def error_body(message: str, *, status: int, param: str | None = None) -> Json:
    """An error as OpenAI's clients understand it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def _several(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise PydanticCustomError("text", "Half of a surrogate pair is no character") from None
    return text


def _one_or_several(several: Any) -> BeforeValidator:
    return BeforeValidator(_several, json_schema_input_type=Text | several)


def _null_is(default: Any, kind: Any) -> BeforeValidator:
    """Null is as good as nothing, as OpenAI's clients may send it."""
    return BeforeValidator(
        lambda given: default if given is None else given, json_schema_input_type=kind | None
    )


Text = Annotated[str, AfterValidator(_encodable)]
"""JSON can escape what is no text: it could be neither encoded nor answered."""
SomeText = Annotated[str, Field(min_length=1), AfterValidator(_encodable)]
Texts = Annotated[list[Text], Field(min_length=1)]
Stops = Annotated[list[SomeText], Field(max_length=4)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Names = Annotated[list[Text], Field(min_length=1)]
Temperature = Annotated[float, Field(ge=0, le=100)] | Literal["fitted"]
Share = Annotated[float, Field(gt=0, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]
Nothing = Annotated[dict[str, float], Field(max_length=0)]


class Request(BaseModel):
    """A request; a field that does not exist is an error, as is one of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class StreamOptions(Request):
    """What a stream holds besides its pieces."""

    include_usage: bool = False
    """Whether its last event tells the numbers of tokens."""


class CompletionRequest(Request):
    """OpenAI's completions, with `fitted` as a temperature.

    Of what changes a model's own probabilities only the values that change nothing are taken.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"model": "champion", "prompt": "Neural networks are", "max_tokens": 20}
        }
    )

    model: Text
    """A name of /v1/models."""
    prompt: Annotated[Texts, _one_or_several(Texts)]
    """What is continued: a text or a list."""
    max_tokens: Annotated[Count, _null_is(16, Count)] = 16
    """Most tokens of a continuation."""
    temperature: Annotated[Temperature, _null_is(1.0, Temperature)] = 1.0
    """0 is greedy; `fitted` is the one that makes held-out text most likely."""
    top_p: Annotated[Share, _null_is(1.0, Share)] = 1.0
    """Only the most probable tokens that together reach this probability."""
    n: Annotated[Count, _null_is(1, Count)] = 1
    """Continuations of each prompt; with a seed, each has one of its own."""
    stop: Annotated[Stops, _one_or_several(Stops)] | None = None
    """Texts before which a continuation ends."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """The same seed gives the same text."""
    logprobs: int | None = Field(default=None, ge=0, le=5)
    """The most probable tokens at each place, with their log-probabilities."""
    echo: Annotated[bool, _null_is(False, bool)] = False
    """Whether the prompt comes first in the answer."""
    stream: Annotated[bool, _null_is(False, bool)] = False
    """Whether the answer comes in pieces, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    user: Text | None = None
    """Whom the request is for; not used."""
    frequency_penalty: Zero | None = None
    """Only 0."""
    presence_penalty: Zero | None = None
    """Only 0."""
    logit_bias: Nothing | None = None
    """Only an empty one."""
    best_of: One | None = None
    """Only 1."""
    suffix: None = None
    """Only null: no model here writes what stands between two texts."""


class NextWordsRequest(Request):
    """The most probable next words of a prompt."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "Neural networks are", "k": 5}}
    )

    prompt: Text
    """A text that ends in a word."""
    k: Count = 5
    """How many words."""
    models: Names | None = None
    """Names of /v1/models; by default all that are available."""


class CompareRequest(NextWordsRequest):
    """The same prompt to several models: next words and a continuation of each."""

    models: Names | None = None
    """Names of /v1/models; by default all: what is unavailable shows why."""
    max_tokens: Count = 24
    """Most tokens of a continuation."""
    temperature: Annotated[float, Field(ge=0, le=100)] | Literal["fitted"] = 0.8
    """0 is greedy."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The same seed gives the same text."""


class ScoreRequest(Request):
    """How probable a text is."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"text": "Neural networks are trained on data."}}
    )

    text: SomeText
    """Any text."""
    models: Names | None = None
    """Names of /v1/models; by default all that are available."""


class AttentionRequest(Request):
    """Where the heads of one layer look while the model reads a prompt."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "champion", "prompt": "Neural networks are"}}
    )

    model: Text
    """A name of /v1/models."""
    prompt: Text
    """A text of at most 48 tokens."""
    layer: Count | None = None
    """Counted from 1; by default the last."""


class NeighborsRequest(Request):
    """The words whose embeddings lie nearest to that of a word."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "champion", "word": "model"}})

    model: Text
    """A name of /v1/models."""
    word: Text
    """A word that is one token of the model."""
    k: Count = 10
    """How many words."""


class WordMapRequest(Request):
    """The frequent words of a model in the plane, by t-SNE."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "champion"}})

    model: Text = "champion"
    """A name of /v1/models; searches place the words of their champions."""


class LearningCurvesRequest(Request):
    """Bits per byte and hidden units of a model over its training."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "champion"}})

    model: Text = "champion"
    """A name of /v1/models; champions have those of all trials of their search."""


@dataclass(frozen=True)
class Delta:
    """Some text of one continuation; the last has a reason to end."""

    index: int
    text: str
    logprobs: Json | None = None
    finish_reason: str | None = None
    tokens: int = 0
    """Tokens chosen for it."""


def check_at_most(name: str, value: int, most: int) -> None:
    """RequestError for more than the server's settings allow."""
    if value > most:
        raise RequestError(f"{name} is {value}: this server allows at most {most}", param=name)


def unknown_model(name: str, known: Sequence[str]) -> RequestError:
    """The error for a model that is not served: it lists those that are."""
    return RequestError(
        f"model {name!r} is not served here; served are {', '.join(known)}",
        status=404,
        param="model",
    )
