"""The servers that benchmarks.serving compares: `python -m benchmarks.servers KIND ...`.

All answer POST /v1/next-words with the words of one model. Each runs in a process of its own, so
that it has the machine to itself.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATH = "/v1/next-words"


def smallm_server(options: argparse.Namespace) -> None:
    """SmaLLM's own; HAProxy before it where the environment says so."""
    from serve.app import build

    settings = {"models": str(options.model), "replicas": options.workers}
    run(build({**settings, "threads": options.threads, "most_running_per_key": 512}), options.port)


def empty_server(options: argparse.Namespace) -> None:
    """Two deployments of Ray Serve that do nothing: what its own proxy and one hop take."""
    from fastapi import Body, FastAPI
    from ray import serve

    api = FastAPI()

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Model:
        async def next_words(self, asked: Any) -> Any:
            return {"models": {"empty": {"milliseconds": 0}}, "asked": asked}

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    @serve.ingress(api)
    class Ingress:
        def __init__(self, model: Any) -> None:
            self.model = model

        @api.post(PATH)
        async def next_words(self, asked: Any = Body()) -> Any:  # noqa: B008
            return await self.model.next_words.remote(asked)

    run(Ingress.bind(Model.bind()), options.port)


def run(application: Any, port: int) -> None:
    """Runs an application of Ray Serve on a Ray of its own until Ctrl-C."""
    import ray
    from ray import serve

    ray.init(include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(application)
    try:
        while True:
            time.sleep(60)
    except KeyboardInterrupt:
        serve.shutdown()
        ray.shutdown()


def litserve_server(options: argparse.Namespace) -> None:
    """LitServe with its dynamic batching."""
    import litserve

    from benchmarks.litserve_words import Words

    server = litserve.LitServer(
        Words(options), accelerator="cpu", workers_per_device=options.workers
    )
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="error")


def bare_server(options: argparse.Namespace) -> None:
    """FastAPI on uvicorn, which calls the model in its own process, one request after another."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    words = words_of(options)
    api = FastAPI()

    class Asked(BaseModel):
        prompt: str
        k: int

    async def next_words(asked: Asked) -> Any:
        return words([(asked.prompt, asked.k)])[0]

    next_words.__annotations__["asked"] = Asked
    api.post(PATH)(next_words)
    uvicorn.run(api, host="127.0.0.1", port=options.port, log_level="error", access_log=False)


def words_of(options: argparse.Namespace) -> Callable[[list[tuple[str, int]]], list[Any]]:
    """The model's next words as answers."""
    from dataclasses import asdict

    from smallm.predictors.expansion import next_words_side_by_side
    from smallm.predictors.loading import load_predictor

    home = Path(os.environ["SMALLM_HOME"])
    predictor: Any = load_predictor(str(options.model), home=home, threads=options.threads)

    def words(asked: list[tuple[str, int]]) -> list[Any]:
        return [asdict(found) for found in next_words_side_by_side(predictor, asked)]

    return words


KINDS = {
    "smallm": smallm_server,
    "litserve": litserve_server,
    "bare": bare_server,
    "empty": empty_server,
}


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    KINDS[options.kind](options)


if __name__ == "__main__":
    main()
