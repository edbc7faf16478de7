"""The program `smallm` as people use it: real corpora and models; bad input is one line."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest
import yaml
from disks import full_disk

from smallm.cli import cli
from smallm.documents import SOURCES
from smallm.journal import Event, Journal
from smallm.settings import Settings, fields

START = "import sys; sys.argv[0] = 'smallm'; from smallm.cli import main; main()"
# A real signal, at a moment that does not depend on speed: once the first checkpoint is there.
INTERRUPTED = f"""
import os, signal
from smallm import training_run
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
keep = training_run._keep
def interrupted(*given):
    keep(*given)
    os.kill(os.getpid(), signal.SIGINT)
training_run._keep = interrupted
{START}
"""
SMALL = [
    *("--vocabulary", "320", "--embedding", "8", "--hidden", "16", "--window", "4"),
    *("--seeds", "1,2,3", "--batch-size", "128", "--training-tokens", "20000"),
    *("--evaluate-at", "0.5,1", "--precision", "fp32", "--replication", "sequential"),
    *("--threads", "1"),
]


def process(*args, code=START, **options):
    """The program in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)


@pytest.fixture(scope="module")
def corpus_options(small_corpus):
    return ["--source", "folder", "--path", str(small_corpus)]


@pytest.fixture(scope="module")
def trained(corpus_options, tmp_path_factory):
    """A model trained by the program, with the record that it printed."""
    folder = tmp_path_factory.mktemp("trained")
    run = process(
        *("train", *corpus_options, *SMALL, "--evaluation-bytes", "10000000"),
        *("--output", folder / "model", "--json"),
        env={**os.environ, "SMALLM_HOME": str(folder / "home")},
    )
    assert run.returncode == 0, run.stderr
    return SimpleNamespace(folder=folder / "model", record=json.loads(run.stdout), err=run.stderr)


