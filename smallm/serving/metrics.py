"""Numbers of the running server, as Prometheus reads them. Each process counts its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from smallm.serving.protocol import RequestError

UNKNOWN = "unknown"  # one series for all names that are not served
TEXT = "text/plain; version=0.0.4; charset=utf-8"  # what generate_latest writes
GONE = 499  # the client went away before its answer
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class Metrics:
    """Counts requests, their time and their tokens, by model; only the given names have series."""

    def __init__(self, models: Iterable[str]) -> None:
        self.models = frozenset(models)
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "smallm_requests",
            "Requests by the status of their answer; 499 where the client went away.",
            ["model", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "smallm_request_seconds",
            "Seconds until a request was answered to its end.",
            ["model", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "smallm_tokens", "Tokens read and written.", ["model", "kind"], registry=self.registry
        )
        self._running = Gauge(
            "smallm_requests_running",
            "Requests that a model works on or that wait for it.",
            ["model"],
            registry=self.registry,
        )
        self._refused = Counter(
            "smallm_refused",
            "Requests that did not reach a model, by reason.",
            ["reason"],
            registry=self.registry,
        )
        for model in self.models:
            self._running.labels(model).set(0)

    @contextmanager
    def asked(self, model: str, route: str) -> Iterator[None]:
        """Counts what happens inside as one request; the route is a pattern, never a raw path."""
        name, status = self._known(model), 200
        start = time.perf_counter()
        self._running.labels(name).inc()
        try:
            yield
        except RequestError as error:
            status = error.status
            raise
        except (asyncio.CancelledError, GeneratorExit):  # the latter of a stream nobody reads
            status = GONE
            raise
        except BaseException:
            status = 500
            raise
        finally:
            self._running.labels(name).dec()
            self._requests.labels(name, route, str(status)).inc()
            self._seconds.labels(name, route).observe(time.perf_counter() - start)

    def tokens(self, model: str, *, prompt: int = 0, completion: int = 0) -> None:
        """Adds tokens that a model has read and written."""
        name = self._known(model)
        self._tokens.labels(name, "prompt").inc(prompt)
        self._tokens.labels(name, "completion").inc(completion)

    def refused(self, reason: str) -> None:
        """Counts a request that the guard turned away."""
        self._refused.labels(reason).inc()

    def text(self) -> tuple[bytes, str]:
        """The body of /metrics and its content type."""
        return generate_latest(self.registry), TEXT

    def _known(self, model: str) -> str:
        return model if model in self.models else UNKNOWN
