"""The command-line program `smallm`, and its commands that belong to no group.

Heavy libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallm.cli_ablate import ablate
from smallm.cli_baselines import baselines
from smallm.cli_corpus import RATIOS, corpus, corpus_tapes
from smallm.cli_models import compare, evaluate, generate, machine_options
from smallm.cli_plots import plot
from smallm.errors import SmallmError
from smallm.home import newest_search, open_home, recorded, searches
from smallm.options import (
    as_json,
    examples,
    messages,
    print_json,
    run_program,
    settings_options,
)
from smallm.settings import Settings

if TYPE_CHECKING:
    from smallm.training import Training


@click.group(
    context_settings={"max_content_width": 100},
    epilog=examples(
        "smallm corpus build --source folder --path notes",
        "smallm train --activation gelu --training-tokens 2000000",
        "smallm evaluate",
        'smallm compare --prompt "Neural networks are"',
        'smallm generate champion --prompt "Neural networks are"',
        "python tune/search.py --help    # the search is a program of its own",
    ),
)
@click.version_option(package_name="smallm")
def cli() -> None:
    """Train small next-word language models on your text, and see whether they are any good."""


for _command in (corpus, ablate, baselines, generate, evaluate, compare, plot):
    cli.add_command(_command)


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
@machine_options
@as_json
def train(
    given: dict[str, Any],
    print_config: bool,
    output: Path | None,
    checkpoint: Path | None,
    resume: Path | None,
    machine: dict[str, Any],
    as_json: bool,
) -> None:
    """Train a config with all its seeds; save the one with the median score, of two the better."""
    from smallm import training_run

    start, kept = training_run.newest_checkpoint(resume) if resume else (None, {})
    settings = Settings.from_flat(kept | given)
    if print_config:
        click.echo(settings.to_yaml(), nl=False)
        return
    if checkpoint and not resume:
        training_run.require_unused(checkpoint)
    folder = _output_folder(output, settings)
    training = _training(settings, **machine, resume_from=start)
    last, curve = training_run.follow(training, messages(), keep_in=resume or checkpoint)
    heldout_above = max(*RATIOS, settings.training.split_ratio)
    record = training_run.save_median(
        training, last, folder, heldout_above=heldout_above, curve=curve
    )
    if as_json:
        print_json(record)
    else:
        bits = last.bits_per_byte[record["seed"]]
        click.echo(f"saved {folder} (seed {record['seed']}, {bits:.4f} bits per byte)")


@cli.command(epilog=examples("smallm report", "smallm report --json | jq .conclusion"))
@click.argument("search", required=False)
@as_json
def report(search: str | None, as_json: bool) -> None:
    """Show the result of a SEARCH (by default the newest) and write its report anew."""
    from rich.console import Console

    from smallm import report as reports
    from smallm.leaderboard import terminal_table, write_leaderboard
    from smallm.results import sentences

    home = open_home()
    folder = (
        newest_search(home)
        if search is None
        else _search_folder(home, search, marker="result.json")
    )
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
@click.argument("name", required=False)
@click.option("--uri", envvar="MLFLOW_TRACKING_URI", help="MLflow; by default the home's own.")
def sync(name: str | None, uri: str | None) -> None:
    """Record in MLflow what a command could not record while it did not answer.

    NAME is that of a search, an evaluation or an ablation: by default the newest of those that
    MLflow does not have whole, also one that has crashed.
    """
    from smallm.tracking import local_uri
    from smallm.tracking import sync as send

    home = open_home()
    uri = uri or local_uri(home)
    found = _unsent(home, uri) if name is None else [_recorded_folder(home, name)]
    if not found:
        return click.echo("no records wait for MLflow")
    folder, *others = found
    sent = send(folder, uri, lambda line: click.echo(line, err=True))
    click.echo(f"{folder.name}: {sent.pushed} records sent, {sent.pending} still wait")
    if sent.pending:
        raise SmallmError(f"{sent.pending} records could not be sent: run `smallm sync` again")
    if others:
        click.echo(f"records of {len(others)} more wait: run `smallm sync` again")
    return None


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
    from smallm.training import Training

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


def _search_folder(home: Path, name: str, *, marker: str) -> Path:
    if not (home / "searches" / name / marker).exists():
        known = ", ".join(searches(home, marker)) or "none"
        raise SmallmError(f"{home}: has no search {name!r}; known: {known}")
    return home / "searches" / name


def _recorded_folder(home: Path, name: str) -> Path:
    """The folder of an evaluation, an ablation or a search."""
    for kind in ("evaluations", "ablations"):
        if (home / kind / name).exists():
            return home / kind / name
    return _search_folder(home, name, marker="search.json")


def _unsent(home: Path, uri: str) -> list[Path]:
    """The folders of which the MLflow at a URI lacks records, the newest first."""
    from smallm.journal import JOURNAL_NAME
    from smallm.tracking import waiting

    folders = recorded(home, JOURNAL_NAME)
    return waiting(folders, uri, lambda line: click.echo(line, err=True)) if folders else []


def _unused(folder: Path) -> Path:
    number = 1
    while (numbered := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return numbered


if __name__ == "__main__":
    main()
