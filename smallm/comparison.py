"""Models side by side: the same held-out bytes, the same prompts, measures that mean the same.

A record comes out, with a row for each model; one that can't be had or fails keeps its row, with
the reason. `report` shows it, `mlflow_store` and `result.json` keep it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import nn

from smallm import significance
from smallm.baselines import CHAMPION, Trouble, Unavailable, baseline, hub_trouble, state
from smallm.calibration import calibration_record, fit_temperature
from smallm.errors import SmallmError, in_one_line
from smallm.files import read_text
from smallm.next_words import word_positions
from smallm.predictors import Decoding, Predictor
from smallm.predictors.causal import Causal
from smallm.predictors.expansion import word_accuracy
from smallm.predictors.loading import load_predictor
from smallm.predictors.masked import Masked
from smallm.quality import HeldOutPrompt, ceiling, first_words, prompts_and_references, quality
from smallm.references import reference_scores
from smallm.scoring import Scores, score
from smallm.settings import Settings
from smallm.significance import Interval, ratio_interval
from smallm.tape import Slice, Tape
from smallm.token_tape import TokenTape
from smallm.tokens import WORD

SEED = 0
PSEUDO = "pseudo_log_likelihood_per_word"
TIMED_BYTES = 16_384
MASKED_BYTES, MASKED_WINDOW = 8_192, 64  # bytes that masked models score, tokens they see
CONTINUATION_WORDS, PROMPT_WORDS = 15, 24  # of the passages that generation is judged by
FITTING_BYTES = 16_384
NEXT_WORDS = 5
SOURCE_DOCUMENTS = 10  # of each source of a mixture that are scored, where there are as many
MIXED = 4  # times the bytes that are asked for, at most, to have them
LONGEST = 300  # tokens that a continuation may need for its words
EVERYDAY = Decoding(max_tokens=LONGEST, temperature=0.8, top_p=0.95)
SHORT = replace(EVERYDAY, max_tokens=30)

Record = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class HeldOut:
    """Text that is the same for every model, and how much of it each measure looks at."""

    part: Slice
    texts: Sequence[str]
    """What is scored: the documents of the part."""
    fitting: Sequence[str]
    """What a temperature is fitted on; none of it is scored. Empty: no calibration."""
    sources: Sequence[str] = ()
    """The source of each document."""
    words: int = 48
    """Words of the text whose rank among all next words is found."""
    continuations: int = 16
    """Passages that are continued and compared with the true continuation."""

    @property
    def bytes(self) -> int:
        """UTF-8 bytes that are scored."""
        return sum(len(text.encode("utf-8")) for text in self.texts)

    @cached_property
    def passages(self) -> list[HeldOutPrompt]:
        """What is continued; empty where fewer than two documents are long enough."""
        try:
            found = prompts_and_references(
                self.texts,
                count=self.continuations,
                prompt_words=PROMPT_WORDS,
                continuation_words=CONTINUATION_WORDS,
            )
        except SmallmError:
            return []
        return found if len(found) > 1 else []


@dataclass(frozen=True)
class Absent:
    """A model that can't be had or loaded: why, and what to do."""

    name: str
    reason: str
    remedy: str = ""
    failed: bool = False
    """Whether it is here but broken, which is an error; being elsewhere is not."""


def each_model(
    names: Iterable[str], *, folders: Mapping[str, Path], home: Path, threads: int, device: str
) -> Iterator[Predictor | Absent]:
    """Loads one model after another; `folders` holds those with names of their own.

    Raises SmallmError for a name that is no model at once, before any is asked for.
    """
    trouble = cache(hub_trouble)
    places = {name: _place(name, folders, trouble) for name in names}
    return _loaded(places, home=home, threads=threads, device=device)


def _loaded(
    places: Mapping[str, str | Absent], *, home: Path, threads: int, device: str
) -> Iterator[Predictor | Absent]:
    for name, place in places.items():
        if isinstance(place, Absent):
            yield place
        else:
            yield _present(name, place, home=home, threads=threads, device=device)


def _present(name: str, place: str, *, home: Path, threads: int, device: str) -> Predictor | Absent:
    """The model at a place; whatever is wrong with it, the others are compared."""
    try:
        model = load_predictor(place, home=home, threads=threads, device=device)
    except Exception as error:
        return Absent(name, _reason(error), failed=True)
    model.name = name
    return model


def _reason(error: Exception) -> str:
    """What went wrong with a model; the words of some errors say nothing without their type."""
    if isinstance(error, SmallmError | RuntimeError) or not str(error):
        return in_one_line(error)
    return f"{type(error).__name__}: {in_one_line(error)}"


