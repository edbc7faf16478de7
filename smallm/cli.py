"""The command-line program `smallm`: corpus, train, evaluate, generate, report, sync.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallm.cli_baselines import baselines
from smallm.cli_corpus import RATIOS, corpus, corpus_tapes, slices_of
from smallm.errors import SmallmError
from smallm.home import newest_search, open_home
from smallm.options import (
    Temperature,
    as_json,
    examples,
    messages,
    print_json,
    run_program,
    settings_options,
)
from smallm.settings import Settings, read_yaml

if TYPE_CHECKING:
    from smallm.training import Training


@click.group(
    context_settings={"max_content_width": 100},
    epilog=examples(
        "smallm corpus build --source folder --path notes",
        "smallm train --activation gelu --training-tokens 2000000",
        "smallm evaluate champion",
        'smallm generate champion --prompt "Neural networks are"',
        "python tune/search.py --help    # the search is a program of its own",
    ),
)
@click.version_option(package_name="smallm")
def cli() -> None:
    """Train small next-word language models on your text, and see whether they are any good."""


cli.add_command(corpus)
cli.add_command(baselines)


def main() -> None:
    """Runs the program."""
    run_program(cli)


@cli.command(
    epilog=examples(
        "smallm train --activation gelu --hidden 512 --seeds 1,2,3",
        "smallm train --print-config > mine.yaml",
        "smallm train --config mine.yaml --checkpoint kept --output model",
        "smallm train --resume kept --output model",
    )
)
@settings_options("corpus", "tokens", "model", "training")
@click.option("--print-config", is_flag=True, help="Print the effective settings and stop.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the trained model.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Folder in which to keep what --resume needs.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Go on from the checkpoint in this folder, exactly, and keep the next ones there.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads; by default all processors.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:1.")
@as_json
def train(
    given: dict[str, Any],
    print_config: bool,
    output: Path | None,
    checkpoint: Path | None,
    resume: Path | None,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Train one config with all its seeds; save the replicate with the median score."""
    from smallm import training_run

    start, kept = training_run.newest_checkpoint(resume) if resume else (None, {})
    settings = Settings.from_flat(kept | given)
    if print_config:
        click.echo(settings.to_yaml(), nl=False)
        return
    if checkpoint and not resume:
        training_run.require_unused(checkpoint)
    folder = _output_folder(output, settings)
    training = _training(settings, threads=threads, device=device, resume_from=start)
    last = training_run.follow(training, messages(), keep_in=resume or checkpoint)
    record = training_run.save_median(training, last, folder)
    if as_json:
        print_json(record)
    else:
        bits = last.bits_per_byte[record["seed"]]
        click.echo(f"saved {folder} (seed {record['seed']}, {bits:.4f} bits per byte)")


@cli.command(
    epilog=examples(
        "smallm evaluate champion",
        "smallm evaluate runs/models/mlp-gelu-bpe-1 --slice selection --json",
        "smallm evaluate champion --source folder --path other-texts",
    )
)
@click.argument("model")
@settings_options("corpus")
@click.option(
    "--slice",
    "slice_name",
    type=click.Choice(["selection", "final"]),
    default="final",
    show_default=True,
    help="Held-out part to score.",
)
@as_json
def evaluate(model: str, given: dict[str, Any], slice_name: str, as_json: bool) -> None:
    """Score a MODEL (a folder, or `champion`) beside the reference models on the same tokens.

    The corpus is the model's own unless another is given.
    """
    from smallm.champion import load_core
    from smallm.evaluation import reference_scores
    from smallm.scoring import score

    folder = _model_folder(model)
    core, shape, tokenizer = load_core(folder)
    trained = Settings.from_flat(read_yaml(folder / "settings.yaml"))
    own = trained.corpus.model_dump(mode="json", exclude_defaults=True)
    tape, tokens = corpus_tapes(own | given, tokenizer=tokenizer)
    ratio = trained.training.split_ratio
    part = slices_of(tape, ratio)[slice_name]
    scores = {"this model": score(core, tokens, part, window=shape.window, top=True)}
    scores |= reference_scores(tokens, tape.training(ratio), part)
    table = {name: each.metrics() for name, each in scores.items()}
    if as_json:
        where = {"folder": str(folder), "slice": slice_name, "bytes": tape.bytes(part)}
        return print_json({**where, "models": table})
    click.echo(f"{slice_name} slice: {len(part):,} documents, {tape.bytes(part):,} bytes")
    columns = list(table["this model"])
    click.echo(f"{'':20}" + "".join(f"{name.replace('_', ' '):>18}" for name in columns))
    for name, figures in table.items():
        cells = (f"{figures[c]:>18,.4f}" if c in figures else f"{'':>18}" for c in columns)
        click.echo(f"{name:20}" + "".join(cells))
    return None


