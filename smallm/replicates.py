"""Replicates of one config, trained one after another or stacked as one batched program."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from smallm.errors import SmallmError
from smallm.hardware import autocast
from smallm.losses import loss_of
from smallm.models import architecture
from smallm.models.transformer import Attention
from smallm.optimizers import optimizers_of, take_step
from smallm.scheduled_sampling import with_guesses
from smallm.settings import Settings

State = dict[str, Tensor]
Logits = Callable[[Tensor], Tensor]
SCALE = ("scale", "_growth_tracker")  # what the loss is multiplied by in fp16, and its age
MOMENTS = ("exp_avg", "exp_avg_sq", "step", "momentum_buffer")


class Group:
    """One or more replicates that take each step together.

    The weights of several replicates are stacked along a first dimension; gradients, clipping
    and the optimizer keep them apart.
    """

    def __init__(
        self,
        settings: Settings,
        vocabulary: int,
        seeds: Sequence[int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seeds = list(seeds)
        self.stacked = len(self.seeds) > 1
        self.clip = settings.training.clip
        self.loss = loss_of(settings.training)
        self.device = device
        self.dtype = dtype
        self.scaler = GradScaler(device.type, enabled=dtype == torch.float16)
        build = architecture(settings.model.architecture)
        cores = []
        with torch.random.fork_rng(devices=[]):  # modules draw weights that nobody uses
            for seed in self.seeds:
                core = build(settings.model, vocabulary)
                core.initialize(torch.Generator().manual_seed(seed))
                cores.append(core.to(device))
        self.core: nn.Module = cores[0]
        self.weights: dict[str, Tensor] = dict(self.core.named_parameters())
        if self.stacked:
            self.weights = {
                name: torch.stack(
                    [dict(core.named_parameters())[name].detach() for core in cores]
                ).requires_grad_()
                for name in self.weights
            }
            for module in self.core.modules():
                if isinstance(module, Attention):
                    module.stacked = True
        self.optimizers = optimizers_of(settings, self.weights, stacked=self.stacked)
        self._forward: Logits = self._all_forward if self.stacked else self._one_forward
        if settings.training.compile:
            self._forward = compiled(self._forward)

    def step(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        factor: float,
        noise: int,
        guessed: float = 0.0,
    ) -> Tensor:
        """One step of every replicate, (replicates, batch, ...) in, loss per replicate out.

        It is taken at a factor of the peak learning rates, with a share of the inputs `guessed`.

        Logits of half precision stay so on their way into the loss. `noise` seeds dropout and
        guesses.
        """
        own = [self.device] if self.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=own),
            autocast(self.device, self.dtype),
        ):
            torch.manual_seed(noise)
            if guessed:
                inputs = with_guesses(self.core, inputs[0], guessed)[None]
            logits = self._logits(inputs)
        losses = self.loss(logits.flatten(0, -2), targets.flatten())
        losses = losses.view(len(targets), -1).mean(1, dtype=torch.float32)  # (replicates,)
        for weight in self.weights.values():
            weight.grad = None
        self.scaler.scale(losses.sum()).backward()
        self._clip()
        take_step(self.optimizers, factor, self.scaler)
        return losses.detach()

    def _logits(self, inputs: Tensor) -> Tensor:
        self.core.train()
        return self._forward(inputs)

    def _one_forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.core(inputs[0])
        return logits[None]

    def _all_forward(self, inputs: Tensor) -> Tensor:
        def one(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
            result: Tensor = functional_call(self.core, dict(weights), (inputs,))
            return result

        batched: Tensor = vmap(one, randomness="different")(self.weights, inputs)
        return batched

    def _clip(self) -> None:
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        if not self.stacked:
            torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.clip)
            return
        squares = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients])
        scale = (self.clip / (squares.sum(0).sqrt() + 1e-6)).clamp_max(1)  # (replicates,)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))

    def trained(self, seed: int) -> nn.Module:
        """The model of a replicate, sharing or copying its weights."""
        if not self.stacked:
            return self.core
        place = self.seeds.index(seed)
        core = copy.deepcopy(self.core)
        core.load_state_dict({name: weight[place] for name, weight in self.weights.items()})
        return core

    def state(self) -> State:
        """Weights and optimizer moments, all that a step depends on, by unique names."""
        prefix = "-".join(str(seed) for seed in self.seeds)
        tensors = {f"{prefix}/weight/{name}": weight for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            state = self._optimizer_of(weight).state[weight]
            tensors |= {f"{prefix}/{moment}/{name}": value for moment, value in state.items()}
        scale = self.scaler.state_dict()  # none unless it is enabled
        tensors |= {f"{prefix}/{name}": torch.tensor(scale[name]) for name in SCALE if scale}
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over what `state` gave."""
        prefix = "-".join(str(seed) for seed in self.seeds)
        for name, weight in self.weights.items():
            weight.copy_(state[f"{prefix}/weight/{name}"])
            moments: dict[str, Any] = {
                moment: state[key].clone().to(self.device)
                for moment in MOMENTS
                if (key := f"{prefix}/{moment}/{name}") in state
            }
            self._optimizer_of(weight).state[weight] = moments
        if scale := self.scaler.state_dict():
            kept = {name: state[f"{prefix}/{name}"].item() for name in SCALE}
            self.scaler.load_state_dict({**scale, **kept})

    def _optimizer_of(self, weight: Tensor) -> Optimizer:
        return next(
            optimizer
            for optimizer in self.optimizers
            if any(weight is each for group in optimizer.param_groups for each in group["params"])
        )


def compiled(function: Logits) -> Logits:
    """A function compiled by torch; SmallmError where nothing can compile it."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise SmallmError(
            f"compile needs a C++ compiler, and there is no {compiler}: install g++, name one in "
            "CXX, or leave compile off"
        )
    fast: Logits = torch.compile(function, dynamic=False)
    return fast


def groups_of(
    settings: Settings,
    vocabulary: int,
    *,
    stacked: bool,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[Group]:
    """All replicates of the settings, in one group or in one each."""
    seeds = settings.training.seeds
    parts = [list(seeds)] if stacked else [[seed] for seed in seeds]
    return [Group(settings, vocabulary, part, device, dtype) for part in parts]
