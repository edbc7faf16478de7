"""Pictures of one model: its embeddings in the plane, its attention, the neighbours of a word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smallm.attention_maps import AttentionMaps, attention_maps
from smallm.charts import GREY, INK, PALE, ROLE_COLORS, Plot, bars, finished, style
from smallm.embeddings import NEIGHBORS, Layout, Words, embedded_words, layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECTION = "model"
FEW_WORDS = 400  # drawn in some seconds
WIDE = 9.0  # inches of a picture with many labels
MAP_COLORS = "Blues"
LABEL_GAP = 1.5  # pixels between two labels


def model_plots(predictor: Any, prompt: str) -> list[Plot]:
    """What can be drawn of a model; SmallmError where that is nothing."""
    words = embedded_words(predictor, most=FEW_WORDS)
    plots = [embeddings_plot(predictor.name, words, layout(words))]
    if getattr(predictor.model, "reads_sequences", True):
        maps = attention_maps(predictor, prompt)
        plots.append(heads_plot(predictor.name, maps))
        plots.append(attention_plot(predictor.name, maps, layer=len(maps.weights)))
    return plots


def embeddings_plot(name: str, words: Words, found: Layout) -> Plot:
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
        labelled = _label(figure, axes, words.names, found.places)
        caption = (
            f"t-SNE by cosine of {len(words.names):,} words that are one token each, {labelled} of "
            f"them labelled. {trust_sentence(found)}"
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


def attention_plot(name: str, maps: AttentionMaps, *, layer: int) -> Plot:
    """All heads of one layer, counted from 1, with the tokens; rows look at columns."""
    from matplotlib.figure import Figure

    weights = maps.weights[layer - 1]
    columns = min(3, len(weights))
    rows = math.ceil(len(weights) / columns)
    cell = max(2.4, 0.17 * len(maps.tokens) + 0.8)
    with style():
        figure = Figure(figsize=(cell * columns, cell * rows + 0.4), layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for number, axes in enumerate(grid):
            if number >= len(weights):
                axes.set_visible(False)
                continue
            axes.imshow(weights[number].numpy(), cmap=MAP_COLORS, vmin=0, vmax=1)
            _name_tokens(axes, maps.tokens, left=number % columns == 0)
            head = f"head {number + 1}"
            axes.set_title(f"{name}, layer {layer}, {head}" if number == 0 else head, fontsize=9)
        caption = (
            f"Attention of the {len(weights)} heads of layer {layer} of {len(maps.weights)}: each "
            "token, a row, looks at the columns; white is 0, dark blue is 1."
        )
        return finished(figure, "attention", SECTION, caption)


def _name_tokens(axes: Any, tokens: Sequence[str], *, left: bool) -> None:
    places = range(len(tokens))
    axes.set_xticks(places, tokens, rotation=90, fontsize=6.5)
    axes.set_yticks(places, tokens if left else [""] * len(tokens), fontsize=6.5)
    axes.tick_params(length=0, colors=GREY)
    axes.grid(visible=False)


def heads_plot(name: str, maps: AttentionMaps) -> Plot:
    """All heads of all layers, small and without labels: a row of pictures for each layer."""
    from matplotlib.figure import Figure

    size, heads = len(maps.tokens), max(map(len, maps.weights))
    gap = max(1, size // 8)
    whole = np.full((len(maps.weights) * (size + gap), heads * (size + gap)), np.nan)
    for layer, weights in enumerate(maps.weights):
        for head, each in enumerate(weights.numpy()):
            top, left = layer * (size + gap), head * (size + gap)
            whole[top : top + size, left : left + size] = each
    with style():
        height = min(40.0, WIDE * whole.shape[0] / whole.shape[1] + 0.8)
        figure = Figure(figsize=(WIDE, height), layout="constrained")
        axes = figure.subplots()
        axes.imshow(whole, cmap=MAP_COLORS, vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"Attention of {name}, every head")
        middle = size / 2 + np.arange(max(heads, len(maps.weights))) * (size + gap)
        numbers = [str(number) for number in range(1, 1 + len(middle))]
        layers = len(maps.weights)
        axes.set_yticks(middle[:layers], numbers[:layers], fontsize=8)
        axes.set_xticks(middle[:heads], numbers[:heads], fontsize=8)
        axes.set(xlabel="head", ylabel="layer")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        caption = (
            f"One small map for each of {heads} heads in {len(maps.weights)} layers over the "
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
