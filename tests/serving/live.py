"""A real server, clients that ask it without pause, and what becomes of their requests."""

import http.client
import json
import threading
import time
from contextlib import closing, contextmanager, suppress
from urllib.parse import urlsplit

import psutil
import pytest
import ray
from ports import free_port
from ray import serve
from tiny_models import gpt2

from serve.app import build
from smallm.tracking import Tracker, local_uri

PATIENCE = 60  # seconds within which everything comes back


@contextmanager
def live_server(arguments, environment):
    """The address of a server in a Ray of its own, whose processes see the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        try:
            port = free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(build(arguments), route_prefix="/")
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


class Client:
    """Asks in the name of an address of this machine, or with a key."""

    def __init__(self, address, *, source="127.0.0.1", key=None):
        place = urlsplit(address)
        self.place = (place.hostname, place.port)
        self.source = source
        self.headers = {"Content-Type": "application/json"}
        if key is not None:
            self.headers["Authorization"] = f"Bearer {key}"

    def connect(self):
        return http.client.HTTPConnection(*self.place, PATIENCE, source_address=(self.source, 0))

    def begin(self, path, body=None):
        """A connection that has sent its request."""
        connection = self.connect()
        method = "GET" if body is None else "POST"
        connection.request(method, path, None if body is None else json.dumps(body), self.headers)
        return connection

    def ask(self, path, body=None):
        """Status, headers and JSON (or text) of a request."""
        with closing(self.begin(path, body)) as connection:
            answer = connection.getresponse()
            content = answer.read().decode()
            if answer.headers.get_content_type() == "application/json":
                content = json.loads(content)
            return answer.status, answer.headers, content

    def stream(self, body):
        """Status and last event of a streamed completion: [DONE], unless it failed."""
        with closing(self.begin("/v1/completions", body | {"stream": True})) as connection:
            answer = connection.getresponse()
            events = [line for line in answer.read().decode().split("\n\n") if line]
            if answer.status != 200:
                return answer.status, json.loads(events[0])
            last = events[-1].removeprefix("data: ")
            return 200, last if last == "[DONE]" else json.loads(last)


@contextmanager
def load(*asks):
    """While each function is called again and again in a thread of its own; gives their results."""
    ended, results = threading.Event(), [[] for _ in asks]

    def go(ask, own):
        while not ended.is_set():
            try:
                own.append(ask())
            except Exception as error:  # the test judges it
                own.append(error)

    threads = [threading.Thread(target=go, args=each) for each in zip(asks, results, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield results
    finally:
        ended.set()
        for thread in threads:
            thread.join(2 * PATIENCE)
        assert not any(thread.is_alive() for thread in threads)


def eventually(condition, patience=PATIENCE):
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.05)
    return found


def replica(deployment):
    """The process of the only replica of a deployment; None while there is none."""
    title = f"ray::ServeReplica:default:{deployment.replace('/', '-')}"
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if "".join(process.cmdline()[:1]).startswith(title):
                found.append(process)
    return found[0] if len(found) == 1 else None


def failures(results):
    """What is no whole answer: errors, other statuses than 200, streams that did not end well."""
    return [
        each
        for own in results
        for each in own
        if isinstance(each, Exception) or each[0] != 200 or "error" in each[-1]
    ]


def killed(deployment):
    """Ends the process of a deployment as nothing else would; waits until another one is there."""
    before = replica(deployment)
    before.kill()
    eventually(lambda: replica(deployment) not in (None, before))


def goes_on(results):
    """Whether every client has had two good answers from now on."""
    counts = [len(own) for own in results]

    def all_have_had_some():
        return all(
            len(own) >= count + 2 and not failures([own[-2:]])
            for own, count in zip(results, counts, strict=True)
        )

    return eventually(all_have_had_some)


def save(parts, folder):
    for part in parts:
        part.save_pretrained(folder)


def claims_more(folder):
    """The model says that it reads longer texts than it has positions for."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_positions": 4096}))


class Champions:
    """Searches that end with a champion, in the MLflow of the server's home."""

    def __init__(self, folder):
        self.folder = folder
        self.number = 0

    def crown(self, layers):
        self.number += 1
        model = self.folder / f"champion-{self.number}"
        save(gpt2(layers=layers, context=64), model)
        tracker = Tracker.open(
            self.folder / f"search-{self.number}",
            uri=local_uri(self.folder / "home"),
            experiment="smallm",
            search=f"search-{self.number}",
            notify=pytest.fail,
        )
        tracker.start_run("search", name="a", params={}, tags={})
        tracker.register_champion("search", model, tags={})
        tracker.end_run("search", status="FINISHED", reason="all trials ended")
        assert tracker.close() == 0
