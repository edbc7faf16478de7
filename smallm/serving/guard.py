"""What stands before the server's routes: keys, limits, security headers, errors without traces.

    api.add_middleware(Guard, rules=lambda: rules)  # the last one added: it is the outermost

Counts are those of one process. It is plain ASGI, so answers pass piece by piece, and the app hears
when its client has gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from smallm.serving.keys import Keys, is_loopback
from smallm.serving.protocol import RequestError, error_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]
Reason = Literal["key", "host", "size", "slow", "busy", "busy_key"]

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
UNCOUNTED_PATHS = frozenset({"/metrics"})  # who watches is answered also when all slots are taken
LINGER = 2.0  # seconds in which the rest of a refused body is thrown away
ELSEWHERE = {"cross-site", "same-site"}  # what browsers say of a request by another site's page
RETRY_AFTER = 1  # seconds
ALWAYS: dict[bytes, bytes] = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}
UNLESS_SET: dict[bytes, bytes] = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Who may ask, and how much."""

    keys: Keys | None = None
    """Without keys, only requests that name this machine (Host: localhost) are answered."""
    open_paths: frozenset[str] = OPEN_PATHS
    """Need no key and count nowhere; they take no body."""
    most_body_bytes: int = 2**20
    """Largest body of a request."""
    most_running: int = 512
    """Requests worked on, waiting or being received at once."""
    most_running_per_key: int = 64
    """The same of one key; without keys, of one client address."""
    body_timeout: float = 10.0
    """Seconds in which the body of a request must arrive."""


class _Refused(RequestError):
    def __init__(
        self, reason: Reason, status: int, message: str, headers: Iterable[Header] = ()
    ) -> None:
        super().__init__(message, status=status)
        self.reason: Reason = reason
        self.headers = headers


class Guard:
    """An ASGI app before another one; `refused` hears the reason of each refusal."""

    def __init__(
        self,
        app: App,
        rules: Callable[[], Rules],
        refused: Callable[[Reason], object] = lambda reason: None,
    ) -> None:
        self.app = app
        self.rules = rules
        self.refused = refused
        self._running: Counter[str] = Counter()

    @property
    def running(self) -> int:
        """The requests that hold a slot."""
        return self._running.total()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the start and end of the server."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answered(scope, _Incoming(scope, receive), _Outgoing(send))
        else:  # no route is a web socket: none gets past the keys
            await send({"type": "websocket.close", "code": 1008})

    async def _answered(self, scope: Scope, incoming: _Incoming, outgoing: _Outgoing) -> None:
        try:
            await self._guarded(scope, incoming, outgoing)
        except _Refused as refused:
            self.refused(refused.reason)
            await _refuse(refused, incoming, outgoing)
        except Exception:
            if outgoing.begun:
                raise  # the server logs it and breaks the connection
            log.exception("%s %r failed", scope["method"], scope["path"])
            await outgoing.error(RequestError("the server failed", status=500))

    async def _guarded(self, scope: Scope, incoming: _Incoming, outgoing: _Outgoing) -> None:
        rules = self.rules()
        if scope["path"] in rules.open_paths:
            await self._passed_on(scope, incoming, outgoing, rules, most=0)
            return
        asker = _asker(scope, rules)
        if scope["path"] in UNCOUNTED_PATHS:
            await self._passed_on(scope, incoming, outgoing, rules, most=0)
            return
        with self._slot(asker, rules):
            await self._passed_on(scope, incoming, outgoing, rules, most=rules.most_body_bytes)

    async def _passed_on(
        self,
        scope: Scope,
        incoming: _Incoming,
        outgoing: _Outgoing,
        rules: Rules,
        *,
        most: int,
    ) -> None:
        body = await incoming.body(most=most, seconds=rules.body_timeout)
        if body is not None:
            await self.app(scope, _replayed(body, incoming), outgoing)

    @contextmanager
    def _slot(self, asker: str, rules: Rules) -> Iterator[None]:
        if self.running >= rules.most_running:
            raise _busy("busy", "the server is busy; try again")
        if self._running[asker] >= rules.most_running_per_key:
            raise _busy("busy_key", f"more than {rules.most_running_per_key} requests at once")
        self._running[asker] += 1
        try:
            yield
        finally:
            self._running[asker] -= 1
            if not self._running[asker]:
                del self._running[asker]


