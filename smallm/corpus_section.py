"""The profile of a corpus as a section of a page: tables, plots, samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from smallm.charts import OTHER_COLORS, ROLE_COLORS, Plot, finished, panels, style
from smallm.corpus_profile import NGRAM
from smallm.page import Html, details, figures, join, table, tag
from smallm.plots import tokens_shown

Record = Mapping[str, Any]
SECTION = "corpus"
RARITY = ("few rare words", "some", "many rare words")


def profile_section(profile: Record) -> Html:
    """Slices, overlap, plots and samples of a corpus."""
    slices = [
        (name, f"{sizes['documents']:,}", f"{sizes['bytes']:,}", *_seen(profile, name))
        for name, sizes in profile["slices"].items()
    ]
    removed = profile["duplicates"]
    totals = (
        f"{profile['documents']:,} documents, {profile['words']:,} words, "
        f"{profile['bytes']:,} bytes, without {removed['exact']:,} duplicates and "
        f"{removed['near']:,} near duplicates."
    )
    parts = [
        tag("p", totals),
        table(["slice", "documents", "bytes", f"{NGRAM}-grams seen in training"], slices),
        figures(draw_profile(profile), SECTION),
    ]
    if len(profile["sources"]) > 1:
        rows = [
            (name, f"{sizes['documents']:,}", f"{sizes['bytes']:,}")
            for name, sizes in profile["sources"].items()
        ]
        parts.insert(1, table(["source", "documents", "bytes"], rows))
    if profile["dropped"]:
        lost = [(reason, f"{count:,}") for reason, count in profile["dropped"].items()]
        parts.append(details("What was left out", table(["reason", "count"], lost)))
    if profile["samples"]:
        shown = [tag("pre", text) for text in profile["samples"]]
        parts.append(details(f"The beginnings of {len(shown)} documents", join(*shown)))
    return join(*parts)


def _seen(profile: Record, name: str) -> tuple[str]:
    found = profile["overlap"].get(name)
    if found is None:
        return ("",)
    documents = f"in {found['documents_with_any']:,} of {found['documents']:,} documents"
    return (f"{found['share']:.2%}, {documents}",)


def draw_profile(profile: Record) -> list[Plot]:
    """The plots of a corpus."""
    with style():
        return [_growth(profile), _lengths(profile), _rare_words(profile)]


def _growth(profile: Record) -> Plot:
    points = profile["vocabulary_growth"]
    figure, (axes,) = panels(3.2)
    axes.set(title="Growth of the vocabulary", xlabel="words read", ylabel="different words")
    axes.plot(
        [each["words"] for each in points],
        [each["distinct"] for each in points],
        "o-",
        color=ROLE_COLORS["champion"],
        ms=3.5,
    )
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda count, _: tokens_shown(count))
    caption = "How many different words have been seen; a line that stays steep keeps bringing new."
    return finished(figure, "vocabulary_growth", SECTION, caption)


def _lengths(profile: Record) -> Plot:
    classes = profile["lengths"]
    figure, (axes,) = panels(3.2)
    axes.set(title="Length of documents", xlabel="bytes (logarithmic)", ylabel="documents")
    edges = [each["from"] for each in classes] + [classes[-1]["to"] + 1]
    axes.stairs([each["documents"] for each in classes], edges, fill=True, color=OTHER_COLORS[-1])
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda size, _: f"{int(size):,}")
    axes.tick_params(axis="x", labelrotation=45)
    return finished(figure, "document_lengths", SECTION, "Documents in classes of doubling size.")


def _rare_words(profile: Record) -> Plot:
    found = {"all": {"shares": profile["strata"]["overall"]}, **profile["strata"]["slices"]}
    figure, (axes,) = panels(1.4 + 0.4 * len(found))
    axes.set(title="Rare words in the slices", xlabel="% of documents", xlim=(0, 100))
    names = list(found)[::-1]
    left = np.zeros(len(names))
    for place, (kind, color) in enumerate(zip(RARITY, OTHER_COLORS, strict=False)):
        width = np.array([100 * found[name]["shares"][place] for name in names])
        axes.barh(names, width, left=left, height=0.62, color=color, label=kind)
        left += width
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3)
    low = min((each["p"] for each in profile["strata"]["slices"].values()), default=1.0)
    caption = (
        "Documents by their share of rare words, in thirds of the corpus. The least even slice "
        f"would be so uneven by chance with p {low:.2f}; order `stratified` makes shares even."
    )
    return finished(figure, "rare_words", SECTION, caption)