def commands(group=cli, path=()):
    """Each command with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def half_written(home):
    """What an interrupted writer would leave: temporary names, folders without their last file."""
    hidden = [path for path in home.rglob("*") if path.name.startswith(".")]
    tapes = [path for path in home.glob("tapes/*") if not (path / "manifest.json").exists()]
    tokens = [
        path for path in home.glob("tapes/*/tokens/*") if not (path / "manifest.json").exists()
    ]
    models = [path for path in home.glob("models/*") if not (path / "settings.yaml").exists()]
    return hidden + tapes + tokens + models


def assert_one_line(run, *parts, home):
    """Bad input: exit code 1, one line on stderr that holds the parts, nothing half-written."""
    assert run.code == 1
    assert run.out == ""
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1
    for part in parts:
        assert part in run.err
    assert half_written(home) == []


# Help, settings, completion


def test_help_needs_none_of_the_heavy_libraries():
    code = (
        "import sys, smallm.cli\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'pandas', 'numpy', 'ray', 'matplotlib'}\n"
        "print(heavy & set(sys.modules))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "set()\n", run.stderr


def test_every_command_explains_itself_with_examples(smallm):
    for path, _ in commands():
        shown = smallm(*path, "--help")
        assert shown.code == 0
        assert "Examples:" in shown.out or path == ("corpus", "list")


def test_the_examples_in_the_help_texts_are_valid_commands():
    found = 0
    for _, command in [((), cli), *commands()]:
        for line in (command.epilog or "").splitlines():
            words = shlex.split(re.split(r"[|>]", line)[0], comments=True)
            if words[:1] != ["smallm"]:
                continue
            found += 1
            target, rest = cli, words[1:]
            while isinstance(target, click.Group):
                target, rest = target.commands[rest[0]], rest[1:]
            target.make_context("smallm", rest)
    assert found > 15


def test_train_has_a_flag_with_help_for_every_setting(smallm):
    shown = " ".join(smallm("train", "--help").out.split())
    for name, info in fields().items():
        assert f"--{name.replace('_', '-')}" in shown
        assert info.description.split(";")[0].split()[0] in shown
    assert "--tied / --no-tied" in shown
    assert "[auto|stacked|sequential]" in shown
    assert "[default: 42,43,44]" in shown


def test_flags_win_over_the_file_and_the_file_over_defaults(smallm, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("hidden: 99\nactivation: tanh\nseeds: [7, 8]\ntied: false\n")
    shown = smallm("train", "--config", file, "--activation", "gelu", "--tied", "--print-config")
    expected = Settings.from_flat(
        {"hidden": 99, "activation": "gelu", "seeds": (7, 8), "tied": True}
    )
    assert yaml.safe_load(shown.out) == expected.flat()


def test_the_printed_settings_are_a_file_that_gives_the_same_settings(smallm, tmp_path):
    options = ["--seeds", "1,2", "--no-tied", "--path", "texts", "--evaluate-at", "0.5,1"]
    first = smallm("train", *options, "--print-config").out
    (tmp_path / "mine.yaml").write_text(first)
    assert smallm("train", "--config", tmp_path / "mine.yaml", "--print-config").out == first
    assert "# Nonlinearity of the hidden layers." in first


def test_wrong_usage_exits_with_2_and_names_the_choices(smallm):
    for args in (["train", "--order", "random"], ["train", "--hiden", "3"], ["fly"], ["generate"]):
        assert smallm(*args).code == 2
    assert "'hash', 'stratified'" in smallm("train", "--order", "random").err
    assert "--hidden" in smallm("train", "--hiden", "3").err
    assert "42,43,44" in smallm("train", "--seeds", "1;2").err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_each_shell(smallm, shell):
    assert f"_SMALLM_COMPLETE={shell}_complete" in smallm("completion", shell).out


def test_the_shell_completes_options_and_choices():
    words = {"COMP_WORDS": "smallm train --replication s", "COMP_CWORD": "3"}
    run = process(env={**os.environ, **words, "_SMALLM_COMPLETE": "bash_complete"})
    assert run.stdout.split() == ["plain,stacked", "plain,sequential"]


# Corpora


def test_corpus_list_has_one_line_for_each_source(smallm):
    lines = smallm("corpus", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == list(SOURCES)
    assert list(json.loads(smallm("corpus", "list", "--json").out)) == list(SOURCES)
    assert all(len(line) <= 100 for line in lines)


def test_corpus_build_counts_what_was_kept_and_names_what_was_not(smallm, small_corpus, tmp_path):
    folder = tmp_path / "texts"
    shutil.copytree(small_corpus, folder)
    shutil.copy(folder / "000.txt", folder / "copy.txt")
    (folder / "empty.txt").touch()
    (folder / "picture.txt").write_bytes(b"\x89PNG\0\0\0")
    options = ["--source", "folder", "--path", folder, "--vocabulary", "320"]
    told = smallm("corpus", "build", *options).out
    manifest = json.loads(smallm("corpus", "build", *options, "--json").out)
    assert manifest["duplicates"]["exact"] == 1
    assert manifest["documents"] == 300 - manifest["duplicates"]["near"]
    assert manifest["dropped"]["binary file"] == {"count": 1, "places": ["picture.txt"]}
    assert "duplicates removed: 1 exact" in told
    assert "left out, empty file: 1 (such as empty.txt)" in told
    assert f"{manifest['documents']:,} documents" in told


def test_corpus_inspect_describes_the_tape(smallm, corpus_options, tape):
    options = [*corpus_options, "--vocabulary", "320", "--samples", "2"]
    shown = json.loads(smallm("corpus", "inspect", *options, "--json").out)
    assert shown["documents"] == len(tape) == sum(each["documents"] for each in shown["lengths"])
    assert shown["bytes"] == tape.manifest["bytes"]
    assert shown["vocabulary"] == 320
    assert shown["samples"] == [tape.text(0)[:300], tape.text(1)[:300]]
    sizes = {name: part["documents"] for name, part in shown["slices"].items()}
    assert sizes["training 0.75"] < sizes["training 0.8"] < sizes["training 0.9"]
    assert sizes["training 0.9"] + sizes["selection"] + sizes["final"] == len(tape)
    told = smallm("corpus", "inspect", *options).out
    assert tape.text(0)[:300] in told
    assert "bytes per token" in told
    assert tape.folder.name.partition("-")[0] in re.search(r"page: (\S+corpus.html)", told)[1]


# Train, evaluate, generate


def test_train_saves_the_replicate_with_the_median_score(trained):
    record = trained.record
    bits = record["bits_per_byte"]
    assert sorted(bits) == ["1", "2", "3"]
    assert bits[str(record["seed"])] == sorted(bits.values())[1]
    assert record["folder"] == str(trained.folder)
    assert record["tokens"] == 20096  # 157 batches of 128
    saved = Settings.from_flat(yaml.safe_load((trained.folder / "settings.yaml").read_text()))
    assert saved.flat() == record["settings"]


def test_train_prints_a_plain_line_for_each_evaluation_with_every_seed(trained):
    read, *lines = trained.err.splitlines()
    assert re.fullmatch(
        r"corpus folder: 300 documents, [\d,]+ bytes; mlp of [\d,]+ parameters", read
    )
    assert [line.split(" tokens")[0] for line in lines] == ["9,984/20,096", "20,096/20,096"]
    for seed, bits in trained.record["bits_per_byte"].items():
        assert f"{seed}: {bits:.3f}" in lines[-1]
    assert "\x1b" not in trained.err


def evaluated(smallm, *args):
    shown = smallm("evaluate", *args, "--json")
    assert shown.code == 0, shown.err
    return json.loads(shown.out)


def test_evaluate_repeats_the_score_of_the_training(smallm, trained):
    name = str(trained.folder)
    shown = evaluated(smallm, "--models", name, "--slice", "selection")
    (row,) = shown["models"]
    bits = trained.record["bits_per_byte"][str(trained.record["seed"])]
    assert row["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-5)
    own = shown["own_tokens"][name]
    assert own["this model"]["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert own["uniform over bytes"]["bits_per_byte"] == pytest.approx(8)
    assert set(own) > {"unigram", "Kneser-Ney 5-gram"}


def test_evaluate_holds_out_what_a_model_with_a_larger_training_part_has_seen(
    smallm, trained, tape, tmp_path
):
    folder = shutil.copytree(trained.folder, tmp_path / "model")
    text = (folder / "settings.yaml").read_text()
    (folder / "settings.yaml").write_text(text.replace("split_ratio: 0.8", "split_ratio: 0.92"))
    origin = json.loads((folder / "origin.json").read_text())
    assert origin["heldout_above"] == 0.9
    (folder / "origin.json").write_text(json.dumps({**origin, "heldout_above": 0.92}))
    shown = evaluated(smallm, "--models", folder, "--slice", "selection")
    assert shown["bytes"] == tape.bytes(tape.heldout([0.92])[0])


def test_the_champion_is_that_of_the_newest_search(smallm, trained, tmp_path):
    for age, name in enumerate(["newest", "older"]):
        champion = tmp_path / "home" / "searches" / name / "champion"
        shutil.copytree(trained.folder, champion)
        os.utime(champion, (1_000_000 - age, 1_000_000 - age))
    shown = smallm("evaluate", "--models", "champion", "--bytes", "2000", "--json")
    assert shown.code == 0, shown.err
    assert json.loads(shown.out)["folders"]["champion"].endswith("newest/champion")
    assert "champion: that of the search newest" in shown.err.splitlines()


def test_generate_writes_the_prompt_and_the_text_that_json_holds(smallm, trained):
    args = [
        "generate",
        trained.folder,
        "--prompt",
        "The small",
        "--max-tokens",
        "12",
        "--seed",
        "5",
    ]
    first, again = smallm(*args), smallm(*args)
    assert first.code == 0
    assert first.out == again.out
    made = json.loads(smallm(*args, "-n", "2", "--json").out)
    assert [text["seed"] for text in made["texts"]] == [5, 6]
    assert first.out == f"The small{made['texts'][0]['continuation']}\n"
    assert made["texts"][0]["continuation"] != made["texts"][1]["continuation"]


def test_generate_at_temperature_0_does_not_depend_on_the_seed(smallm, trained):
    args = [
        "generate",
        trained.folder,
        "--prompt",
        "The",
        "--max-tokens",
        "9",
        "--temperature",
        "0",
    ]
    assert smallm(*args, "--seed", "1").out == smallm(*args, "--seed", "2").out


def test_generate_takes_the_temperature_that_train_fitted(smallm, trained, tmp_path):
    args = ["generate", trained.folder, "--prompt", "The small", "--json", "--temperature"]
    number = trained.record["temperature"]
    assert number == pytest.approx(1, rel=0.3)
    assert smallm(*args, "fitted").out == smallm(*args, number).out
    shutil.copytree(trained.folder, tmp_path / "plain")
    (tmp_path / "plain" / "generation_config.json").write_text("{}")
    args[1] = tmp_path / "plain"
    assert_one_line(smallm(*args, "fitted"), "plain", "no fitted temp", home=tmp_path / "home")


@pytest.mark.parametrize("value", ["warm", "-1", "nan", "inf", ""])
def test_a_wrong_temperature_names_what_is_allowed(smallm, trained, value):
    run = smallm("generate", trained.folder, "--prompt", "x", "--temperature", value)
    assert run.code == 2
    assert f"{value!r} is neither a number from 0 up nor `fitted`" in run.err


def test_ctrl_c_ends_with_130_and_resume_gives_the_numbers_of_an_uninterrupted_run(
    smallm, corpus_options, tmp_path
):
    longer = [*SMALL, "--training-tokens", "40000", "--evaluate-at", "0.1,0.6,1"]
    whole = smallm("train", *corpus_options, *longer, "--json", "--output", tmp_path / "whole")
    kept = tmp_path / "kept"
    options = [*corpus_options, *longer, "--checkpoint", kept]
    ended = process("train", *options, code=INTERRUPTED)
    assert ended.returncode == 130
    read, first = ended.stderr.splitlines()[:2]
    assert read.startswith("corpus folder: ")
    assert read.endswith(" parameters")
    assert first.startswith("3,968/40,064 tokens")
    assert ended.stderr.splitlines()[-1] == "interrupted"
    resumed = smallm("train", "--resume", kept, "--threads", 1, "--json")
    assert resumed.code == 0, resumed.err
    record, expected = json.loads(resumed.out), json.loads(whole.out)
    for name in ("seed", "bits_per_byte", "tokens", "settings"):
        assert record[name] == expected[name]
    assert record["folder"].startswith(str(tmp_path / "home" / "models" / "mlp-relu2-bpe"))
    assert half_written(tmp_path / "home") == []


# Searches


RESULT = {
    "schema": 2,
    "name": "mine",
    "searched": ["activation"],
    "full_budget": 1000,
    "trials": [
        {
            "id": name,
            "number": number,
            "settings": {"activation": name},
            "status": "completed",
            "tokens": 1000,
            "seconds": 1.0,
            "bits_per_byte": {"mean": mean, "spread": 0.01, "per_seed": {"1": mean}},
            "curve": [{"tokens": 1000, "seconds": 1.0, "mean": mean, "per_seed": {"1": mean}}],
        }
        for number, (name, mean) in enumerate({"relu": 2.125, "gelu": 2.25}.items())
    ],
    "finalists": [],
    "comparisons": [],
    "conclusion": ["The search was stopped before a champion was confirmed."],
}


@pytest.fixture
def search(tmp_path):
    folder = tmp_path / "home" / "searches" / "mine"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "search.json").write_text("{}")
    return folder


def test_report_writes_its_files_anew_and_prints_the_conclusion(smallm, search):
    for args in (["report"], ["report", "mine"]):
        shown = smallm(*args)
        assert shown.code == 0
        assert "2.125" in shown.out
        assert f"- {RESULT['conclusion'][0]}" in shown.out.splitlines()
        assert "</html>" in (search / "report.html").read_text()
        assert len((search / "leaderboard.csv").read_text().splitlines()) == 3
        (search / "report.html").unlink()
    assert json.loads(smallm("report", "--json").out) == RESULT


# Records that wait for MLflow


@pytest.fixture
def waiting(tmp_path):
    """Makes a folder with the journal of a command that crashed; gives the journal, closed."""

    def make(kind, name, *, age):
        folder = tmp_path / "home" / kind / name
        journal = Journal(folder)
        opened = {"experiment": "smallm", "search": name, "journal": name}
        journal.append(Event("open", "search", 0, opened))
        started = {"name": name, "parent": None, "params": {}, "tags": {}}
        journal.append(Event("start", "search", 0, started))
        journal.close()
        (folder / "search.json").touch()
        os.utime(journal.path, (1_000_000 - age, 1_000_000 - age))
        return journal

    return make


def runs_in(home):
    """The names of the runs in the home's own MLflow."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smallm")
    return {run.info.run_name for run in client.search_runs([experiment.experiment_id])}


