"""Answers of /v1/completions in OpenAI's shape, whole or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from smallm.serving.protocol import CompletionRequest, Delta, Json, RequestError, error_body

OBJECT = "text_completion"


def completion(
    deltas: Iterable[Delta],
    request: CompletionRequest,
    about: Mapping[str, Any],
    *,
    prompt_tokens: int,
) -> Json:
    """The whole answer: the pieces of each continuation joined."""
    choices: dict[int, Json] = {}
    tokens = 0
    for delta in deltas:
        tokens += delta.tokens
        found = choices.get(delta.index)
        if found is None:
            choices[delta.index] = _choice(delta)
            continue
        found["text"] += delta.text
        found["finish_reason"] = delta.finish_reason
        if delta.logprobs is not None:
            before = found["logprobs"]  # several continuations may share the echo's
            found["logprobs"] = {name: before[name] + new for name, new in delta.logprobs.items()}
    ordered = [choices[index] for index in sorted(choices)]
    return {
        **about,
        "object": OBJECT,
        "model": request.model,
        "choices": ordered,
        "usage": _usage(prompt_tokens, tokens),
    }


async def streamed(
    pieces: AsyncGenerator[int | list[Delta], None],
    request: CompletionRequest,
    about: Mapping[str, Any],
    *,
    prompt_tokens: int,
) -> AsyncIterator[str]:
    """Server-sent events, one for each delta, then [DONE]; an error is an event as well."""
    head = {**about, "object": OBJECT, "model": request.model}
    tokens = 0
    try:
        async with aclosing(pieces):
            async for deltas in pieces:
                assert not isinstance(deltas, int)
                tokens += sum(delta.tokens for delta in deltas)
                yield "".join(_event({**head, "choices": [_choice(each)]}) for each in deltas)
    except RequestError as error:
        yield _event(error_body(str(error), status=error.status, param=error.param))
        return
    if request.stream_options is not None and request.stream_options.include_usage:
        yield _event({**head, "choices": [], "usage": _usage(prompt_tokens, tokens)})
    yield "data: [DONE]\n\n"


def _usage(prompt_tokens: int, tokens: int) -> Json:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens,
    }


def _choice(delta: Delta) -> Json:
    return {
        "index": delta.index,
        "text": delta.text,
        "logprobs": delta.logprobs,
        "finish_reason": delta.finish_reason,
    }


def _event(content: Json) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