def _place(name: str, folders: Mapping[str, Path], trouble: Trouble) -> str | Absent:
    """What to load a model by."""
    if name in folders:
        return str(folders[name])
    if name == CHAMPION:
        return Absent(name, "no search has crowned one yet", "run `make search`")
    found = state(name, trouble=trouble)
    return Absent(name, found.reason, found.remedy) if isinstance(found, Unavailable) else name


def held_out(tape: Tape, part: Slice, *, most_bytes: int, fitting: Slice | None) -> HeldOut:
    """The beginning of a slice, at least two documents, and what temperatures are fitted on."""
    sources = tape.column("source")[part.first : part.last]
    first = tape.beginning(part, most_bytes)
    # of a mixture so much that each source is there, within bounds
    longest = tape.beginning(part, MIXED * most_bytes)
    needed = [np.flatnonzero(sources == name)[:SOURCE_DOCUMENTS].max() for name in set(sources)]
    mixed = min(part.first + int(max(needed)) + 1, longest.last) if len(needed) > 1 else 0
    last = min(max(first.last, first.first + 2, mixed), part.last)
    first = replace(first, last=last)
    fitted = list(tape.texts(tape.beginning(fitting, FITTING_BYTES))) if fitting else []
    named = sources[: last - part.first].tolist()
    return HeldOut(first, list(tape.texts(first)), fitted, named)


def evaluate(
    models: Iterable[Predictor | Absent], text: HeldOut, say: Say, *, prompts: Sequence[str] = ()
) -> Record:
    """Every model on the same bytes: a row each, with intervals over documents.

    With prompts, a row holds also what the model makes of each.
    """
    rows = []
    for model in models:
        start = time.perf_counter()
        row = _about(model) | _measured(model, text)
        if prompts:
            row["prompts"] = _answers(model, prompts, k=NEXT_WORDS, decodings=lambda _: SHORT)
        rows.append(row)
        say(f"{row['name']}: {_summary(row)}, in {time.perf_counter() - start:.0f} s")
    return {
        "slice": text.part.name,
        "documents": len(text.texts),
        "bytes": text.bytes,
        "sources": _sizes(text),
        "models": rows,
        "ceiling": asdict(ceiling(text.passages)) if text.passages else None,
        "prompts": list(prompts),
    }


def _sizes(text: HeldOut) -> dict[str, dict[str, int]]:
    """Documents and bytes of each source."""
    sizes: dict[str, dict[str, int]] = {}
    for name, document in sorted(zip(text.sources, text.texts, strict=False)):
        found = sizes.setdefault(name, {"documents": 0, "bytes": 0})
        found["documents"] += 1
        found["bytes"] += len(document.encode("utf-8"))
    return sizes


def compare(
    models: Iterable[Predictor | Absent],
    prompts: Sequence[str],
    *,
    k: int,
    decodings: Callable[[str], Decoding],
) -> list[Record]:
    """What each model makes of each prompt: next words, a continuation, the time.

    `decodings` gives the decoding of a model by its name: a fitted temperature is its own.
    """
    return [
        _about(model) | {"prompts": _answers(model, prompts, k=k, decodings=decodings)}
        for model in models
    ]


def default_prompts() -> list[str]:
    """The seed sentences of machine learning that ship with SmaLLM."""
    shipped = resources.files("smallm.prompts") / "machine-learning.txt"
    return shipped.read_text(encoding="utf-8").splitlines()


def read_prompts(path: Path) -> list[str]:
    """The prompts in a UTF-8 text file, one a line; empty lines are left out."""
    prompts = [line for line in read_text(path).splitlines() if line.strip()]
    if not prompts:
        raise SmallmError(f"{path}: holds no prompt; it needs one a line")
    return prompts


def _about(model: Predictor | Absent) -> Record:
    known = baseline(model.name)
    about: Record = {
        "name": model.name,
        "kind": known.kind if known else None,
        "parameters": known.parameters if known else None,
        "has_read": known.has_read if known else None,
    }
    if isinstance(model, Absent):
        return about | {"reason": model.reason, "remedy": model.remedy, "failed": model.failed}
    context = model.context
    if context is None and isinstance(model, Causal):  # a SmaLLM
        context = int(model.model.reach)
    return about | {"kind": model.kind, "parameters": model.parameters, "context": context}


def _measured(model: Predictor | Absent, text: HeldOut) -> Record:
    """The measures of a model; what goes wrong with it is told in its row."""
    if isinstance(model, Absent):
        return {}
    try:
        if isinstance(model, Masked):
            return _masked(model, text)
        assert isinstance(model, Causal)
        return _causal(model, text)
    except Exception as error:
        return {"reason": _reason(error), "failed": True}


