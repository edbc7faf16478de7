"""Pictures of one model: its embeddings in the plane, its attention, the neighbours of a word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smallm.charts import GREY, INK, PALE, ROLE_COLORS, Plot, bars, finished, style
from smallm.embeddings import NEIGHBORS, Layout, embedded_words, layout_of, neighbors
from smallm.page import Html, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

SECTION = "model"
LAYER = "attention_layer"  # how the names of the pictures of one layer begin
LONG = 5  # letters of a word whose neighbours the report shows
ASKED, NEAR = 8, 5  # such words, and neighbours of each
WIDE = 9.0  # inches of a picture with many labels
MAP_COLORS = "Blues"
LABEL_GAP = 1.5  # pixels between two labels


def model_record(predictor: Any, prompts: Sequence[str], words: Record | None) -> Record:
    """What the pictures of a model are drawn from, as JSON can hold it.

    `words` is what `word_map` gives. Attention is that to the first prompt, where there is any;
    the neighbours are those of words of the prompts.
    """
    from smallm.attention_maps import attention_maps

    record: dict[str, Any] = {"name": predictor.name, "words": words, "attention": None}
    if getattr(predictor.model, "reads_sequences", True):
        maps = attention_maps(predictor, prompts[0])
        weights = [np.round(each.numpy(), 4).tolist() for each in maps.weights]
        record["attention"] = {"tokens": list(maps.tokens), "weights": weights}
    if words is not None:
        every = embedded_words(predictor)
        asked = _worth_asking(every.names, prompts)
        record["neighbors"] = {
            word: [(name, round(cosine, 4)) for name, cosine in neighbors(every, word, count=NEAR)]
            for word in asked
        }
    return record


def _worth_asking(names: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Long words of the prompts that are known; where there are few, frequent long words too."""
    spoken = [word.strip(".,:;") for prompt in prompts for word in prompt.split()]
    known, long = set(names), [name for name in names if len(name) >= LONG]
    found = [word for word in spoken if len(word) >= LONG and word in known]
    return list(dict.fromkeys([*found, *long]))[:ASKED]


def draw_model(record: Record) -> list[Plot]:
    """The pictures of a model from its record."""
    name, words, maps = record["name"], record["words"], record["attention"]
    plots = []
    if words is not None:
        plots.append(embeddings_plot(name, words["words"], layout_of(words)))
    if maps is not None:
        plots.extend(attention_plots(name, maps["tokens"], maps["weights"]))
    return plots


def draw_neighbors(record: Record) -> list[Plot]:
    """A picture for each word of `neighbors_table`."""
    return [
        replace(neighbors_plot(record["name"], word, near), name=f"neighbors_{word}")
        for word, near in record.get("neighbors", {}).items()
    ]


def neighbors_table(record: Record) -> Html:
    """The words that a model keeps nearest to some, a row each."""
    rows = [
        (word, ", ".join(f"{name} {cosine:.2f}" for name, cosine in near))
        for word, near in record.get("neighbors", {}).items()
    ]
    return table(["word", "nearest words, with the cosine of their embeddings"], rows)


def embeddings_plot(name: str, words: Sequence[str], found: Layout) -> Plot:
    """Words by t-SNE; a word whose label would lie on another one is a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(WIDE, WIDE), layout="constrained")
        axes = figure.subplots()
        axes.scatter(found.places[:, 0], found.places[:, 1], s=5, color=PALE)
        axes.set_title(f"Embeddings of {name}")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.margins(0.04)
        FigureCanvasAgg(figure)
        labelled = _label(figure, axes, words, found.places)
        caption = (
            f"t-SNE by cosine of {len(words):,} words, or beginnings of words, of one token each, "
            f"{labelled} of them labelled. {trust_sentence(found)}"
        )
        return finished(figure, "embeddings", SECTION, caption)


def trust_sentence(found: Layout) -> str:
    """How far the picture can be trusted, beside its controls."""
    ways = "; ".join(
        f"{way} " + ", ".join(f"{trust[number]:.2f} at {number}" for number in NEIGHBORS)
        for way, trust in found.trust.items()
    )
    return f"Trustworthiness of neighbours (1 is best, 0.5 is chance): {ways}."


def _label(figure: Figure, axes: Any, names: Sequence[str], places: Any) -> int:
    """Labels words in their order where there is room; says how many."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    taken: list[Bbox] = []
    for name, (x, y) in zip(names, places, strict=True):
        text = axes.text(x, y, name, fontsize=7.5, color=INK, ha="center", va="center")
        box = text.get_window_extent().padded(LABEL_GAP)
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
    return len(taken)


