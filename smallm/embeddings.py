"""The embeddings of a model's words: which lie near each other, and how they look in the plane.

A flat picture of many dimensions shows some neighbours that are none. Trustworthiness (Venna and
Kaski 2001) says how few: 1 is none, 0.5 is what chance gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallm.errors import SmallmError

MARKS = ("Ġ", "▁")  # of a token that begins a word, in byte-level BPE and in SentencePiece
INSIDE = "##"  # of a token that continues a word, in WordPiece
SHORTEST = 3  # letters of a word worth a label
NEIGHBORS = (5, 15)
PERPLEXITY = 30.0
MAPPED_WORDS = 400  # placed in some seconds
WORD_MAP = "word-map.json"  # in the folder of a champion
SEED = 42
FEWEST_WORDS = 31  # more than twice the neighbours that are looked at


@dataclass(frozen=True)
class Words:
    """Words that are one token each, in the order of their ids: the frequent ones come first."""

    names: Sequence[str]
    vectors: NDArray[np.float32]
    """(words, width), of length 1."""


@dataclass(frozen=True)
class Layout:
    """Words in the plane."""

    places: NDArray[np.float64]
    """(words, 2), by t-SNE."""
    trust: Mapping[str, Mapping[int, float]]
    """Of t-SNE, of a PCA, and of t-SNE with its words shuffled: for each number of neighbours."""


def embedded_words(predictor: Any, *, most: int | None = None) -> Words:
    """The words of a model; SmallmError where it has too few to compare."""
    names = _names(predictor.tokenizer)
    ids = [number for number, name in enumerate(names) if name][:most]
    if len(ids) < FEWEST_WORDS:
        raise SmallmError(
            f"{predictor.name}: only {len(ids)} of its tokens are whole words of {SHORTEST} "
            f"letters or more: a picture of embeddings needs {FEWEST_WORDS}"
        )
    weights = predictor.model.get_input_embeddings().weight.detach().float().cpu().numpy()
    vectors = weights[ids] - weights[ids].mean(0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return Words([names[number] for number in ids], vectors / np.maximum(lengths, 1e-12))


def _names(tokenizer: Any) -> list[str]:
    """The word of each token; nothing for what is none, or was met before."""
    ids = range(len(tokenizer))
    tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(ids)]
    special = set(tokenizer.all_special_tokens)
    marked = any(token.startswith(MARKS) for token in tokens)
    names: list[str] = []
    seen: set[str] = set()
    for number, token in zip(ids, tokens, strict=True):
        whole = token.startswith(MARKS) if marked else not token.startswith(INSIDE)
        name = tokenizer.decode([number]).strip() if whole and token not in special else ""
        word = name.isalpha() and len(name) >= SHORTEST and name not in seen
        names.append(name if word else "")
        seen.add(name)
    return names


def neighbors(words: Words, word: str, *, count: int) -> list[tuple[str, float]]:
    """The words nearest to one by cosine, nearest first; SmallmError for an unknown word."""
    if word not in words.names:
        near = [name for name in words.names if name.lower() == word.lower()]
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SmallmError(f"{word!r} is no word that the model knows as one token{hint}")
    cosines = words.vectors @ words.vectors[words.names.index(word)]
    order = np.argsort(-cosines, kind="stable")
    found = [(words.names[place], float(cosines[place])) for place in order]
    return [each for each in found if each[0] != word][:count]


def layout(words: Words) -> Layout:
    """t-SNE of the words by cosine, with how far it, a PCA and chance can be trusted."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    count = len(words.names)
    perplexity = min(PERPLEXITY, (count - 1) / 3)
    tsne = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=SEED)
    with threadpool_limits(1):  # where others compute, more threads wait for each other
        places = np.asarray(tsne.fit_transform(words.vectors), dtype=np.float64)
        flat = PCA(2, random_state=SEED).fit_transform(words.vectors)
    shuffled = places[np.random.default_rng(SEED).permutation(count)]
    ways = {"t-SNE": places, "PCA": flat, "shuffled": shuffled}
    return Layout(places, {name: _trust(words.vectors, each) for name, each in ways.items()})


def word_map(predictor: Any, *, most: int = MAPPED_WORDS) -> dict[str, Any]:
    """The frequent words of a model in the plane, as JSON can hold them."""
    words = embedded_words(predictor, most=most)
    found = layout(words)
    places = [[round(float(x), 3), round(float(y), 3)] for x, y in found.places]
    trust = {
        way: {str(number): round(value, 4) for number, value in each.items()}
        for way, each in found.trust.items()
    }
    return {"words": list(words.names), "places": places, "trustworthiness": trust}


def layout_of(found: Mapping[str, Any]) -> Layout:
    """The layout in what `word_map` gave."""
    trust = {
        way: {int(number): value for number, value in each.items()}
        for way, each in found["trustworthiness"].items()
    }
    return Layout(np.asarray(found["places"], dtype=np.float64), trust)


def _trust(vectors: NDArray[np.float32], places: NDArray[Any]) -> dict[int, float]:
    from sklearn.manifold import trustworthiness

    return {
        number: float(trustworthiness(vectors, places, n_neighbors=number, metric="cosine"))
        for number in NEIGHBORS
    }
