"""A home of its own for every test, and one small corpus of generated prose for all."""

import os
import random
import shutil
import sys
import tempfile
from types import SimpleNamespace

import hypothesis
import pytest
from ports import free_port

from smallm.cli import main
from smallm.settings import CorpusSettings, TokenizerSettings
from smallm.tape_building import build_tape
from smallm.token_tape import tokenize_tape

RATIOS = (0.75, 0.8, 0.9)
NOUNS = "model network layer gradient tensor kernel token vector matrix seed batch corpus".split()
VERBS = "learns predicts scales compares splits trains reads shuffles stores estimates".split()
KINDS = "small deep sparse linear stable random shared noisy careful frozen".split()


def sentence(rng):
    subject, thing = rng.sample(NOUNS, 2)
    extra = f" in {rng.randint(2, 999)} steps" if rng.random() < 0.2 else ""
    name = f" called Q{rng.randint(10, 9999)}" if rng.random() < 0.1 else ""
    return (
        f"The {rng.choice(KINDS)} {subject}{name} {rng.choice(VERBS)} "
        f"{rng.choice(['a', 'the', 'every'])} {rng.choice(KINDS)} {thing}{extra}."
    )


hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")


def pytest_configure():
    """A Ray of its own: neither another process of tests nor a Ray that runs here is joined."""
    os.environ.pop("RAY_ADDRESS", None)
    # The paths of Ray's sockets must be short.
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")


def pytest_sessionfinish(exitstatus):
    """What Ray logged is kept where a test failed."""
    if exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)  # Ray may still be ending


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory):
    """A folder of 300 different documents, about 130 kB."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for number in range(300):
        text = " ".join(sentence(rng) for _ in range(rng.randint(4, 12)))
        (folder / f"{number:03}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tape(small_corpus, tmp_path_factory):
    settings = CorpusSettings(source="folder", path=small_corpus)
    return build_tape(settings, home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def bpe_tokens(tape):
    return tokenize_tape(tape, TokenizerSettings(vocabulary=400), ratios=RATIOS)


@pytest.fixture(scope="session")
def word_tokens(tape):
    return tokenize_tape(tape, TokenizerSettings(tokenizer="words", vocabulary=300), ratios=RATIOS)


@pytest.fixture(params=["bpe_tokens", "word_tokens"])
def tokens(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(name="free_port")
def _free_port():
    return free_port()


@pytest.fixture
def smallm(monkeypatch, capsys):
    """The program in this process: gives exit code, stdout and stderr."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["smallm", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out, err=err)

    return run
