"""The training loop: all replicates of a config in one process, as a generator of progress.

The loop does not know who listens. To stop it, stop iterating; to keep it, `save` between two
records and give the folder as `resume_from` later: the numbers go on as if never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from smallm.activity import Activity
from smallm.batches import Batches, Sequences, training_batches
from smallm.curriculum import Staged
from smallm.errors import SmallmError
from smallm.files import keep_first_json, read_json, whole_folder, write_json
from smallm.hardware import PRECISIONS, half_dtype, out_of_memory, precision_of
from smallm.provenance import code_digest
from smallm.replicates import Group, groups_of
from smallm.scoring import places_before, score
from smallm.settings import Settings
from smallm.tape import Slice
from smallm.token_tape import TokenTape
from smallm.watching import watched

PENALTY = 16.0  # bits per byte of a replicate that failed: finite, and twice a uniform guess
STEPS_PER_DRAW = 16
STEP_CODE = ("models", "muon.py", "optimizers.py", "replicates.py")  # that decides its speed
TRIAL_STEPS = 3  # measured to choose stacked or sequential: the shortest is the least disturbed
SMALLEST_HALF_VOCABULARY = 500  # below it half precision gains a perceptron nothing
SMALLEST_HALF_WIDTH = 64  # of a transformer, whose hidden layers are the most of it


@dataclass(frozen=True)
class Progress:
    """Where all replicates stand after one part of the budget."""

    tokens: int
    """Predicted tokens so far, per replicate."""
    budget: int
    rung: int
    """How many of the shares of the budget at which it is scored are behind it."""
    seconds: float
    """Time spent training and scoring so far, resumed parts included."""
    tokens_per_second: float
    """Of all replicates together, training only, in this part."""
    loss: dict[int, float]
    """Mean training loss in nats per token in this part, by seed."""
    bits_per_byte: dict[int, float]
    """On the beginning of the selection slice, by seed; PENALTY where the replicate failed."""
    failures: dict[int, str]
    """Why a replicate ended early, by seed."""
    precision: str | None = None
    """Of matrix products; None where it was never known."""
    activity: Mapping[int, Activity] = field(default_factory=dict)
    """What the hidden units of each replicate do on the text that is scored, by seed."""

    @property
    def mean(self) -> float:
        """Mean bits per byte over the replicates."""
        return statistics.fmean(self.bits_per_byte.values())

    @property
    def spread(self) -> float:
        """Standard deviation of bits per byte over the replicates; 0 for one."""
        values = list(self.bits_per_byte.values())
        return statistics.stdev(values) if len(values) > 1 else 0.0

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.tokens >= self.budget


class Training:
    """The replicates of one config on one tape; iterate to train."""

    def __init__(
        self,
        settings: Settings,
        tokens: TokenTape,
        *,
        selection: Slice,
        threads: int = 1,
        device: str = "cpu",
        resume_from: Path | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.settings = settings
        self.tokens = tokens
        self.device = torch.device(device)
        self.dtype = product_dtype(settings, tokens.vocabulary, self.device)
        training = settings.training
        self.selection = tokens.tape.beginning(selection, training.evaluation_bytes)
        part = tokens.tape.training(training.split_ratio)
        self.total_steps = math.ceil(training.training_tokens / training.batch_size)
        batches = training_batches(settings, tokens, tokens.span(part)[1])
        self.batches: Batches | Sequences | Staged = batches  # to measure the speed of any steps
        self.step = 0
        self.seconds = 0.0
        self.failures: dict[int, str] = {}
        self.activity: dict[int, Activity] = {}
        self.not_stacked: str | None = None
        """Why replicates train in turn although stacked might be faster."""
        saved = read_json(resume_from / "training.json") if resume_from else None
        if saved and Settings.from_flat(saved["settings"]) != settings:
            raise SmallmError(f"{resume_from}: was saved by a run with other settings")
        if saved and saved.get("text", self._text()) != self._text():
            raise SmallmError(
                f"{resume_from}: was saved by a run on another text: this one has changed since"
            )
        self.stacked = saved["stacked"] if saved else self._choose_stacked()
        self.batches = staged(batches, settings, self.total_steps)
        self.groups = self._groups(stacked=self.stacked)
        if saved and resume_from:
            state = load_file(resume_from / "training.safetensors")
            for group in self.groups:
                group.load(state)
            self.step, self.seconds = saved["step"], saved["seconds"]
            self.failures = {int(seed): reason for seed, reason in saved["failures"].items()}

    def __iter__(self) -> Iterator[Progress]:
        """Trains to the next evaluation, scores, yields; until the budget is spent."""
        for milestone in self._milestones():
            if milestone <= self.step:
                continue
            start = time.perf_counter()
            first, losses = self.step, dict.fromkeys(self.settings.training.seeds, PENALTY)
            for group in self._running():
                losses |= self._train(group, milestone)
            self.step = milestone
            trained = time.perf_counter()
            bits = {seed: self._bits_per_byte(seed) for seed in self.settings.training.seeds}
            self.seconds += time.perf_counter() - start
            tokens = (milestone - first) * self.batches.batch_size
            yield Progress(
                tokens=milestone * self.batches.batch_size,
                budget=self.total_steps * self.batches.batch_size,
                rung=sum(each <= milestone for each in self._each_milestone()),
                seconds=self.seconds,
                tokens_per_second=tokens * len(bits) / (trained - start),
                loss=losses,
                bits_per_byte=bits,
                failures=dict(self.failures),
                precision=precision_of(self.dtype),
                activity=dict(self.activity),
            )
            if len(self.failures) == len(bits):
                return

    def trained(self, seed: int) -> nn.Module:
        """The model of a replicate as it stands."""
        return self._group(seed).trained(seed)

    def save(self, folder: Path) -> None:
        """Writes all that is needed to go on, whole or not at all, into a new folder."""
        if folder.exists() and any(folder.iterdir()):
            raise SmallmError(f"{folder}: holds something already; save into a new folder")
        with whole_folder(folder) as temporary:
            state = {
                name: tensor for group in self.groups for name, tensor in group.state().items()
            }
            save_file(state, temporary / "training.safetensors")
            write_json(
                temporary / "training.json",
                {
                    "settings": self.settings.flat(),
                    "text": self._text(),
                    "stacked": self.stacked,
                    "step": self.step,
                    "seconds": self.seconds,
                    "failures": self.failures,
                },
            )

    def _text(self) -> dict[str, str]:
        """Identifies the documents and their tokens."""
        return {
            "tape": self.tokens.tape.manifest["digest"],
            "tokens": self.tokens.manifest["digest"],
        }

    def _milestones(self) -> list[int]:
        return sorted(set(self._each_milestone()))

    def _each_milestone(self) -> list[int]:
        """Steps, one for each share; those of a short training may be the same."""
        shares = self.settings.training.evaluate_at
        return [max(1, round(share * self.total_steps)) for share in shares]

    def _groups(self, *, stacked: bool) -> list[Group]:
        return groups_of(
            self.settings,
            self.tokens.vocabulary,
            stacked=stacked,
            device=self.device,
            dtype=self.dtype,
        )

    def _running(self) -> list[Group]:
        return [group for group in self.groups if not set(group.seeds) <= set(self.failures)]

    def _group(self, seed: int) -> Group:
        return next(group for group in self.groups if seed in group.seeds)

    def _train(self, group: Group, until: int) -> dict[int, float]:
        """Takes a group's steps up to a milestone; gives the mean loss by seed."""
        losses = []
        for start in range(self.step, until, STEPS_PER_DRAW):
            end = min(start + STEPS_PER_DRAW, until)
            losses.append(self._take_steps(group, start, end))
            self._note_failures(group, losses[-1][-1], end)
            if set(group.seeds) <= set(self.failures):
                break
        means = torch.cat(losses).mean(0).tolist()
        return {
            seed: PENALTY if seed in self.failures else mean
            for seed, mean in zip(group.seeds, means, strict=True)
        }

    def _take_steps(self, group: Group, start: int, end: int) -> Tensor:
        """Losses (steps, replicates) of the steps start..end-1."""
        drawn = [self.batches.steps(seed, start, end) for seed in group.seeds]
        inputs = torch.from_numpy(np.stack([each[0] for each in drawn], axis=1)).to(self.device)
        targets = torch.from_numpy(np.stack([each[1] for each in drawn], axis=1)).to(self.device)
        training = self.settings.training
        losses = [
            group.step(
                inputs[step - start],
                targets[step - start],
                factor=schedule(step, self.total_steps, training.warmup, training.decay),
                noise=group.seeds[0] * 1_000_003 + step,
                guessed=training.scheduled_sampling * step / self.total_steps,
            )
            for step in range(start, end)
        ]
        return torch.stack(losses).cpu()

    def _note_failures(self, group: Group, losses: Tensor, step: int) -> None:
        uniform = math.log(self.tokens.vocabulary)
        for seed, loss in zip(group.seeds, losses.tolist(), strict=True):
            if seed in self.failures or loss < 1.5 * uniform:
                continue
            rate = self.settings.training.learning_rate
            what = (
                f"diverged to a loss of {loss:.1f} nats"
                if math.isfinite(loss)
                else "loss became NaN"
            )
            self.failures[seed] = f"{what} by step {step} at learning rate {rate:g}"

    def _bits_per_byte(self, seed: int) -> float:
        self.activity.pop(seed, None)
        if seed in self.failures:
            return PENALTY
        core, window = self.trained(seed), self.settings.model.window
        with watched(core, before=places_before(core, window)) as units:
            scores = score(core, self.tokens, self.selection, window=window, dtype=self.dtype)
        if found := units.activity():
            self.activity[seed] = found
        return scores.bits_per_byte if math.isfinite(scores.bits_per_byte) else PENALTY

    def _choose_stacked(self) -> bool:
        """The faster way, measured once for a shape on a machine and kept beside the tape.

        Measured anew each time, it could change the last bits of equal configs. Where the memory
        does not hold both ways, replicates train in turn, and nothing is kept: what is free depends
        on what else runs.
        """
        choice = self.settings.training.replication
        if self.dtype == torch.float16:
            return self._in_turn_for_fp16()
        if len(self.settings.training.seeds) == 1 or choice != "auto":
            return choice == "stacked" and len(self.settings.training.seeds) > 1
        if self.settings.model.dropout or self.settings.training.scheduled_sampling:
            return False  # stacked replicates share random numbers, and a seed must fix its own
        kept = self.tokens.tape.folder / "replication" / f"{self._shape_digest()}.json"
        try:
            if not kept.exists():
                keep_first_json(kept, self._seconds_of_ways())
        except (MemoryError, RuntimeError) as error:
            self.not_stacked = out_of_memory(error)
            if self.not_stacked is None:
                raise
            return False
        seconds = read_json(kept)
        return bool(seconds["stacked"] < seconds["sequential"])

    def _in_turn_for_fp16(self) -> bool:
        """In fp16 a step that overflows is left out, which is each replicate's own affair."""
        training = self.settings.training
        if training.replication == "stacked" and len(training.seeds) > 1:
            raise SmallmError(
                "replication is 'stacked', but with precision fp16 replicates train in turn: "
                "allowed are auto and sequential, or stacked with precision fp32"
            )
        return False

    def _shape_digest(self) -> str:
        """Identifies all that the speed of a step depends on."""
        what = [
            *(self.settings.model.model_dump(), self.tokens.vocabulary, self.batches.batch_size),
            *(len(self.settings.training.seeds), precision_of(self.dtype), str(self.device)),
            *(self.settings.training.compile, torch.get_num_threads()),
            *(self.settings.training.optimizer, self.settings.training.loss),
            *(torch.__version__, platform.node(), code_digest(*STEP_CODE)),
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def _seconds_of_ways(self) -> dict[str, float]:
        """The shortest time of each way, in turns: other trials that load the machine meet both."""
        ways = {way: self._groups(stacked=way == "stacked") for way in ("sequential", "stacked")}
        for groups in ways.values():
            self._seconds_of_steps(groups, 0, 1)  # warms up
        rounds = [
            {way: self._seconds_of_steps(ways[way], step, step + 1) for way in ways}
            for step in range(1, 1 + TRIAL_STEPS)
        ]
        return {way: min(each[way] for each in rounds) for way in ways}

    def _seconds_of_steps(self, groups: list[Group], first: int, until: int) -> float:
        start = time.perf_counter()
        for group in groups:
            self._take_steps(group, first, until)
        return time.perf_counter() - start


def no_memory(settings: Settings, why: str, last: Progress | None) -> Progress:
    """The end of a training without memory, after its last record: all replicates failed."""
    seeds = settings.training.seeds
    return Progress(
        tokens=last.tokens if last else 0,
        budget=settings.training.training_tokens,
        rung=last.rung if last else 1,
        seconds=last.seconds if last else 0.0,
        tokens_per_second=0.0,
        loss=dict.fromkeys(seeds, PENALTY),
        bits_per_byte=dict.fromkeys(seeds, PENALTY),
        failures=dict.fromkeys(seeds, why),
        precision=last.precision if last else None,
    )


def staged(
    batches: Batches | Sequences, settings: Settings, steps: int
) -> Batches | Sequences | Staged:
    """The batches in the order of the settings' curriculum, if there is one."""
    training = settings.training
    if training.curriculum == "none":
        return batches
    return Staged(
        batches, measure=training.curriculum, order=training.curriculum_order, steps=steps
    )


def schedule(step: int, total: int, warmup: float, decay: float) -> float:
    """Warmup-stable-decay: the factor on the learning rate at a step, in (0, 1]."""
    rising = (step + 1) / max(warmup * total, 1)
    falling = (total - step) / max(decay * total, 1)
    return min(1.0, rising, falling)


def product_dtype(settings: Settings, vocabulary: int, device: torch.device) -> torch.dtype:
    """The type of matrix products: follows from settings and hardware alone."""
    if settings.training.precision != "auto":
        return PRECISIONS[settings.training.precision]
    model = settings.model
    wide = model.architecture == "transformer" and model.embedding >= SMALLEST_HALF_WIDTH
    large = wide or vocabulary >= SMALLEST_HALF_VOCABULARY
    return half_dtype(device) if large else torch.float32
