"""The commands that draw a model: `smallm plot embeddings`, `attention`, `activations`, ..."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallm.cli_corpus import RATIOS, corpus_tape
from smallm.cli_models import Chosen, chosen_models, machine_options, only_model
from smallm.errors import SmallmError
from smallm.home import open_home, searches
from smallm.options import as_json, examples, print_json
from smallm.settings import CorpusSettings

if TYPE_CHECKING:
    from smallm.charts import Plot

Command = Callable[..., Any]
LONGEST = 120  # of a folder's name
READ_BYTES = 16_384  # of held-out text, for hidden units


output_option = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the SVG files. [default: plots/MODEL in the home]",
)


@click.group()
def plot() -> None:
    """Draw what a model has learned: embeddings, neighbors, attention, hidden units, curves."""


def model_argument(command: Command) -> Command:
    """Gives a command MODEL and `--output`; it receives the loaded model and the folder."""

    @functools.wraps(command)
    def collect(
        *args: Any, model: str, output: Path | None, machine: dict[str, Any], **kwargs: Any
    ) -> Any:
        home = open_home()
        predictor = only_model(chosen_models([model], home, machine, must=True))
        folder = output or _plots_folder(home, model)
        return command(*args, predictor=predictor, folder=folder, **kwargs)

    return click.argument("model")(output_option(machine_options(collect)))


@plot.command(
    epilog=examples("smallm plot embeddings champion", "smallm plot embeddings gpt2 --words 2000")
)
@click.option(
    "--words",
    "most",
    type=click.IntRange(31),
    default=1000,
    show_default=True,
    help="Most words: those with the smallest ids, as a rule the frequent ones.",
)
@model_argument
@as_json
def embeddings(most: int, predictor: Any, folder: Path, as_json: bool) -> None:
    """Draw the words of a MODEL (`champion`, a folder, a baseline) by t-SNE, with controls."""
    from smallm.embeddings import embedded_words, layout
    from smallm.leaderboard import name_shown
    from smallm.pictures import embeddings_plot

    words = embedded_words(predictor, most=most)
    found = layout(words)
    trust = {"words": len(words.names), "trustworthiness": found.trust}
    _show([embeddings_plot(name_shown(predictor.name), words.names, found)], folder, as_json, trust)


@plot.command(
    epilog=examples(
        'smallm plot attention smollm2-135m --prompt "The cat sat on the mat"',
        'smallm plot attention champion --prompt "The loss is" --layer 2',
    )
)
@click.option("--prompt", required=True, help="Text that the model reads.")
@click.option(
    "--layer", type=click.IntRange(1), help="Draw the heads of this one only. [default: all]"
)
@model_argument
@as_json
def attention(prompt: str, layer: int | None, predictor: Any, folder: Path, as_json: bool) -> None:
    """Draw where each head of a MODEL looks while it reads a prompt."""
    from smallm.attention_maps import attention_maps
    from smallm.leaderboard import name_shown
    from smallm.pictures import attention_plot, attention_plots

    maps = attention_maps(predictor, prompt)
    layers = len(maps.weights)
    if layer is not None and layer > layers:
        raise SmallmError(f"--layer {layer}: {predictor.name} has {layers} layers")
    name, shown = name_shown(predictor.name), (maps.tokens, maps.weights)
    if layer is None:
        plots = attention_plots(name, *shown)
    else:
        plots = [attention_plot(name, *shown, layer=layer)]
    told = {"tokens": list(maps.tokens), "heads": [len(weights) for weights in maps.weights]}
    _show(plots, folder, as_json, told)


@plot.command(
    epilog=examples(
        "smallm plot neighbors champion network", "smallm plot neighbors gpt2 cat -n 20"
    )
)
@model_argument
@click.argument("word")
@click.option("-n", "count", type=click.IntRange(1, 50), default=10, show_default=True)
@as_json
def neighbors(word: str, count: int, predictor: Any, folder: Path, as_json: bool) -> None:
    """Show the words that a MODEL keeps nearest to a WORD."""
    from smallm import embeddings as found
    from smallm.leaderboard import name_shown
    from smallm.pictures import neighbors_plot

    near = found.neighbors(found.embedded_words(predictor), word, count=count)
    if not as_json:
        for name, cosine in near:
            click.echo(f"{cosine:6.3f}  {name}")
    told = {"word": word, "neighbors": [{"word": name, "cosine": cosine} for name, cosine in near]}
    _show([neighbors_plot(name_shown(predictor.name), word, near)], folder, as_json, told)


@plot.command(
    epilog=examples(
        "smallm plot activations docs-quick-20261126-104406    # a search, over training",
        "smallm plot activations runs/models/mlp-relu-bpe-1 runs/models/mlp-gelu-bpe-1",
        "smallm plot activations smollm2-135m --text letters.txt",
    )
)
@click.argument("names", metavar="MODEL_OR_SEARCH...", nargs=-1, required=True)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="File that models read. [default: held-out text of their corpus]",
)
@output_option
@machine_options
@as_json
def activations(
    names: tuple[str, ...],
    text: Path | None,
    output: Path | None,
    machine: dict[str, Any],
    as_json: bool,
) -> None:
    """Draw dead units and saturated outputs: of searches over training, of models by layer.

    Models that `smallm train` has saved, one or several, are also drawn over training.
    """
    from smallm.activity_plots import activity_over_training, layers_plot
    from smallm.files import read_text
    from smallm.leaderboard import name_shown
    from smallm.plots import tokens_shown
    from smallm.watching import activity_on

    home = open_home()
    trials, models = _trained(names, home)
    plots, told = [], {}
    if trials:
        drawn = activity_over_training({"trials": trials}, tokens_shown)
        if drawn is None:
            raise SmallmError(f"{names[0]}: was trained before hidden units were watched")
        plots.append(drawn)
    for name in models:
        chosen = chosen_models([name], home, machine, must=True)
        predictor = only_model(chosen)
        found = activity_on(predictor, read_text(text) if text else _held_out(chosen))
        told[name] = found.of_all()
        drawn = layers_plot(name_shown(predictor.name), found)
        plots.append(replace(drawn, name=f"{drawn.name}_{len(told)}" if models[1:] else drawn.name))
    _show(plots, output or _plots_folder(home, *names), as_json, {"models": told})


@plot.command(
    epilog=examples(
        "smallm plot curves docs-quick-20261126-104406",
        "smallm plot curves runs/models/mlp-relu-bpe-1 runs/models/mlp-gelu-bpe-1",
    )
)
@click.argument("names", metavar="MODEL_OR_SEARCH...", nargs=-1, required=True)
@output_option
@as_json
def curves(names: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Draw the learning curves of searches, or of models that `smallm train` has saved."""
    from smallm.plots import learning_curves

    home = open_home()
    trials, _ = _trained(names, home, must=True)
    budget = max((trial["tokens"] for trial in trials), default=0)
    drawn = learning_curves({"trials": trials, "full_budget": budget})
    if drawn is None:
        raise SmallmError(f"{names[0]}: no trial of it reached an evaluation")
    _show([drawn], output or _plots_folder(home, *names), as_json, {})