def _causal(model: Causal, text: HeldOut) -> Record:
    fitted = fit_temperature(model.logits(text.fitting)) if text.fitting else None
    timed = list(_first_bytes(text.texts, TIMED_BYTES))
    model.score(timed[:1])  # warms up
    start = time.perf_counter()
    tokens = int(model.score(timed)[0].tokens.sum())
    milliseconds = 1000 * (time.perf_counter() - start)
    plain, *warm = model.score(
        text.texts, temperatures=[1.0, *([fitted.temperature] if fitted else [])]
    )
    row = _figures(plain) | {
        "milliseconds_per_token": milliseconds / tokens,
        "milliseconds_per_kilobyte": milliseconds / sum(len(each.encode()) for each in timed) * 1e3,
        "nll_by_document": plain.nll.tolist(),
        "next_word": _next_word(model, text),
        "quality": _quality(model, text),
    }
    if len(set(text.sources)) > 1:
        row["by_source"] = _by_source(plain, text.sources)
    if fitted:
        row["calibration"] = calibration_record(plain, warm[0], fitted)
    return row


def _figures(scores: Scores) -> Record:
    """The figures that models with different tokenizers share, each with its interval."""
    return {
        "tokens": int(scores.tokens.sum()),
        "bits_per_byte": _ratio(scores.nll / math.log(2), scores.bytes),
        "word_perplexity": _perplexity(scores, scores.words),
        "byte_perplexity": _perplexity(scores, scores.bytes),
    }


def _by_source(scores: Scores, sources: Sequence[str]) -> dict[str, Record]:
    """Bits per byte for each source, with the rows per document that pair models."""
    named = np.asarray(sources)
    found = {}
    for name in sorted(set(sources)):
        nll, sizes = scores.nll[named == name], scores.bytes[named == name]
        found[name] = _ratio(nll / math.log(2), sizes) | {
            "nll_by_document": nll.tolist(),
            "bytes_by_document": sizes.tolist(),
        }
    return found


def _perplexity(scores: Scores, sizes: Any) -> Record:
    nats = _ratio(scores.nll, sizes)
    return {
        name: None if value is None else math.exp(min(value, 700.0)) for name, value in nats.items()
    }


def _ratio(totals: Any, sizes: Any) -> Record:
    """A ratio of sums with its interval over documents; a single document has none."""
    if len(sizes) > 1:
        return asdict(ratio_interval(totals, sizes, seed=SEED))
    return {"value": float(totals[0] / sizes[0]), "low": None, "high": None}


def _masked(model: Masked, text: HeldOut) -> Record:
    """Every token costs a masked model a pass over its window: less text, in short windows."""
    start = time.perf_counter()
    texts = list(_first_bytes(text.texts, MASKED_BYTES))
    scores = model.pseudo_score(texts, window=MASKED_WINDOW)
    tokens = int(scores.tokens.sum())
    return {
        "tokens": tokens,
        "bytes": sum(len(each.encode("utf-8")) for each in texts),
        "window": MASKED_WINDOW,
        PSEUDO: _ratio(scores.log_likelihood, scores.words),
        "milliseconds_per_token": 1000 * (time.perf_counter() - start) / tokens,
    }


def _first_bytes(texts: Sequence[str], most: int) -> Iterator[str]:
    """The first texts that reach so many bytes, two at least: one alone has no interval."""
    seen = 0
    for number, text in enumerate(texts):
        if seen >= most and number >= 2:
            return
        seen += len(text.encode("utf-8"))
        yield text


def _next_word(model: Causal, text: HeldOut) -> Record | None:
    """Share of words that are among the model's k most probable next words."""
    positions = word_positions(text.texts, text.words)
    if not positions:
        return None
    found = word_accuracy(model, positions)
    return {
        "positions": found.positions,
        "undecided": max(found.undecided.values()),
        **{
            f"top_{k}": _share(hits, found.undecided[k], found.positions)
            for k, hits in found.hits.items()
        },
    }


def _share(hits: int, undecided: int, positions: int) -> Record:
    """A share with Wilson's interval: the positions lie far apart. The undecided may be hits."""
    low, high = (
        binomtest(count, positions).proportion_ci(method="wilson")
        for count in (hits, hits + undecided)
    )
    return asdict(Interval(hits / positions, float(low.low), float(high.high)))


def _quality(model: Causal, text: HeldOut) -> Record | None:
    """Continuations of held-out passages against the true ones, equally long in words."""
    if not text.passages:
        return None
    written = [
        _written(model, each.prompt, replace(EVERYDAY, seed=number))
        for number, each in enumerate(text.passages)
    ]
    return asdict(quality(written, [each.reference for each in text.passages]))


def _written(model: Causal, prompt: str, decoding: Decoding) -> str:
    """A continuation of so many words, or all of it where the model ends before."""
    text = ""
    for piece in model.stream(prompt, decoding):
        text += piece
        if len(WORD.findall(text)) > CONTINUATION_WORDS:  # the last of the wanted words is whole
            break
    return first_words(text, CONTINUATION_WORDS)


