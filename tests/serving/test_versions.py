"""What holds a model up in its process: versions that change, jobs that fail, askers that go."""

import asyncio
import threading
from contextvars import ContextVar

import pytest
from tiny_models import gpt2

from serve.app import Replicas
from smallm.serving import versions as versions_module
from smallm.serving.protocol import CompletionRequest, RequestError
from smallm.serving.settings import Resources
from smallm.serving.together import Together
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
def versions(folder):
    made = Versions(str(folder), Resources(), home=folder)
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


@pytest.mark.parametrize(
    "ask",
    [
        lambda versions: versions.score("a b"),
        lambda versions: versions.next_words([("a", 1)]),
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


def test_who_goes_away_while_the_model_begins_leaves_nothing_behind(versions, monkeypatch):
    engine = versions._worker.engine
    begin, entered, goes_on, begun = engine.begin, threading.Event(), threading.Event(), []

    def slow_begin(request):
        entered.set()
        assert goes_on.wait(PATIENCE)
        begun.append(begin(request))
        return begun[0]

    monkeypatch.setattr(engine, "begin", slow_begin)

    async def asked():
        endless = LONG.model_copy(update={"max_tokens": 4000})
        task = asyncio.create_task(versions.completed(endless))
        await until(entered.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        goes_on.set()
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
    first, second, third = run(versions.next_words([("a", 1), ("bad", 1), ("b", 1)]))
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
        return [{"number": number, "owner": owner.get()} for number in numbers]

    async def asked():
        together = Together(ask, under_way=1)

        async def one(number):
            owner.set(number)
            return await together(number)

        return await asyncio.gather(*map(one, range(4)))

    assert run(asked()) == [{"number": number, "owner": None} for number in range(4)]


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