def test_sync_sends_the_newest_that_waits_also_of_a_crashed_search(smallm, waiting, tmp_path):
    kinds = {"searches": "crashed", "evaluations": "last", "ablations": "first"}
    ages = {"crashed": 1, "last": 0, "first": 2}
    for kind, name in kinds.items():
        waiting(kind, name, age=ages[name])
    for left, name in zip((2, 1, 0), ("last", "crashed", "first"), strict=True):
        shown = smallm("sync")
        assert shown.code == 0, shown.err
        first, *more = shown.out.splitlines()
        assert first == f"{name}: 2 records sent, 0 still wait"
        assert more == ([f"records of {left} more wait: run `smallm sync` again"] if left else [])
    assert runs_in(tmp_path / "home") == set(kinds.values())
    assert smallm("sync").out == "no records wait for MLflow\n"


def test_sync_leaves_out_what_is_recorded_now(smallm, waiting):
    waiting("searches", "crashed", age=1)
    running = Journal(waiting("searches", "running", age=0).path.parent)
    try:
        shown = smallm("sync")
        named = smallm("sync", "running")
    finally:
        running.close()
    assert shown.out == "crashed: 2 records sent, 0 still wait\n"
    assert "another process records this search" in named.err


def test_sync_in_a_new_home_says_that_nothing_waits(smallm):
    shown = smallm("sync")
    assert (shown.code, shown.out, shown.err) == (0, "no records wait for MLflow\n", "")