def _answers(
    model: Predictor | Absent,
    prompts: Sequence[str],
    *,
    k: int,
    decodings: Callable[[str], Decoding],
) -> list[Record]:
    if isinstance(model, Absent):
        return []
    return [_answer(model, prompt, k=k, decodings=decodings) for prompt in prompts]


def _answer(
    model: Predictor, prompt: str, *, k: int, decodings: Callable[[str], Decoding]
) -> Record:
    """Next words and a continuation; what one of them refuses does not take the other away."""
    answer: Record = {"prompt": prompt, "error": None}
    parts: list[Callable[[], Record]] = [lambda: _next_words(model, prompt, k=k)]
    if model.kind == "causal":
        parts.append(lambda: _continuation(model, prompt, decodings(model.name)))
    for part in parts:
        try:
            answer |= part()
        except Exception as error:
            answer["error"] = answer["error"] or _reason(error)
    return answer


def _next_words(model: Predictor, prompt: str, *, k: int) -> Record:
    start = time.perf_counter()
    found = model.next_words(prompt, k=k)
    return {"next_words": asdict(found), "next_words_seconds": time.perf_counter() - start}


def _continuation(model: Predictor, prompt: str, decoding: Decoding) -> Record:
    start = time.perf_counter()
    text = "".join(model.stream(prompt, decoding))
    return {"continuation": text, "continuation_seconds": time.perf_counter() - start}


def _summary(row: Mapping[str, Any]) -> str:
    if "reason" in row:
        return f"{'failed' if row['failed'] else 'not available'}: {row['reason']}"
    if row["kind"] == "masked":
        return f"{row[PSEUDO]['value']:.3f} nats per word (pseudo)"
    temperature = row.get("calibration", {}).get("temperature")
    fitted = f", fitted temperature {temperature:.2f}" if temperature else ""
    return f"{row['bits_per_byte']['value']:.3f} bits per byte{fitted}"


def sentences(record: Mapping[str, Any], nll: NDArray[np.float64], sizes: Any) -> Iterator[str]:
    """The champion against each pretrained model, in plain words.

    `nll` (seeds, documents) and the documents' `sizes` in bytes are those of the final slice, of
    which the record holds the beginning.
    """
    documents = record["documents"]
    for row in record["models"]:
        if row["name"] == CHAMPION or "nll_by_document" not in row:
            continue
        other = np.broadcast_to(row["nll_by_document"], (len(nll), documents))
        found = significance.compare(nll[:, :documents], other, sizes[:documents], seed=SEED)
        said = significance.sentence(found, "the champion", row["name"])
        read = f" {row['name']} has read {row['has_read']}." if row["has_read"] else ""
        yield re.sub("^the champion", "The champion", said) + read  # a model keeps its spelling


def own_tokens(
    core: nn.Module, tokens: TokenTape, part: Slice, *, settings: Settings
) -> dict[str, dict[str, float]]:
    """A SmaLLM and the reference models in its own tokens: figures that no other model shares."""
    scores = {"this model": score(core, tokens, part, window=settings.model.window, top=True)}
    training = tokens.tape.training(settings.training.split_ratio)
    scores |= reference_scores(tokens, training, part)
    return {name: each.metrics() for name, each in scores.items()}


def metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """A model's figures by flat names, as MLflow takes them."""
    flat: dict[str, float] = {}
    for name in ("bits_per_byte", "word_perplexity", "byte_perplexity", PSEUDO):
        if name in row:
            ends = {"": "value", "/low": "low", "/high": "high"}
            found = {f"{name}{end}": row[name][key] for end, key in ends.items()}
            flat |= {key: value for key, value in found.items() if value is not None}
    for name, found in row.get("by_source", {}).items():
        flat[f"bits_per_byte/on/{name}"] = found["value"]
    for name in ("milliseconds_per_token", "milliseconds_per_kilobyte"):
        if name in row:
            flat[name] = row[name]
    for name, found in (row.get("next_word") or {}).items():
        flat[f"next_word/{name}"] = found["value"] if isinstance(found, dict) else found
    if calibration := row.get("calibration"):
        flat["temperature"] = calibration["temperature"]
        for when in ("before", "after"):
            for name in ("nll", "ece_width", "ece_mass"):
                flat[f"calibration/{name}/{when}"] = calibration[when][name]["value"]
    if written := row.get("quality"):
        flat |= {f"quality/{name}": written[name]["value"] for name in ("bleu", "rouge_l")}
        flat |= {f"quality/{name}": share for name, share in written["diversity"].items()}
    return flat