class _Incoming:
    """What comes from the client; knows whether the body has ended."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        length = _only(scope, b"content-length") or "0"
        self.length = int(length) if length.isascii() and length.isdigit() else 0
        self.ended = not self.length and _only(scope, b"transfer-encoding") is None
        self._receive = receive

    async def __call__(self) -> Message:
        message = await self._receive()
        self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def body(self, *, most: int, seconds: float) -> bytes | None:
        """The whole body; None where the client goes away before."""
        if self.length > most:
            raise _too_large(most)
        found = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while (message := await self())["type"] == "http.request":
                    found += message.get("body", b"")
                    if len(found) > most:
                        raise _too_large(most)
                    if self.ended:
                        return bytes(found)
        except TimeoutError:
            raise _Refused("slow", 408, f"no whole body within {seconds:g} s") from None
        return None

    async def thrown_away(self) -> None:
        """The rest of the body, so that a client that still sends it reads its answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.ended:
                    await self()


class _Outgoing:
    """What goes to the client, with the security headers; knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": secured(message.get("headers", ()))}
        await self._send(message)

    async def error(
        self, error: RequestError, headers: Iterable[Header] = (), *, last: bool = True
    ) -> None:
        """An error as OpenAI's clients understand it."""
        content = json.dumps(error_body(str(error), status=error.status)).encode()
        about = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            *headers,
        ]
        await self({"type": "http.response.start", "status": error.status, "headers": about})
        await self({"type": "http.response.body", "body": content, "more_body": not last})

    async def end(self) -> None:
        """The end of an answer whose last piece was not the last message."""
        await self({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(refused: _Refused, incoming: _Incoming, outgoing: _Outgoing) -> None:
    if incoming.ended:
        await outgoing.error(refused, refused.headers)
        return
    # A connection closed with unread bytes is reset, and its client never sees the answer.
    headers = [*refused.headers, (b"connection", b"close")]
    await outgoing.error(refused, headers, last=False)
    if refused.status != 408:
        await incoming.thrown_away()
    await outgoing.end()


def secured(headers: Iterable[Header]) -> list[Header]:
    """Headers of an answer, with the security headers."""
    kept = [(name, value) for name, value in headers if name.lower() not in ALWAYS]
    own = {name.lower() for name, _ in kept}
    defaults = [(name, value) for name, value in UNLESS_SET.items() if name not in own]
    return [*kept, *ALWAYS.items(), *defaults]


def _asker(scope: Scope, rules: Rules) -> str:
    """The key's name, without keys the client's address; _Refused for who may not ask."""
    if rules.keys is None:
        return _local_address(scope)
    owner = rules.keys.owner(_only(scope, b"authorization"))
    if owner is None:
        message = "this server needs a key: send `Authorization: Bearer KEY`"
        raise _Refused("key", 401, message, [(b"www-authenticate", b"Bearer")])
    return owner


def _local_address(scope: Scope) -> str:
    """The client's address. A web site's name that was made to point here is refused."""
    if _only(scope, b"sec-fetch-site") in ELSEWHERE:
        raise _Refused("host", 421, "without keys this server does not answer other web sites")
    host = _only(scope, b"host")
    if host is not None and not is_loopback(_name_of(host)):
        raise _Refused("host", 421, "without keys this server answers only as localhost")
    return str((scope.get("client") or ("unknown",))[0])


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _only(scope: Scope, wanted: bytes) -> str | None:
    """A header's value; of a repeated one the joined values, as HTTP has it."""
    values = [value for name, value in scope["headers"] if name.lower() == wanted]
    return b", ".join(values).decode("latin-1") if values else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body again, then what comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _too_large(most: int) -> _Refused:
    return _Refused("size", 413, f"the body is larger than {most} bytes")


def _busy(reason: Reason, message: str) -> _Refused:
    return _Refused(reason, 429, message, [(b"retry-after", str(RETRY_AFTER).encode())])