@cli.command(
    epilog=examples(
        'smallm generate champion --prompt "Neural networks are"',
        'smallm generate champion --prompt "The loss" --temperature 0 --max-tokens 20',
        'smallm generate champion --prompt "The loss" --temperature fitted',
        'smallm generate champion --prompt "The loss" -n 3 --seed 7 --json',
    )
)
@click.argument("model")
@click.option("--prompt", required=True, help="Text to continue; may be empty.")
@click.option("--max-tokens", type=click.IntRange(1), default=40, show_default=True)
@click.option(
    "--temperature",
    type=Temperature(),
    default=1.0,
    show_default=True,
    help="A number, 0 is greedy; or `fitted`, as saved with the model.",
)
@click.option("--top-k", type=click.IntRange(0), default=50, show_default=True, help="0 is all.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("-n", "count", type=click.IntRange(1), default=1, show_default=True, help="Texts.")
@as_json
def generate(
    model: str, prompt: str, max_tokens: int, count: int, as_json: bool, **sampling: Any
) -> None:
    """Continue a prompt with a MODEL (a folder, or `champion`).

    Text is printed as it is made. Each of several texts has its own seed, from --seed upwards.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
    from transformers.utils import logging

    from smallm.champion import saved_temperature

    logging.disable_progress_bar()
    folder = _model_folder(model)
    if sampling["temperature"] == Temperature.FITTED:
        sampling["temperature"] = saved_temperature(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt)["input_ids"]
    opened = torch.tensor([[tokenizer.bos_token_id, *ids]])  # every text of the training has it
    first = sampling.pop("seed")
    produce = getattr(network, "generate")  # noqa: B009 (typed for models with a cache only)
    chosen = {"do_sample": True, **sampling} if sampling["temperature"] else {"do_sample": False}
    texts = []
    for seed in range(first, first + count):
        torch.manual_seed(seed)
        written = produce(
            input_ids=opened,
            attention_mask=torch.ones_like(opened),
            max_new_tokens=max_tokens,
            streamer=None if as_json else TextStreamer(tokenizer, skip_special_tokens=True),
            **chosen,
        )
        text = tokenizer.decode(written[0, opened.shape[1] :], skip_special_tokens=True)
        texts.append({"seed": seed, "continuation": text})
    if as_json:
        print_json({"prompt": prompt, "texts": texts})


@cli.command(epilog=examples("smallm report", "smallm report --json | jq .conclusion"))
@click.argument("search", required=False)
@as_json
def report(search: str | None, as_json: bool) -> None:
    """Show the result of a SEARCH (by default the newest) and write its report anew."""
    from rich.console import Console

    from smallm import report as reports
    from smallm.leaderboard import terminal_table, write_leaderboard
    from smallm.results import sentences

    folder = _search_folder(search)
    result = reports.read_result(folder / "result.json")
    if as_json:
        return print_json(result)
    reports.write_report(result, folder / "report.html")
    write_leaderboard(result, folder / "leaderboard.csv")
    Console().print(terminal_table(result))
    for line in sentences(result):
        click.echo(f"- {line}")
    click.echo(f"report: {folder / 'report.html'}")
    return None


@cli.command(epilog=examples("smallm sync", "smallm sync --uri http://mlflow.example:5000"))
@click.argument("search", required=False)
@click.option("--uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; by default the home's own.")
def sync(search: str | None, uri: str | None) -> None:
    """Record in MLflow what a SEARCH could not record while it did not answer."""
    from smallm.tracking import local_uri
    from smallm.tracking import sync as send

    folder = _search_folder(search, marker="search.json")
    sent = send(folder, uri or local_uri(open_home()), lambda line: click.echo(line, err=True))
    click.echo(f"{sent.pushed} records sent, {sent.pending} still wait")
    if sent.pending:
        raise SmallmError(f"{sent.pending} records could not be sent: run `smallm sync` again")


@cli.command(
    epilog=examples(
        'eval "$(smallm completion bash)"    # in ~/.bashrc; zsh alike',
        "smallm completion fish | source",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in a shell."""
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(cli, {}, "smallm", "_SMALLM_COMPLETE").source())


def _training(settings: Settings, **where: Any) -> Training:
    """A training on the corpus of the settings, with the selection slice that evaluate uses."""
    from smallm.provenance import usable_cpus
    from smallm.training import Training
    from smallm.training_run import usable_device

    where["device"] = usable_device(where["device"])
    where["threads"] = where["threads"] or usable_cpus()
    tape, tokens = corpus_tapes(settings.flat())
    selection, _ = tape.heldout([*RATIOS, settings.training.split_ratio])
    return Training(settings, tokens, selection=selection, **where)


def _output_folder(output: Path | None, settings: Settings) -> Path:
    """A folder for the model that does not exist yet."""
    if output is None:
        shape = settings.model
        name = f"{shape.architecture}-{shape.activation}-{settings.tokens.tokenizer}"
        return _unused(open_home() / "models" / name)
    if output.exists():
        raise SmallmError(f"{output}: exists; give --output another folder")
    return output.resolve()


def _model_folder(model: str) -> Path:
    if model != "champion":
        if not Path(model, "config.json").exists():
            raise SmallmError(f"{model}: is no model folder, it holds no config.json")
        return Path(model)
    found = sorted(open_home().glob("searches/*/champion"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SmallmError(f"{open_home()}: has no champion yet: run `make search`")
    return found[-1]


def _search_folder(name: str | None, *, marker: str = "result.json") -> Path:
    home = open_home()
    if name is None:
        return newest_search(home)
    if not (home / "searches" / name / marker).exists():
        known = ", ".join(sorted(path.parent.name for path in home.glob(f"searches/*/{marker}")))
        raise SmallmError(f"{home}: has no search {name!r}; known: {known or 'none'}")
    return home / "searches" / name


def _unused(folder: Path) -> Path:
    number = 1
    while (numbered := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return numbered


if __name__ == "__main__":
    main()