# Bad input


BAD_VALUES = [
    (["train", "--activation", "relo"], ["'relo'", "did you mean relu", "leaky_relu"]),
    (["corpus", "build", "--source", "folders"], ["'folders'", "did you mean folder", "hub"]),
    (["train", "--split-ratio", "0"], ["split_ratio", "0"]),
    (["train", "--split-ratio", "1"], ["split_ratio", "1"]),
    (["train", "--split-ratio", "1.5"], ["split_ratio", "1.5"]),
    (["train", "--seeds", "1,1"], ["seeds", "different"]),
    (["train", "--vocabulary", "3"], ["vocabulary", "300"]),
    (["corpus", "build", "--source", "folder"], ["--path"]),
    (["corpus", "build", "--source", "folder", "--path", "nowhere"], ["nowhere", "not exist"]),
    (["corpus", "build", "--source", "hub"], ["--dataset"]),
    (["train", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
    (["train", "--resume", "nowhere"], ["nowhere", "no checkpoint"]),
    (["train", "--device", "cudo"], ["device 'cudo'", "cpu"]),
    (["generate", "gpt2", "--prompt", ""], ["prompt is empty"]),
    (["generate", "~nobody-of-this-name/x", "--prompt", "x"], ["cannot be a model"]),
    (["evaluate", "--models", "n" * 300], [f"{'n' * 60}…: cannot be a model"]),
    (["evaluate", "--models", " , "], ["--models is empty"]),
    (["evaluate", "--models", "gtp2"], ["'gtp2'", "did you mean", "gpt2"]),
    (["evaluate", "--models", "champion"], ["no champion yet", "make search"]),
    (["evaluate", "--models", "./nowhere"], ["nowhere", "does not exist"]),
    (["compare", "--models", "gpt2", "--prompt", ""], ["prompt is empty"]),
    (["compare", "--models", "gpt2", "--prompt", "The "], ["ends in white space"]),
    (["generate", "nowhere", "--prompt", "x"], ["nowhere", "unknown model", "smollm2-135m"]),
    (["generate", "champion", "--prompt", "x"], ["no champion yet"]),
    (["report"], ["no finished search"]),
    (["report", "nothing"], ["'nothing'"]),
    (["sync", "nothing"], ["'nothing'"]),
]


@pytest.mark.parametrize(("args", "parts"), BAD_VALUES, ids=lambda value: " ".join(value))
def test_a_bad_value_is_one_line_that_says_what_is_allowed(smallm, tmp_path, args, parts):
    assert_one_line(smallm(*args), *parts, home=tmp_path / "home")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("activaton: relu", "did you mean activation"),
        ("hiden: 3", "did you mean hidden"),
        ("- 1", "name: value"),
        ("a: [", "not valid YAML"),
        ("hidden: many", "hidden"),
    ],
)
def test_a_bad_settings_file_is_one_line(smallm, tmp_path, content, part):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    assert_one_line(smallm("train", "--config", file), part, home=tmp_path / "home")


