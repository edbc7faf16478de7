"""One training run as a person starts it: shown on the way, resumable, its median model saved."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smallm.activity import ACTIVITY
from smallm.errors import SmallmError, unknown_name
from smallm.files import read_json, whole_folder, write_json
from smallm.settings import Settings, read_yaml

if TYPE_CHECKING:
    from rich.console import Console

    from smallm.token_tape import TokenTape
    from smallm.training import Progress, Training

CHECKPOINTS = "tokens-*"
CURVE = "curve.json"

Point = dict[str, Any]


def follow(
    training: Training, console: Console, *, keep_in: Path | None = None
) -> tuple[Progress, list[Point]]:
    """Trains to the end; gives where that is, and the points of the learning curve.

    Prints a line per evaluation, on a terminal with a bar below. With `keep_in`, the newest
    checkpoint stays in that folder, with the curve up to it.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    size = training.batches.batch_size
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    console.print(read_and_built(training), markup=False)
    if unused := unused_window(training.tokens, training.settings.model.window):
        console.print(unused, markup=False)
    if training.not_stacked:
        console.print(f"seeds train in turn, not stacked: {training.not_stacked}", markup=False)
    last = None
    curve = _kept_curve(keep_in, training.step * size)
    with bar:
        task = bar.add_task("", total=training.total_steps * size, completed=training.step * size)
        for last in training:
            console.print(line(last), markup=False)
            bar.update(task, completed=last.tokens)
            curve.append(curve_point(last))
            if keep_in and not last.done:
                _keep(training, keep_in, last.tokens)
                write_json(keep_in / CURVE, curve)
    if last is None:
        raise SmallmError("nothing is left to train: the checkpoint has spent its budget")
    return last, curve


def read_and_built(training: Training) -> str:
    """A line for the corpus and the size of the model."""
    about = training.tokens.tape.manifest
    core = training.trained(training.settings.training.seeds[0])
    size = sum(weight.numel() for weight in core.parameters())
    return (
        f"corpus {about['source']}: {about['documents']:,} documents, {about['bytes']:,} bytes; "
        f"{training.settings.model.architecture} of {size:,} parameters"
    )


def unused_window(tokens: TokenTape, window: int) -> str | None:
    """A line for a window that no document fills; the model trains well, but looks in vain."""
    longest = int(np.diff(tokens.ends).max())
    if window <= longest:
        return None
    return (
        f"window {window} is longer than the longest document, {longest} tokens: a window of "
        f"{longest} sees as much"
    )


def curve_point(progress: Progress) -> Point:
    """A point of a learning curve, as the trials of a result record have them."""
    found = [each.of_all() for each in progress.activity.values()]
    means = {name: [one[name] for one in found] for name in ACTIVITY if found}
    return {
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "mean": progress.mean,
        "per_seed": {str(seed): bits for seed, bits in progress.bits_per_byte.items()},
        "activity": {name: statistics.fmean(each) for name, each in means.items()} or None,
    }


def _kept_curve(folder: Path | None, tokens: int) -> list[Point]:
    """The curve that is kept beside a checkpoint, up to where that one goes on."""
    if not tokens or folder is None or not (folder / CURVE).exists():
        return []
    return [point for point in read_json(folder / CURVE) if point["tokens"] <= tokens]


def read_curve(folder: Path) -> dict[str, Any]:
    """How a saved model was trained, as a trial of a result record; SmallmError without it."""
    if not (folder / CURVE).exists():
        raise SmallmError(f"{folder}: holds no learning curve ({CURVE}): `smallm train` saves one")
    curve = read_json(folder / CURVE)
    settings = Settings.from_flat(read_yaml(folder / "settings.yaml"))
    last = curve[-1]
    return {
        "id": str(folder),
        "name": folder.name,
        "settings": settings.flat(),
        "status": "completed",
        "tokens": last["tokens"],
        "bits_per_byte": {"mean": last["mean"], "per_seed": last["per_seed"]},
        "curve": curve,
    }


def line(progress: Progress) -> str:
    """Where all replicates stand, in one line."""
    seeds = ", ".join(
        f"{seed}: {progress.failures.get(seed) or f'{bits:.3f}'}"
        for seed, bits in progress.bits_per_byte.items()
    )
    spread = f" ± {progress.spread:.3f}" if len(progress.bits_per_byte) > 1 else ""
    return (
        f"{progress.tokens:,}/{progress.budget:,} tokens: {progress.mean:.3f}{spread} "
        f"bits per byte (seeds {seeds}), "
        f"{progress.tokens_per_second:,.0f} tokens/s"
    )


def _keep(training: Training, folder: Path, tokens: int) -> None:
    target = folder / CHECKPOINTS.replace("*", f"{tokens:012d}")
    training.save(target)
    for older in sorted(folder.glob(CHECKPOINTS))[:-1]:
        shutil.rmtree(older)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint in a folder and the flat settings of its run."""
    found = sorted(folder.glob(f"{CHECKPOINTS}/training.json"))
    if not found:
        raise SmallmError(f"{folder}: holds no checkpoint; `smallm train --checkpoint` makes them")
    settings: dict[str, Any] = read_json(found[-1])["settings"]
    return found[-1].parent, settings


def require_unused(folder: Path) -> None:
    """Raises SmallmError when a folder holds the checkpoints of another run."""
    if any(folder.glob(CHECKPOINTS)):
        raise SmallmError(f"{folder}: holds a checkpoint already; --resume goes on with it")


def usable_device(name: str) -> str:
    """The name, when torch can train there."""
    import torch

    graphics = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    known = ["cpu", *graphics, *(["cuda"] if graphics else [])]
    if name not in known:
        raise SmallmError(unknown_name("device", name, known))
    return name


def median_seed(progress: Progress) -> int:
    """The seed with the median score, the better of two; SmallmError when it has failed."""
    bits = progress.bits_per_byte
    seed = sorted(bits, key=lambda each: bits[each])[(len(bits) - 1) // 2]
    if seed in progress.failures:
        raise SmallmError(f"no model saved: seed {seed} ended early: {progress.failures[seed]}")
    return seed


def save_median(
    training: Training,
    progress: Progress,
    folder: Path,
    *,
    heldout_above: float,
    curve: Sequence[Point] = (),
) -> dict[str, Any]:
    """Saves the replicate with the median score as a Hugging Face folder; gives the record.

    No training of this corpus goes beyond the split ratio `heldout_above`. The `curve` that led
    there is saved with it.
    """
    from smallm.calibration import fitted_temperature
    from smallm.champion import save_model

    seed = median_seed(progress)
    settings, tokens, core = training.settings, training.tokens, training.trained(seed)
    temperature = fitted_temperature(core, tokens, training.selection, window=settings.model.window)
    card = (
        f"# SmaLLM\n\nSeed {seed}: {progress.bits_per_byte[seed]:.4f} bits per byte on the "
        f"selection slice; {progress.mean:.4f} ± {progress.spread:.4f} over "
        f"{len(progress.bits_per_byte)} seeds.\n"
    )
    with whole_folder(folder) as temporary:
        about = {"heldout_above": heldout_above, "temperature": temperature}
        save_model(core, settings, tokens, temporary, card=card, **about)
        if curve:
            write_json(temporary / CURVE, list(curve))
    return {
        "folder": str(folder),
        "seed": seed,
        "bits_per_byte": progress.bits_per_byte,
        "mean": progress.mean,
        "spread": progress.spread,
        "failures": progress.failures,
        "temperature": temperature,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": round(progress.tokens_per_second, 1),
        "corpus": tokens.tape.manifest["digest"],
        "settings": settings.flat(),
    }