def _trained(
    names: Sequence[str], home: Path, *, must: bool = False
) -> tuple[list[dict[str, Any]], list[str]]:
    """The trials of searches and of models with a learning curve, and which names are models.

    A model without a curve is a SmallmError where it `must` have one.
    """
    from smallm.report import read_result
    from smallm.training_run import CURVE, read_curve

    trials: list[dict[str, Any]] = []
    models = []
    for name in names:
        result = home / "searches" / name / "result.json"
        if result.exists():
            record = read_result(result)
            trials += [
                {**trial, "settings": record["settings"] | trial["settings"]}
                for trial in record["trials"]
            ]
            continue
        models.append(name)
        folder = Path(name).expanduser()
        if must and not folder.exists():
            known = ", ".join(searches(home, "result.json")) or "none"
            raise SmallmError(
                f"{name}: is neither a folder of `smallm train` nor a search; known: {known}"
            )
        if must or (folder / CURVE).exists():
            trials.append(read_curve(folder))
    return trials, models


def _held_out(chosen: Chosen) -> str:
    """Held-out text of a model's corpus; for a pretrained model, of the embedded one."""
    origin = next(iter(chosen.origins().values()), None)
    settings = origin.settings.corpus if origin else CorpusSettings()
    tape = corpus_tape(settings.model_dump(mode="json", exclude_defaults=True))
    selection, _ = tape.heldout([origin.heldout_above] if origin else RATIOS)
    return "\n\n".join(tape.texts(tape.beginning(selection, READ_BYTES)))


def _plots_folder(home: Path, *names: str) -> Path:
    joined = names[0] if len(names) == 1 else "-and-".join(Path(name).name for name in names)
    return home / "plots" / re.sub(r"[^\w.@-]+", "-", joined).strip("-")[:LONGEST]


def _show(plots: list[Plot], folder: Path, as_json: bool, told: dict[str, Any]) -> None:
    """Writes the pictures, and says where they are and what their captions say."""
    from smallm.files import write_text

    files = []
    for each in plots:
        files.append(folder / f"{each.name}.svg")
        write_text(files[-1], each.svg)
        if not as_json:
            click.echo(each.caption)
            click.echo(f"picture: {files[-1]}")
    if as_json:
        print_json({**told, "files": list(map(str, files))})
