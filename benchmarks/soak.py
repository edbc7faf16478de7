"""Memory of the server at saturation: `python -m benchmarks.soak --seconds 600`.

Clients ask a SmaLLM for next words, completions and streams they leave half way, without a pause.
Prints the memory of all processes of the server, pages they share counted once, as time goes on.
Exits with 1 where it grows or a request fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.servers import PATH
from benchmarks.serving import TOP, Address, Server, running, saved

SECONDS = 600.0
SETTLED = 0.2  # share of the time after which memory must not grow
GROWTH = 1.05
CLIENTS = 32
BUSY = 429
BROKEN = 0  # counted as a status: a stream that did not come to its end
DONE = b"data: [DONE]\n\n"


def main() -> None:
    """Asks for some minutes, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SMALLM_HOME"] = str(Path(folder) / "home")
        model, prompts = saved(Path(folder))
        with running(Server("SmaLLM", "smallm"), model) as server:
            statuses, memory = asyncio.run(
                soaked(server, cycle(bodies_of(model, prompts)), options.seconds)
            )
    print(f"answers: {dict(statuses)}")
    settled = [size for share, size in memory if share >= SETTLED]
    failed = sum(number for status, number in statuses.items() if status not in (200, BUSY))
    print(f"ratio memory {GROWTH * settled[0] / settled[-1]:.3f} goal 1")
    print(f"ratio answered {float(not failed):.0f} goal 1")
    sys.exit(bool(failed) or settled[-1] > GROWTH * settled[0])


def bodies_of(model: str, prompts: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths and bodies of different kinds."""
    for number, prompt in enumerate(prompts):
        made = {"model": model, "prompt": prompt, "max_tokens": 24, "seed": number}
        yield PATH, {"prompt": prompt, "k": TOP}
        yield "/v1/completions", made
        yield "/v1/completions", {**made, "stream": True}


async def soaked(
    server: Address, asked: Iterator[tuple[str, dict[str, Any]]], seconds: float
) -> tuple[Counter[int], list[tuple[float, int]]]:
    """How often each status came, and the memory at shares of the time."""
    statuses: Counter[int] = Counter()
    memory: list[tuple[float, int]] = []
    start = time.monotonic()

    async def client(session: aiohttp.ClientSession, leaves: bool) -> None:
        while time.monotonic() < start + seconds:
            path, body = next(asked)
            async with session.post(server.url + path, data=json.dumps(body)) as answer:
                statuses[answer.status] += 1
                if body.get("stream") and leaves:
                    await answer.content.readline()
                    answer.close()
                else:
                    content = await answer.read()
                    if body.get("stream") and not content.endswith(DONE):
                        statuses[BROKEN] += 1

    async def watch() -> None:
        for number in range(21):
            await asyncio.sleep(max(0.0, start + number / 20 * seconds - time.monotonic()))
            memory.append((number / 20, memory_of(server.process)))
            answers, size = sum(statuses.values()), memory[-1][1] / 2**20
            print(
                f"{number / 20 * seconds:>6.0f} s {answers:>8} answers {size:>8.0f} MiB", flush=True
            )

    headers = {**server.headers, "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        clients = (client(session, leaves=number % 2 == 0) for number in range(CLIENTS))
        await asyncio.gather(watch(), *clients)
    return statuses, memory


def memory_of(process: int) -> int:
    """Bytes of a process and all below it (PSS)."""
    root = psutil.Process(process)
    total = 0
    for each in [root, *root.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.NoSuchProcess:  # it has ended meanwhile
            continue
    return total


if __name__ == "__main__":
    main()
