"""What holds a model up in its process: versions that change, jobs that fail, askers that go."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextvars import ContextVar

import pytest
import torch
from tiny_models import gpt2

from serve.app import Replicas
from smallm.serving import versions as versions_module
from smallm.serving.protocol import CompletionRequest, RequestError
from smallm.serving.settings import Resources
from smallm.serving.together import Answers, Together
from smallm.serving.versions import Versions

PATIENCE = 20
LONG = CompletionRequest(model="m", prompt="a", max_tokens=100, temperature=0)


class Panic(BaseException):
    """As what a panic in a tokenizer's Rust becomes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "m"
    for part in gpt2(context=4096):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def versions(folder, tmp_path):
    made = Versions(str(folder), Resources(), home=tmp_path)
    yield made
    made._worker.finish()


def run(coroutine):
    async def in_time():
        async with asyncio.timeout(PATIENCE):
            return await coroutine

    return asyncio.run(in_time())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"model": {"type": "Unheard"}}', b"\xff\0"])
def test_a_model_that_cannot_be_loaded_is_unavailable_and_says_why(folder, tmp_path, file, content):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(content if path.name == file else path.read_bytes())
    about = Versions(str(tmp_path), Resources(), home=tmp_path).about()
    assert not about["available"]
    assert about["reason"]
    assert "\n" not in about["reason"]


async def words_of(versions, *prompts):
    return (await versions.next_words([(prompt, 1) for prompt in prompts])).each


@pytest.mark.parametrize(
    "ask",
    [
        lambda versions: versions.score("a b"),
        lambda versions: words_of(versions, "a"),
        lambda versions: versions.completed(LONG),
    ],
)
def test_what_is_asked_while_the_version_changes_is_answered(versions, ask):
    async def asked():
        newer = versions._loaded()
        task = asyncio.create_task(ask(versions))
        await asyncio.sleep(0)  # it has begun
        versions._take(*newer)
        return await task

    assert not any(isinstance(each, Exception) for each in run(asked()))


