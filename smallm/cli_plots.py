"""The commands that draw a model: `smallm plot embeddings`, `attention` and `neighbors`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallm.cli_models import chosen_models, machine_options, only_model
from smallm.errors import SmallmError
from smallm.home import open_home
from smallm.options import as_json, examples, print_json

if TYPE_CHECKING:
    from smallm.charts import Plot

Command = Callable[..., Any]


@click.group()
def plot() -> None:
    """Draw what a model has learned: its embeddings, its attention."""


def model_argument(command: Command) -> Command:
    """Gives a command MODEL and `--output`; it receives the loaded model and the folder."""

    @functools.wraps(command)
    def collect(
        *args: Any, model: str, output: Path | None, machine: dict[str, Any], **kwargs: Any
    ) -> Any:
        home = open_home()
        predictor = only_model(chosen_models([model], home, machine, must=True))
        folder = output or home / "plots" / re.sub(r"[^\w.@-]+", "-", model).strip("-")
        return command(*args, predictor=predictor, folder=folder, **kwargs)

    output = click.option(
        "--output",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder for the SVG files. [default: plots/MODEL in the home]",
    )
    return click.argument("model")(output(machine_options(collect)))


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
    from smallm.pictures import embeddings_plot

    words = embedded_words(predictor, most=most)
    found = layout(words)
    trust = {"words": len(words.names), "trustworthiness": found.trust}
    _show([embeddings_plot(predictor.name, words, found)], folder, as_json, trust)


@plot.command(
    epilog=examples(
        'smallm plot attention smollm2-135m --prompt "The cat sat on the mat"',
        'smallm plot attention champion --prompt "The loss is" --layer 2',
    )
)
@click.option("--prompt", required=True, help="Text that the model reads.")
@click.option(
    "--layer", type=click.IntRange(1), help="Draw its heads with the tokens. [default: the last]"
)
@model_argument
@as_json
def attention(prompt: str, layer: int | None, predictor: Any, folder: Path, as_json: bool) -> None:
    """Draw where each head of a MODEL looks while it reads a prompt."""
    from smallm.attention_maps import attention_maps
    from smallm.pictures import attention_plot, heads_plot

    maps = attention_maps(predictor, prompt)
    layers = len(maps.weights)
    if layer is not None and layer > layers:
        raise SmallmError(f"--layer {layer}: {predictor.name} has {layers} layers")
    plots = [
        heads_plot(predictor.name, maps),
        attention_plot(predictor.name, maps, layer=layer or layers),
    ]
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
    from smallm.pictures import neighbors_plot

    near = found.neighbors(found.embedded_words(predictor), word, count=count)
    if not as_json:
        for name, cosine in near:
            click.echo(f"{cosine:6.3f}  {name}")
    told = {"word": word, "neighbors": [{"word": name, "cosine": cosine} for name, cosine in near]}
    _show([neighbors_plot(predictor.name, word, near)], folder, as_json, told)


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
