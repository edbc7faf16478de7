"""Speed of the server beside others on this machine: `python -m benchmarks.serving`.

Next words of a SmaLLM (default shape, trained briefly on invented text) by SmaLLM's server, by
LitServe and by bare FastAPI, asked by 1, 8, 32 and 128 clients, each of which asks again as soon as
it is answered; all servers get the same prompts. Then completions of SmolLM2-135M by 8 clients
beside `generate` of transformers, one after another. Exits with 1 when a goal is not reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import torch

from benchmarks.next_words import PROMPTS, trained
from benchmarks.servers import PATH, words_of
from smallm.predictors.loading import load_predictor

CLIENTS = (1, 8, 32, 128)
SECONDS = 10.0  # of one measurement
WARM_UP = 2.0
START_SECONDS = 180.0
STOP_SECONDS = 60.0  # requests under way have 20 s in each of the server's parts
TOP = 5
DIFFERENT = 20_000  # prompts
COMPARED_AT = 32  # clients
SMOLLM2 = "smollm2-135m"
TOKENS = 48
THREADS = 2  # of generate; the server's one leaves a processor for all that is around it
AT_ONCE = 8  # clients that ask for completions
GOALS = {
    "next_words_over_litserve": 2.0,
    "next_words_over_litserve_2_workers": 2.0,
    "next_words_over_bare": 0.6,
    "completions_over_generate": 5.0,
    "front_time": 1.0,
    "fast_front_time": 1.0,
}
FRONT_MILLISECONDS = 8.0
FAST_FRONT = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


@dataclass
class Load:
    """What clients saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Seconds of each request."""
    overheads: list[float] = field(default_factory=list)
    """Seconds of each request that the model did not work on it, where the answer tells."""
    tokens: int = 0

    def add(self, seconds: float, answer: dict[str, Any]) -> None:
        """One answered request."""
        self.latencies.append(seconds)
        self.tokens += answer.get("usage", {}).get("completion_tokens", 0)
        for found in answer.get("models", {}).values():
            self.overheads.append(seconds - found["milliseconds"] / 1000)

    def __str__(self) -> str:
        return f"{self.rate:>9.1f} {self.percentile(0.5):>9.1f} {self.percentile(0.99):>9.1f}"

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Milliseconds within which a share of the requests was answered."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)]


@dataclass(frozen=True)
class Server:
    """One of benchmarks.servers, and how it is started."""

    label: str
    kind: str
    workers: int = 1
    threads: int = 1
    environment: dict[str, str] = field(default_factory=dict)


SERVERS = (
    Server("bare FastAPI", "bare"),
    Server("LitServe", "litserve"),
    Server("LitServe, 2 workers", "litserve", workers=2),
    Server("SmaLLM", "smallm"),
    Server("SmaLLM, fast front", "smallm", environment=FAST_FRONT),
    Server("SmaLLM, fast front, 2 replicas", "smallm", workers=2, environment=FAST_FRONT),
)


EMPTY = Server("Ray Serve, two empty deployments", "empty")


def main() -> None:
    """Measures all servers, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, help="keeps the converted SmolLM2 for the next time")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one measurement")
    parser.add_argument("--only", choices=["next-words", "completions"])
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SMALLM_HOME"] = str(options.home or Path(folder) / "home")
        if options.only != "completions":
            ratios |= next_words(Path(folder), options.seconds)
        if options.only != "next-words":
            ratios |= completions(options.seconds)
    for name, value in ratios.items():
        print(f"ratio {name} {value:.2f} goal {GOALS[name]:g}")
    sys.exit(any(value < GOALS[name] for name, value in ratios.items()))


def next_words(folder: Path, seconds: float) -> dict[str, float]:
    """Requests a second of all servers; the ratios at 32 clients."""
    model, prompts = saved(folder)
    print(f"{'next words of a SmaLLM':<32} clients  a second    p50 ms    p99 ms")
    found: dict[tuple[str, int], Load] = {}
    for server in SERVERS:
        bodies = cycle({"prompt": prompt, "k": TOP} for prompt in prompts)  # the same for all
        with running(server, model) as address:
            address.ask(PATH, bodies, clients=8, seconds=WARM_UP)
            for clients in CLIENTS:
                one = found[server.label, clients] = address.ask(
                    PATH, bodies, clients=clients, seconds=seconds
                )
                print(f"{server.label:<32} {clients:>7} {one}", flush=True)
    overhead = {
        label: 1000 * statistics.median(found[label, 1].overheads)
        for label in ("SmaLLM", "SmaLLM, fast front")
    }
    for label, milliseconds in overhead.items():
        print(f"the front of {label} adds {milliseconds:.1f} ms to a request of one idle client")
    print_limits(model, prompts, seconds)
    one, two = (
        found[label, COMPARED_AT].rate
        for label in ("SmaLLM, fast front", "SmaLLM, fast front, 2 replicas")
    )
    return {
        "next_words_over_litserve": one / found["LitServe", COMPARED_AT].rate,
        "next_words_over_litserve_2_workers": two / found["LitServe, 2 workers", COMPARED_AT].rate,
        "next_words_over_bare": one / found["bare FastAPI", COMPARED_AT].rate,
        "front_time": FRONT_MILLISECONDS / overhead["SmaLLM"],
        "fast_front_time": FRONT_MILLISECONDS / overhead["SmaLLM, fast front"],
    }