def test_a_corpus_too_small_to_split_says_how_much_is_needed(smallm, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(5):
        (texts / f"{number}.txt").write_text(f"Only {number} words are here, no more than that.")
    run = smallm("train", "--source", "folder", "--path", texts)
    assert_one_line(run, "too small to split", "2,000 bytes", home=tmp_path / "home")


@pytest.mark.parametrize("command", [["corpus", "build"], ["train"]])
def test_a_folder_of_binary_files_is_one_line_that_names_one(smallm, tmp_path, command):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "picture.txt").write_bytes(bytes(range(256)) * 9)
    run = smallm(*command, "--source", "folder", "--path", texts)
    assert_one_line(run, "no usable text", "binary file", "picture.txt", home=tmp_path / "home")


@pytest.mark.parametrize(
    ("name", "content"),
    [("posts.csv", "title,body\nA,some text\n"), ("posts.jsonl", '{"title": "A", "body": "b"}\n')],
)
def test_a_missing_text_column_is_one_line_with_the_columns_found(smallm, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    run = smallm("corpus", "build", "--source", "folder", "--path", tmp_path / name)
    assert_one_line(run, "unknown text column 'text'", "title, body", home=tmp_path / "home")


@pytest.mark.parametrize("built", [False, True])
def test_a_full_disk_while_a_corpus_is_built_leaves_nothing_half_written(
    smallm, corpus_options, tmp_path, built
):
    if built:  # then the tokens of another tokenizer do not fit
        smallm("corpus", "build", *corpus_options, "--vocabulary", 310)
    with full_disk(largest_file=90_000):
        run = smallm("corpus", "build", *corpus_options, "--vocabulary", 320)
    place = "bpe-320" if built else "tapes/folder"
    assert_one_line(run, place, "cannot be written", home=tmp_path / "home")


@pytest.mark.parametrize("keeps", [False, True], ids=["model", "checkpoint"])
def test_a_full_disk_while_a_model_is_saved_leaves_nothing_half_written(
    smallm, corpus_options, tmp_path, keeps
):
    smallm("corpus", "build", *corpus_options, "--vocabulary", 320)
    options = ["--checkpoint", tmp_path / "kept"] if keeps else []
    short = [*SMALL, "--seeds", "1", "--training-tokens", "2000"]
    with full_disk(largest_file=8_000):
        run = smallm("train", *corpus_options, *short, *options)
    _, *evaluations, error = run.err.splitlines()
    assert run.code == 1
    assert len(evaluations) == (1 if keeps else 2)
    assert "kept" in error or "models" in error
    assert "cannot be written" in error
    assert half_written(tmp_path / "home") == []
    assert list(tmp_path.glob("kept/*")) == []


def test_a_home_from_a_newer_version_is_left_alone(smallm, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "home.json").write_text('{"version": 99}')
    for command in (["report"], ["sync"], ["corpus", "build"], ["train"]):
        assert_one_line(smallm(*command), "newer SmaLLM", "99", home=home)
    assert [path.name for path in home.iterdir()] == ["home.json"]


def test_an_mlflow_that_does_not_answer_is_one_line_and_nothing_is_lost(
    smallm, search, free_port, tmp_path
):
    journal = Journal(search)
    opened = {"experiment": "smallm", "search": "mine", "journal": "0"}
    journal.append(Event("open", "search", 0, opened))
    journal.close()
    before = journal.path.read_bytes()
    run = smallm("sync", "mine", "--uri", f"http://127.0.0.1:{free_port}")
    assert_one_line(run, f"127.0.0.1:{free_port}", home=tmp_path / "home")
    assert journal.path.read_bytes() == before


def test_train_never_writes_over_a_folder_or_another_runs_checkpoint(smallm, trained, tmp_path):
    run = smallm("train", "--output", trained.folder)
    assert_one_line(run, "exists", "--output", home=tmp_path / "home")
    (tmp_path / "kept" / "tokens-000000000128").mkdir(parents=True)
    run = smallm("train", "--checkpoint", tmp_path / "kept")
    assert_one_line(run, "--resume", home=tmp_path / "home")


def test_a_run_of_which_nothing_is_left_is_one_line(smallm, corpus_options, tmp_path):
    run = smallm(
        *("train", *corpus_options, *SMALL, "--learning-rate", "1e6"),
        *("--training-tokens", "3200", "--output", tmp_path / "model"),
    )
    assert run.code == 1
    last = run.err.strip().splitlines()[-1]
    assert "no model saved" in last
    assert "Traceback" not in run.err


def test_a_window_longer_than_all_documents_is_told(smallm, corpus_options, tmp_path):
    sizes = ["--window", "1024", "--training-tokens", "64", "--seeds", "1"]
    made = smallm("train", *corpus_options, *SMALL, *sizes, "--output", tmp_path / "model")
    assert made.code == 0, made.err
    assert "window 1024 is longer than the longest document, " in made.err


@pytest.mark.parametrize("tokenizer", ["bpe", "words"])
def test_a_transformer_is_trained_evaluated_and_continued_by_the_same_commands(
    smallm, corpus_options, tmp_path, tokenizer
):
    shape = ["--architecture", "transformer", "--embedding", "32", "--hidden", "64", "--depth", "2"]
    learning = ["--optimizer", "muon", "--seeds", "1", "--training-tokens", "30000"]
    options = [*shape, *learning, "--bigrams", "64", "--activation", "swiglu", "--window", "8"]
    folder = tmp_path / "model"
    made = smallm(
        *("train", *corpus_options, *SMALL, "--evaluation-bytes", "10000000", *options),
        *("--tokenizer", tokenizer, "--output", folder, "--json"),
    )
    assert made.code == 0, made.err
    record = json.loads(made.out)
    shown = evaluated(smallm, "--models", str(folder), "--slice", "selection")
    (row,) = shown["models"]
    assert row["bits_per_byte"]["value"] == pytest.approx(record["mean"], rel=1e-5)
    assert row["context"] == 2 * 7 + 1 + 1
    temperature = record["temperature"]
    assert 0.7 < temperature < 1.4
    written = smallm("generate", folder, "--prompt", "The small", "--temperature", "fitted")
    assert written.code == 0, written.err
    assert written.out.startswith("The small")


def test_a_model_that_the_memory_cannot_hold_is_one_line(smallm, corpus_options):
    for hidden in (10**11, 10**18):
        run = smallm("train", *corpus_options, "--hidden", hidden)
        assert run.code == 1
        assert run.err.splitlines()[-1].startswith("error: out of memory: ")
        assert "Traceback" not in run.err
        assert "Warning" not in run.err
