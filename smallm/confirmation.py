"""Confirmation: the best configs again with fresh seeds, and what may be concluded from them.

The search's own scores are the best of many noisy ones, hence too good. The finalists are trained
with seeds the search never used; the selection slice chooses among them; the final slice is
scored once, and only its figures are reported.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from torch import nn

from smallm import significance
from smallm.champion import model_card
from smallm.models import architecture
from smallm.ngrams import KNESER_NEY, UNIFORM
from smallm.results import sentences, short
from smallm.scoring import Scores, score
from smallm.settings import Settings
from smallm.tape import Slice
from smallm.token_tape import TokenTape
from smallm.training import Training

BOOTSTRAP_SEED = 0
DEFAULT = "the default config"


@dataclass(frozen=True)
class Replicate:
    """One confirmed replicate: its scores on both slices and its weights as safetensors bytes."""

    seed: int
    seconds: float
    failure: str | None
    selection: Scores
    final: Scores
    weights: bytes


@dataclass(frozen=True)
class Finalist:
    """A config chosen for confirmation; `trial` is None for a default that was no trial."""

    name: str
    trial: str | None
    settings: Settings
    is_default: bool


@dataclass(frozen=True)
class Confirmed:
    """A finalist with its replicates."""

    finalist: Finalist
    replicates: tuple[Replicate, ...]

    @property
    def failure(self) -> str | None:
        """Why a fresh seed failed, if one did: such a config is neither crowned nor compared."""
        return next((each.failure for each in self.replicates if each.failure), None)

    @property
    def selection(self) -> float:
        """Mean bits per byte on the selection slice: what the choice is made by."""
        return statistics.fmean(each.selection.bits_per_byte for each in self.replicates)

    @property
    def nll(self) -> NDArray[np.float64]:
        """Final slice, (seeds, documents), in nats."""
        return np.stack([each.final.nll for each in self.replicates])

    @property
    def median(self) -> Replicate:
        """The replicate in the middle by selection score: a typical one, not the luckiest."""
        ranked = sorted(self.replicates, key=lambda each: each.selection.bits_per_byte)
        return ranked[(len(ranked) - 1) // 2]

    def core(self, vocabulary: int) -> nn.Module:
        """The model of the median replicate."""
        settings = self.finalist.settings.model
        core: nn.Module = architecture(settings.architecture)(settings, vocabulary)
        core.load_state_dict(safetensors.torch.load(self.median.weights))
        return core


def without_memory(seed: int, why: str) -> Replicate:
    """A replicate that could not be trained for want of memory, and has no scores."""
    none = np.zeros(0, dtype=np.int64)
    scores = Scores(nll=np.zeros(0), bytes=none, words=none, tokens=none)
    return Replicate(seed, 0.0, why, selection=scores, final=scores, weights=b"")


def choose_finalists(
    trials: Sequence[Mapping[str, Any]],
    *,
    count: int,
    configs: Mapping[str, Settings],
    default: Settings,
) -> list[Finalist]:
    """The best trials among those that spent the whole budget, and the default config.

    Trials are rows of the result record.
    """
    completed = [each for each in trials if each["status"] == "completed"]
    ordered = sorted(completed, key=lambda each: each["bits_per_byte"]["mean"])
    best: list[Mapping[str, Any]] = []
    for each in ordered:  # the sampler may have suggested the same config twice
        if configs[each["id"]] not in [configs[other["id"]] for other in best]:
            best.append(each)
    best = best[:count]
    finalists = [
        Finalist(
            f"trial {each['number']}",
            each["id"],
            configs[each["id"]],
            configs[each["id"]] == default,
        )
        for each in best
    ]
    if best and not any(each.is_default for each in finalists):
        own = next((each["id"] for each in trials if configs[each["id"]] == default), None)
        finalists.append(Finalist(DEFAULT, own, default, is_default=True))
    return finalists


def confirm(
    settings: Settings,
    tokens: TokenTape,
    *,
    selection: Slice,
    final: Slice,
    threads: int,
    device: str,
) -> Replicate:
    """Trains the one seed of the settings on the full budget and scores both slices in fp32."""
    (seed,) = settings.training.seeds
    once = settings.replace(evaluate_at=[1.0], evaluation_bytes=1)
    training = Training(once, tokens, selection=selection, threads=threads, device=device)
    start = time.perf_counter()
    *_, last = training
    core, window = training.trained(seed), settings.model.window
    scores = {
        "selection": score(core, tokens, selection, window=window),
        "final": score(core, tokens, final, window=window, top=True),
    }
    return Replicate(
        seed=seed,
        seconds=time.perf_counter() - start,
        failure=last.failures.get(seed),
        **scores,
        weights=safetensors.torch.save(
            {name: weight.detach().cpu().contiguous() for name, weight in core.state_dict().items()}
        ),
    )


def ranked(confirmed: Sequence[Confirmed]) -> list[Confirmed]:
    """Best first by the selection slice, the champion at the head, without those that failed."""
    return sorted((each for each in confirmed if not each.failure), key=lambda each: each.selection)


def failure_sentences(confirmed: Sequence[Confirmed]) -> list[str]:
    """What became of the finalists that failed with a fresh seed."""
    return [
        f"A fresh seed put {each.finalist.name} out of the contest: {each.failure}."
        for each in confirmed
        if each.failure
    ]


def finalist_record(
    confirmed: Confirmed, *, role: str, searched: Sequence[str], sources: Sequence[str] = ()
) -> dict[str, Any]:
    """A finalist as the result record holds it: final figures with intervals.

    With the source of each document of the final slice, figures for each of several sources.
    """
    flat = confirmed.finalist.settings.flat()
    sizes = confirmed.replicates[0].final.bytes
    interval = significance.multi_bootstrap(confirmed.nll, sizes, seed=BOOTSTRAP_SEED)
    metrics = [each.final.metrics() for each in confirmed.replicates]
    return {
        "trial": confirmed.finalist.trial,
        "name": confirmed.finalist.name,
        "role": role,
        "is_default": confirmed.finalist.is_default,
        "settings": {name: flat[name] for name in searched},
        "seeds": [each.seed for each in confirmed.replicates],
        "parameters": sum(
            weight.numel() for weight in safetensors.torch.load(confirmed.median.weights).values()
        ),
        "selection": {
            "mean": confirmed.selection,
            "per_seed": {str(r.seed): r.selection.bits_per_byte for r in confirmed.replicates},
        },
        "final": {
            **{name: statistics.fmean(each[name] for each in metrics) for name in metrics[0]},
            "bits_per_byte": {
                **asdict(interval),
                "per_seed": {str(r.seed): r.final.bits_per_byte for r in confirmed.replicates},
            },
        },
        "by_source": _by_source(confirmed, sources) if len(set(sources)) > 1 else {},
    }


def _by_source(confirmed: Confirmed, sources: Sequence[str]) -> dict[str, Any]:
    """Bits per byte on the documents of each source, with intervals over seeds and documents."""
    named, sizes = np.asarray(sources), confirmed.replicates[0].final.bytes
    found = {}
    for name in sorted(set(sources)):
        mine = named == name
        if mine.sum() > 1:  # one document has no interval
            nll = confirmed.nll[:, mine]
            found[name] = asdict(
                significance.multi_bootstrap(nll, sizes[mine], seed=BOOTSTRAP_SEED)
            )
    return found


def compared(champion: Confirmed, other: Confirmed, against: str) -> dict[str, Any]:
    """The champion against another finalist, as the result record holds it."""
    sizes = champion.replicates[0].final.bytes
    comparison = significance.compare(champion.nll, other.nll, sizes, seed=BOOTSTRAP_SEED)
    words = significance.sentence(
        comparison,
        f"the champion ({champion.finalist.name})",
        f"the {against}" + ("" if against == "default config" else f" ({other.finalist.name})"),
    )
    return {
        "against": against,
        "difference": asdict(comparison.difference),
        "probability_of_improvement": asdict(comparison.probability_of_improvement),
        "sentence": words[0].upper() + words[1:],
    }


def reference_sentence(champion: Confirmed, references: Mapping[str, Scores]) -> str:
    """Whether the champion is below the Kneser-Ney 5-gram, in plain words."""
    reference = references[KNESER_NEY]
    table = np.broadcast_to(reference.nll, champion.nll.shape)
    comparison = significance.compare(champion.nll, table, reference.bytes, seed=BOOTSTRAP_SEED)
    value = statistics.fmean(each.final.bits_per_byte for each in champion.replicates)
    verb = "is below" if comparison.difference.value > 0 else "is NOT below"
    return (
        f"The champion's {value:.3f} bits per byte {verb} the {KNESER_NEY}'s "
        f"{reference.bits_per_byte:.3f}: "
        + significance.sentence(comparison, "the champion", f"the {KNESER_NEY}")
    )


def champion_sentence(champion: Mapping[str, Any]) -> str:
    """Which config won, and its score on the final slice."""
    chosen = ", ".join(f"{name} {short(value)}" for name, value in champion["settings"].items())
    is_named_so = champion["name"] == DEFAULT
    known = ", which is the default config" if champion["is_default"] and not is_named_so else ""
    bits = champion["final"]["bits_per_byte"]
    return (
        f"The champion is {champion['name']} ({chosen}){known}: {bits['value']:.3f} bits per byte "
        f"on the final slice (95 % interval {bits['low']:.3f} to {bits['high']:.3f}), "
        f"mean of {len(champion['seeds'])} fresh seeds."
    )


def confirmation_record(
    confirmed: Sequence[Confirmed],
    references: Mapping[str, Scores],
    searched: Sequence[str],
    sources: Sequence[str] = (),
    *,
    counted: str = "",
) -> dict[str, Any]:
    """The parts of the result record that confirmation adds, from finalists in order.

    `sources` are those of the documents of the final slice; `counted` is what the reference models
    have read, where it is not all that the champion may have.
    """
    champion, *others = confirmed
    rows, comparisons = [], []
    for place, each in enumerate(confirmed):
        named = {0: "champion", 1: "runner-up"}.get(place, "finalist")
        role = "default" if each.finalist.name == DEFAULT and place else named
        rows.append(finalist_record(each, role=role, searched=searched, sources=sources))
    if others:
        comparisons.append(compared(champion, others[0], "runner-up"))
    default = next((each for each in others if each.finalist.is_default), None)
    if default and default is not others[0]:  # as the runner-up it has been compared
        comparisons.append(compared(champion, default, "default config"))
    return {
        "finalists": rows,
        "comparisons": comparisons,
        "references": [
            {
                "name": name,
                "bits_per_byte": scores.bits_per_byte,
                "note": "on the final slice"
                + (f"; {counted}" if name != UNIFORM and counted else ""),
            }
            for name, scores in references.items()
        ],
        "conclusion": [champion_sentence(rows[0]), reference_sentence(champion, references)],
    }


def final_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """A finalist's figures as MLflow takes them."""
    final = dict(row["final"])
    bits = final.pop("bits_per_byte")
    return {
        **{f"final/{name}": value for name, value in final.items()},
        **{f"final/bits_per_byte{end}": bits[key] for end, key in _ENDS.items()},
        **{f"final/bits_per_byte/seed_{seed}": v for seed, v in bits["per_seed"].items()},
        "selection/bits_per_byte": row["selection"]["mean"],
        **{f"final/bits_per_byte/on/{n}": v["value"] for n, v in row["by_source"].items()},
    }


_ENDS = {"": "value", "/low": "low", "/high": "high"}


def card(champion: Confirmed, record: Mapping[str, Any]) -> str:
    """The champion's model card."""
    row = record["finalists"][0]
    bits = row["final"]["bits_per_byte"]
    seeds = len(row["seeds"])
    return model_card(
        title=f"SmaLLM {record['name']}",
        facts={
            "corpus": f"{record['corpus']['source']}, digest {record['corpus']['digest']}",
            "parameters": f"{row['parameters']:,}",
            "weights": f"seed {champion.median.seed}, the median of {seeds} by selection score",
            "smallm": f"{record['smallm']['version']} ({record['smallm']['digest']})",
        },
        metrics={
            "bits per byte (95 % interval)": (
                f"{bits['value']:.4f} ({bits['low']:.4f} to {bits['high']:.4f})"
            ),
            **{
                name.replace("_", " "): f"{value:.4f}"
                for name, value in row["final"].items()
                if name != "bits_per_byte"
            },
        },
        settings=champion.finalist.settings,
        conclusion=sentences(record),
    )