def print_limits(model: str, prompts: list[str], seconds: float) -> None:
    """What no server can better here: the time of Ray Serve alone, that of the search alone."""
    with running(EMPTY, model) as address:
        bodies = cycle({"prompt": prompt, "k": TOP} for prompt in prompts)
        address.ask(PATH, bodies, clients=1, seconds=WARM_UP)
        alone = address.ask(PATH, bodies, clients=1, seconds=seconds)
    print(f"{EMPTY.label} take {1000 * statistics.median(alone.overheads):.1f} ms")
    words = words_of(argparse.Namespace(model=model, threads=1))
    firsts = range(0, 10 * COMPARED_AT, COMPARED_AT)
    start = time.process_time()
    for first in firsts:
        words([(prompt, TOP) for prompt in prompts[first : first + COMPARED_AT]])
    search = (time.process_time() - start) / (len(firsts) * COMPARED_AT)
    processors = len(os.sched_getaffinity(0))
    print(
        f"the search alone takes {1000 * search:.2f} ms of a processor: on {processors} no server "
        f"answers more than {processors / search:.0f} a second"
    )


def saved(folder: Path) -> tuple[str, list[str]]:
    """The folder of a trained SmaLLM, and many different prompts."""
    predictor, prompts = trained(folder, 1, DIFFERENT)
    predictor.model.save_pretrained(folder / "model")
    predictor.tokenizer.save_pretrained(folder / "model")
    return str(folder / "model"), prompts


def completions(seconds: float) -> dict[str, float]:
    """Tokens a second of SmolLM2-135M for several clients, and of generate one after another."""
    print(f"{'completions of SmolLM2-135M':<32} clients  tokens a second")
    alone = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        alone[name] = generated(dtype, seconds)
        print(f"{'generate of transformers, ' + name:<32} {1:>7} {alone[name]:>9.1f}", flush=True)
    asked = {"model": SMOLLM2, "max_tokens": TOKENS, "temperature": 0.8}
    bodies = (
        {**asked, "prompt": f"{number}. {prompt}"} for number in count(1) for prompt in PROMPTS
    )
    found = {}
    with running(Server("SmaLLM", "smallm"), SMOLLM2) as address:
        address.ask("/v1/completions", bodies, clients=AT_ONCE, seconds=WARM_UP)
        for clients in (1, AT_ONCE, 32):
            one = address.ask("/v1/completions", bodies, clients=clients, seconds=2 * seconds)
            found[clients] = one.tokens / one.seconds
            print(f"{'SmaLLM':<32} {clients:>7} {found[clients]:>9.1f}   {one}", flush=True)
    return {"completions_over_generate": found[AT_ONCE] / max(alone.values())}


def generated(dtype: torch.dtype, seconds: float) -> float:
    """Tokens a second that transformers generates, one prompt after another."""
    predictor = load_predictor(SMOLLM2, home=Path(os.environ["SMALLM_HOME"]), threads=THREADS)
    model, tokenizer = predictor.model.to(dtype), predictor.tokenizer
    options = {"do_sample": True, "temperature": 0.8, "top_k": 0, "pad_token_id": 0}
    tokens, spent = 0, 0.0
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt")
        start = time.perf_counter()
        made = model.generate(**ids, max_new_tokens=TOKENS if number else 4, **options)
        if number:  # the first warms up
            spent += time.perf_counter() - start
            tokens += made.shape[1] - ids.input_ids.shape[1]
        if spent > seconds:
            break
    return tokens / spent


@dataclass(frozen=True)
class Address:
    """A running server."""

    url: str
    headers: dict[str, str]
    process: int

    def ask(
        self, path: str, bodies: Iterator[dict[str, Any]], *, clients: int, seconds: float
    ) -> Load:
        """Has clients ask it; what they saw."""
        return asyncio.run(load(self.url + path, self.headers, bodies, clients, seconds))


@contextmanager
def running(server: Server, model: str) -> Iterator[Address]:
    """Starts a server; it ends with the block."""
    port, key = free_port(), secrets.token_hex(16)
    command = [sys.executable, "-m", "benchmarks.servers", server.kind, "--model", model]
    command += ["--port", str(port), "--threads", str(server.threads)]
    command += ["--workers", str(server.workers)]
    environment = {**os.environ, **server.environment, "SMALLM_API_KEYS": key}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(process, address)
        yield Address(address, {"Authorization": f"Bearer {key}"}, process.pid)
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        for each in (process, *started):  # what holds on to its ports, such as HAProxy's
            with suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(started, timeout=STOP_SECONDS)


def wait_for(process: subprocess.Popen[bytes], address: str) -> None:
    """Waits until the server answers, were it that it asks for a key."""
    end = time.monotonic() + START_SECONDS
    body = json.dumps({"prompt": PROMPTS[0], "k": TOP}).encode()
    request = urllib.request.Request(address + PATH, body, {"Content-Type": "application/json"})
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode} before it answered")
        try:
            urllib.request.urlopen(request, timeout=5)
            return
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            pass
        time.sleep(0.5)
    sys.exit(f"the server did not answer within {START_SECONDS:g} s")


async def load(
    url: str,
    headers: dict[str, str],
    bodies: Iterator[dict[str, Any]],
    clients: int,
    seconds: float,
) -> Load:
    """Clients that ask again as soon as they are answered, for some seconds."""
    found = Load()
    start = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=clients)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers
    ) as session:

        async def client() -> None:
            while time.perf_counter() < start + seconds:
                began = time.perf_counter()
                async with session.post(url, json=next(bodies)) as answer:
                    content = await answer.json()
                    if answer.status != 200:
                        sys.exit(f"{url} answered {answer.status}: {content}")
                found.add(time.perf_counter() - began, content)

        await asyncio.gather(*(client() for _ in range(clients)))
    found.seconds = time.perf_counter() - start
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
