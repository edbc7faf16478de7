"""The program `smallm`, as a person calls it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smallm.cli import cli
from smallm.options import run_program

TINY = [
    *("--vocabulary", "400", "--window", "4", "--embedding", "8", "--hidden", "8"),
    *("--training-tokens", "2000", "--batch-size", "100", "--seeds", "1,2,3"),
    *("--evaluate-at", "0.5,1", "--evaluation-bytes", "3000"),
]


@pytest.fixture
def smallm(monkeypatch, capsys):
    """Calls the program; gives exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["smallm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_program(cli)
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


@pytest.fixture
def corpus(small_corpus):
    return ["--source", "folder", "--path", str(small_corpus)]


def one_line(error):
    return len(error.strip().splitlines()) == 1


def test_corpus_commands_show_sources_sizes_and_samples(smallm, corpus):
    code, out, _ = smallm("corpus", "list", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"docs", "folder", "hub"}
    code, out, _ = smallm("corpus", "build", *corpus, "--vocabulary", 400)
    assert code == 0
    assert "300 documents" in out
    code, out, _ = smallm("corpus", "inspect", *corpus, "--vocabulary", 400, "--json")
    shown = json.loads(out)
    assert shown["documents"] == 300
    assert sum(shown["lengths"].values()) == 300
    assert len(shown["samples"]) == 3


def test_train_evaluate_and_generate_work_on_each_other_s_output(smallm, corpus, tmp_path):
    model = tmp_path / "model"
    code, out, err = smallm("train", *corpus, *TINY, "--output", model, "--json")
    assert code == 0, err
    record = json.loads(out)
    middle = sorted(record["bits_per_byte"].values())[1]
    assert record["bits_per_byte"][str(record["seed"])] == middle
    assert "tokens/s" in err
    code, out, err = smallm("evaluate", model, "--json")
    assert code == 0, err
    models = json.loads(out)["models"]
    assert models["uniform over bytes"]["bits_per_byte"] == pytest.approx(8)
    assert models["this model"]["bits_per_byte"] < 6
    assert 0 <= models["this model"]["top_1"] <= models["this model"]["top_10"] <= 1
    code, out, err = smallm("generate", model, "--prompt", "The model", "--max-tokens", 5, "--json")
    assert code == 0, err
    assert isinstance(json.loads(out)["continuation"], str)
    again = smallm("generate", model, "--prompt", "The model", "--max-tokens", 5, "--json")[1]
    assert again == out
    code, _, err = smallm("train", *corpus, *TINY, "--output", model)
    assert code == 1
    assert "exists" in err


def test_the_printed_config_is_a_config(smallm, tmp_path):
    code, out, _ = smallm("train", "--print-config", "--activation", "gelu", "--seeds", "5,6")
    assert code == 0
    path = tmp_path / "config.yaml"
    path.write_text(out)
    assert yaml.safe_load(out)["activation"] == "gelu"
    _, again, _ = smallm("train", "--print-config", "--config", path)
    assert again == out
    _, changed, _ = smallm("train", "--print-config", "--config", path, "--activation", "tanh")
    assert yaml.safe_load(changed) == {**yaml.safe_load(out), "activation": "tanh"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--activation", "rellu"], "did you mean relu"),
        (["train", "--split-ratio", "1"], "split_ratio"),
        (["corpus", "build", "--source", "foldr"], "did you mean folder"),
        (["corpus", "build", "--source", "folder"], "needs --path"),
        (["corpus", "build", "--source", "folder", "--path", "/nowhere"], "does not exist"),
        (["train", "--config", "/nowhere.yaml"], "cannot be read"),
        (["evaluate", "champion"], "run `make search`"),
        (["evaluate", "/nowhere"], "no config.json"),
        (["report", "nothing"], "known: none"),
        (["sync"], "holds no finished search"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(smallm, arguments, words, tmp_path):
    code, _, err = smallm(*arguments)
    assert code == 1
    assert words in err
    assert one_line(err)
    assert not list(tmp_path.glob("home/*/*"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"far too little text", "too small to split"),
        ("a.txt", b"\0\1\2\3" * 999, "1 binary file"),
        ("a.bin", b"whatever", "unknown kind of file .bin"),
        ("a.jsonl", b'{"body": "x"}\n', "columns found: body"),
        ("a.yaml", b"activaton: relu\n", "did you mean activation"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(smallm, tmp_path, name, content, words):
    place = tmp_path / "input"
    place.mkdir()
    (place / name).write_bytes(content)
    if name == "a.yaml":
        code, _, err = smallm("train", "--config", place / name)
    else:
        code, _, err = smallm("corpus", "build", "--source", "folder", "--path", place)
    assert code == 1
    assert words in err
    assert one_line(err)
    assert not [path for path in tmp_path.glob("home/tapes/*/tokens/*") if path.is_dir()]


def test_a_home_from_a_newer_version_is_refused(smallm, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "home.json").write_text('{"version": 99}')
    code, _, err = smallm("report")
    assert code == 1
    assert "newer SmaLLM" in err
    assert one_line(err)


def test_a_full_disk_is_one_line_and_leaves_nothing(corpus, tmp_path):
    """A limit on file size stands in for the full disk: the same error, EFBIG for ENOSPC."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
        "sys.argv[0] = 'smallm'; from smallm.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "corpus", "build", *corpus],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert one_line(done.stderr)
    assert not list(Path(os.environ["SMALLM_HOME"]).glob("tapes/*"))


def test_help_is_quick_to_import_and_completion_is_a_script(smallm):
    code = (
        "import sys; from smallm.cli import cli;"
        "heavy = {'torch', 'transformers', 'mlflow', 'pandas', 'ray'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code, out, _ = smallm("completion", "bash")
    assert code == 0
    assert "_SMALLM_COMPLETE" in out
    code, out, _ = smallm("--help")
    assert code == 0
    assert "Examples:" in out