async def leaves(versions, request, entered, goes_on):
    """Its client goes away once the model works on it, which goes on only then."""
    task = asyncio.create_task(versions.completed(request))
    await until(entered.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    goes_on.set()


def test_who_goes_away_while_the_model_begins_leaves_nothing_behind(versions, monkeypatch):
    engine = versions._worker.engine
    begin, entered, goes_on, begun = engine.begin, threading.Event(), threading.Event(), []

    def slow_begin(request, told):
        entered.set()
        assert goes_on.wait(PATIENCE)
        begun.append(begin(request, told))
        return begun[0]

    monkeypatch.setattr(engine, "begin", slow_begin)

    async def asked():
        endless = LONG.model_copy(update={"max_tokens": 4000})
        await leaves(versions, endless, entered, goes_on)
        await until(lambda: begun and begun[0].ended)
        (row,) = begun[0].rows
        assert len(row.ids) < 2000

    run(asked())


@pytest.mark.parametrize("error", [RuntimeError("inside"), Panic("inside")])
def test_a_job_that_fails_fails_alone(versions, monkeypatch, error):
    next_words = versions._worker.engine.next_words

    def failing(asked):
        if asked == [("bad", 1)]:
            raise error
        return next_words(asked)

    monkeypatch.setattr(versions._worker.engine, "next_words", failing)
    first, second, third = run(words_of(versions, "a", "bad", "b"))
    assert first["words"]
    assert third["words"]
    assert (str(second), second.status) == ("the model failed", 500)


def test_an_empty_prompt_with_echo_and_log_probabilities_leaves_the_others_alone(versions):
    odd = CompletionRequest(model="m", prompt=[""], echo=True, logprobs=1, max_tokens=3)

    async def both():
        return await asyncio.gather(versions.completed(LONG), versions.completed(odd))

    (_, whole), (_, told) = run(both())
    assert sum(delta.tokens for delta in whole) == LONG.max_tokens
    assert told[0].logprobs["tokens"] == []


@pytest.mark.parametrize("error", [RuntimeError("inside"), Panic("inside")])
def test_a_step_that_fails_is_told_and_the_next_request_is_answered(versions, monkeypatch, error):
    def failing():
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(versions._worker.engine._under_way, "step", failing)
        with pytest.raises(RuntimeError, match="inside"):
            run(versions.completed(LONG))
    assert run(versions.completed(LONG))[1]


def test_polling_goes_on_whatever_goes_wrong(versions, monkeypatch):
    errors = [OSError("the disk is gone"), RequestError("MLflow does not answer"), None, None]

    async def reload():
        if error := errors.pop(0):
            raise error

    monkeypatch.setattr(versions, "reload", reload)
    monkeypatch.setattr(versions, "name", "models:/other@champion")

    async def polled():
        task = asyncio.create_task(versions.poll(0.01))
        await until(lambda: len(errors) == 1)
        task.cancel()

    run(polled())


def test_a_folder_is_not_polled(versions):
    run(asyncio.wait_for(versions.poll(3600), 5))


def test_a_version_that_cannot_be_loaded_leaves_the_current_one(versions, monkeypatch):
    monkeypatch.setattr(versions_module, "version_of", lambda name, home: "2")

    def failing(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(versions_module, "load_engine", failing)

    async def asked():
        with pytest.raises(RequestError, match="no space left") as raised:
            await versions.reload()
        assert raised.value.status == 503
        return await versions.score("a")

    assert run(asked())["tokens"]
    assert versions.about()["version"] == ""


def test_temperatures_that_no_number_can_be_divided_by_are_greedy(versions):
    def text(temperature):
        request = CompletionRequest(model="m", prompt="a", temperature=temperature)
        return "".join(delta.text for delta in run(versions.completed(request))[1])

    assert text(5e-324) == text(1e-7) == text(0.0)


def test_what_goes_along_does_not_belong_to_the_request_that_takes_it():
    owner = ContextVar("owner", default=None)

    async def ask(numbers):
        await asyncio.sleep(0.01)
        each = [{"number": number, "owner": owner.get()} for number in numbers]
        return Answers(each, side_by_side=2)

    async def asked():
        together = Together(ask, under_way=1)

        async def one(number):
            owner.set(number)
            return await together(number)

        return await asyncio.gather(*map(one, range(4)))

    assert run(asked()) == [{"number": number, "owner": None} for number in range(4)]


def test_no_more_go_in_one_call_than_are_answered_side_by_side():
    calls, tasks = [], []

    async def ask(numbers):
        calls.append(numbers)
        if numbers == [0]:
            tasks[2].cancel()  # nobody waits for it any more: it does not go
        await asyncio.sleep(0.01)
        return Answers([{"number": number} for number in numbers], side_by_side=3)

    async def asked():
        together = Together(ask, under_way=1)
        tasks.extend(asyncio.create_task(together(number)) for number in range(9))
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = run(asked())
    assert calls == [[0], [1, 3, 4], [5, 6, 7], [8]]
    assert isinstance(found.pop(2), asyncio.CancelledError)
    assert found == [{"number": number} for number in (0, 1, 3, 4, 5, 6, 7, 8)]


DIES = """
import os, signal, sys
from pathlib import Path
from smallm.serving import versions
versions.load_engine = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
versions.Versions(sys.argv[1], versions.Resources(), home=Path(sys.argv[2]))
"""


def test_a_process_that_died_while_it_loaded_is_told_and_tried_when_asked(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "getppid", os.getpid)  # both are started by the same Ray
    dead = subprocess.run([sys.executable, "-c", DIES, folder, tmp_path], check=False)
    assert dead.returncode == -signal.SIGKILL
    versions = Versions(str(folder), Resources(), home=tmp_path)
    about = versions.about()
    assert (about["available"], about["reason"]) == (
        False,
        f"{folder}: its process ended while it was loaded, as without enough memory; "
        "POST /v1/reload tries again",
    )

    async def reloaded():
        polling = asyncio.create_task(versions.poll(0.01))
        await asyncio.sleep(0.1)
        assert not versions.about()["available"]
        await versions.reload()
        await polling

    run(reloaded())
    assert versions.about()["available"]
    assert not list((tmp_path / "loading").iterdir())
    versions._worker.finish()
    again = Versions(str(folder), Resources(), home=tmp_path)
    assert again.about()["available"]
    again._worker.finish()


def test_a_panic_while_it_loads_makes_a_model_unavailable(folder, tmp_path, monkeypatch):
    def panics(*_, **__):
        raise Panic("index out of bounds")

    monkeypatch.setattr(versions_module, "load_engine", panics)
    about = Versions(str(folder), Resources(), home=tmp_path).about()
    assert (about["available"], about["reason"]) == (
        False,
        f"{folder}: cannot be loaded: index out of bounds",
    )


def test_a_process_whose_device_failed_is_not_healthy(versions, monkeypatch):
    versions.check_health()

    def failing(text):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(versions._worker.engine, "score", failing)
    with pytest.raises(RuntimeError, match="device-side"):
        run(versions.score("a"))
    with pytest.raises(RuntimeError, match="its device failed"):
        versions.check_health()


def texts_of(deltas, index):
    return "".join(delta.text for delta in deltas if delta.index == index)


def test_equal_prompts_without_a_seed_go_on_differently(versions):
    request = CompletionRequest(model="m", prompt=["a"] * 4, max_tokens=12, temperature=2)
    _, deltas = run(versions.completed(request))
    assert len({texts_of(deltas, index) for index in range(4)}) > 1
    _, same = run(versions.completed(request.model_copy(update={"seed": 5})))
    assert len({texts_of(same, index) for index in range(4)}) == 1


def test_who_goes_away_while_prompts_are_told_saves_the_rest(versions, monkeypatch):
    engine, told, entered, goes_on = (
        versions._worker.engine,
        [],
        threading.Event(),
        threading.Event(),
    )
    echo = engine.echo

    def slow_echo(request, prompt):
        told.append(prompt)
        entered.set()
        assert goes_on.wait(PATIENCE)
        return echo(request, prompt)

    monkeypatch.setattr(engine, "echo", slow_echo)
    request = CompletionRequest(model="m", prompt=["a", "b", "c"], echo=True, logprobs=1)

    async def asked():
        await leaves(versions, request, entered, goes_on)
        assert await versions.score("a b")

    run(asked())
    assert told == ["a"]
    assert not engine.busy


def test_others_go_on_between_prompts_that_are_told(versions, monkeypatch):
    told = CompletionRequest(
        model="m", prompt=["a b c"] * 8, echo=True, logprobs=2, max_tokens=2, temperature=0
    )
    alone = run(versions.completed(told))[1]
    done, engine = [], versions._worker.engine
    for name in ("echo", "step"):
        work = getattr(engine, name)
        noted = lambda *given, name=name, work=work: (done.append(name), work(*given))[1]  # noqa: E731
        monkeypatch.setattr(engine, name, noted)

    async def both():
        return await asyncio.gather(versions.completed(LONG), versions.completed(told))

    (_, whole), (_, found) = run(both())
    assert sum(delta.tokens for delta in whole) == LONG.max_tokens
    assert [texts_of(found, index) for index in range(8)] == [
        texts_of(alone, index) for index in range(8)
    ]
    assert texts_of(found, 7).startswith("a b c")
    first, last = done.index("echo"), len(done) - done[::-1].index("echo")
    assert done[first:last] == ["echo", *["step", "echo"] * 7]


class Response:
    """An answer of Ray that never comes."""

    cancelled = False

    def __await__(self):
        return asyncio.Event().wait().__await__()

    def cancel(self):
        self.cancelled = True


def test_an_answer_that_nobody_waits_for_is_cancelled():
    response = Response()

    async def asked():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Replicas(None)._answer(lambda: response)

    run(asked())
    assert response.cancelled