def attention_plots(name: str, tokens: Sequence[str], layers: Sequence[Any]) -> list[Plot]:
    """All heads at once, then those of each layer with the tokens.

    `layers` holds the weights of each layer (heads, tokens, tokens): rows look at columns.
    """
    numbered = range(1, 1 + len(layers))
    every = [attention_plot(name, tokens, layers, layer=number) for number in numbered]
    return [heads_plot(name, tokens, layers), *every]


def attention_plot(name: str, tokens: Sequence[str], layers: Sequence[Any], *, layer: int) -> Plot:
    """All heads of one layer, counted from 1, with the tokens."""
    from matplotlib.figure import Figure

    weights = np.asarray(layers[layer - 1])
    columns = 2 if len(weights) == 4 else min(3, len(weights))
    rows = math.ceil(len(weights) / columns)
    cell = max(2.4, 0.17 * len(tokens) + 0.8)
    with style():
        figure = Figure(figsize=(cell * columns, cell * rows + 0.4), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for number, axes in enumerate(grid):
            if number >= len(weights):
                axes.set_visible(False)
                continue
            axes.imshow(weights[number], cmap=MAP_COLORS, vmin=0, vmax=1)
            _name_tokens(axes, tokens, left=number % columns == 0)
            axes.set_title(f"head {number + 1}", fontsize=9)
        figure.suptitle(
            f"Attention of {name}, layer {layer}", x=0.01, ha="left", weight="bold", size="large"
        )
        caption = (
            f"Attention of the {len(weights)} heads of layer {layer} of {len(layers)}: each "
            "token, a row, looks at the columns; white is 0, dark blue is 1."
        )
        return finished(figure, f"{LAYER}_{layer}", SECTION, caption)


def _name_tokens(axes: Any, tokens: Sequence[str], *, left: bool) -> None:
    places = range(len(tokens))
    axes.set_xticks(places, tokens, rotation=90, fontsize=6.5)
    axes.set_yticks(places, tokens if left else [""] * len(tokens), fontsize=6.5)
    axes.tick_params(length=0, colors=GREY)
    axes.grid(visible=False)


def heads_plot(name: str, tokens: Sequence[str], layers: Sequence[Any]) -> Plot:
    """All heads of all layers, small and without labels: a row of pictures for each layer."""
    from matplotlib.figure import Figure

    size, heads = len(tokens), max(map(len, layers))
    gap = max(1, size // 8)
    whole = np.full((len(layers) * (size + gap), heads * (size + gap)), np.nan)
    for layer, weights in enumerate(layers):
        for head, each in enumerate(np.asarray(weights)):
            top, left = layer * (size + gap), head * (size + gap)
            whole[top : top + size, left : left + size] = each
    with style():
        height = min(40.0, WIDE * whole.shape[0] / whole.shape[1] + 0.8)
        figure = Figure(figsize=(WIDE, height), layout="constrained")
        axes = figure.subplots()
        axes.imshow(whole, cmap=MAP_COLORS, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"Attention of {name}, every head")
        middle = size / 2 + np.arange(max(heads, len(layers))) * (size + gap)
        numbers = [str(number) for number in range(1, 1 + len(middle))]
        axes.set_yticks(middle[: len(layers)], numbers[: len(layers)], fontsize=8)
        axes.set_xticks(middle[:heads], numbers[:heads], fontsize=8)
        axes.set(xlabel="head", ylabel="layer")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        caption = (
            f"One small map for each of {heads} heads in {len(layers)} layers over the "
            f"{size} tokens of the prompt: rows look at columns, dark blue is 1."
        )
        return finished(figure, "attention_heads", SECTION, caption)


def neighbors_plot(name: str, word: str, found: Sequence[tuple[str, float]]) -> Plot:
    """The nearest words as bars, the nearest one on top."""
    with style():
        drawn = [(each, cosine, ROLE_COLORS["champion"]) for each, cosine in reversed(found)]
        figure = bars(f"Nearest to {word!r} in {name}", "cosine", drawn, "{:.2f}")
        caption = f"Cosine of the embeddings, their mean taken off, of {word!r} and other words."
        return finished(figure, "neighbors", SECTION, caption)
