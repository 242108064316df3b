"""Optimisers, learning-rate schedules and the moving average of the weights, from a `LoopConfig`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import get_scheduler

from hq_tokenizers.options.training import LoopConfig
from hq_tokenizers.quantization.reestimation import Reservoir


def build_optimizer(config: LoopConfig, parameter_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam or AdamW over parameter groups."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    betas = (config.adam_betas[0], config.adam_betas[1])
    # The fused kernel halves the optimiser's share of a small model's step.
    return kind(parameter_groups, config.learning_rate, betas, weight_decay=config.weight_decay, fused=True)


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups: matrices with weight decay, vectors and embeddings (norms, biases) without."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in parameters if p.ndim < 2 or id(p) in embeddings]
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


class Schedule:
    """The learning rate: told of every optimiser step and of every validation loss.

    Args:
        config: Kind, warm-up, factor and patience.
        optimizer: Whose learning rates are set.
        total_steps: Optimiser steps of the run, where cosine reaches 0.
    """

    def __init__(self, config: LoopConfig, optimizer: torch.optim.Optimizer, total_steps: int):
        self.scheduler: LRScheduler
        self.on_plateau = config.schedule == "plateau"
        if self.on_plateau:
            # Absolute threshold: the relative one has the wrong sign for a negative loss, and an ELBO may be negative.
            self.scheduler = ReduceLROnPlateau(
                optimizer, factor=config.plateau_factor, patience=config.plateau_patience, threshold_mode="abs"
            )
        else:
            kind = {"constant": "constant_with_warmup", "cosine": "cosine"}[config.schedule]
            self.scheduler = get_scheduler(kind, optimizer, config.warmup_steps, total_steps)

    def after_step(self) -> None:
        """To be called after every optimiser step."""
        if not self.on_plateau:
            self.scheduler.step()

    def after_validation(self, loss: float) -> None:
        """To be called with every validation loss."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state."""
        state = self.scheduler.state_dict()
        return {name: value for name, value in state.items() if isinstance(value, int | float | list | str)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **state})


_INSTRUCTIONS = {
    "bf16": ("avx512_f", "avx_ne_convert"),
    "fp16": ("avx512_fp16", "amx_fp16", "avx_ne_convert"),
}
"""What oneDNN needs one of on an x86 processor to multiply matrices in a type."""


def precision_warning(mixed_precision: str, device: torch.device) -> str | None:
    """What to say where a processor has no instructions for a type of 16 bits; None where there is nothing to say.

    Without them (AVX2) products of matrices in bfloat16 took 29 times as long as in float32.
    """
    if device.type != "cpu" or mixed_precision not in _INSTRUCTIONS:
        return None
    # Not in the oldest torch that will do.
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if found.get("architecture") != "x86_64" or any(found.get(name) for name in _INSTRUCTIONS[mixed_precision]):
        return None
    return (
        f"this processor has no instructions for mixed_precision {mixed_precision}, and takes many times as long as "
        "in float32: --mixed_precision no (of a run that has begun, in another output_dir)."
    )


class Precision:
    """The type that the networks compute in, and the scale of the loss that keeps the gradients of fp16 from vanishing.

    Not accelerate's own setting, which is the same for everything in a process; the demonstration and the benchmarks
    train one model after the other.

    Args:
        mixed_precision: "no", "bf16" or "fp16".
        device: Where the networks are.
    """

    def __init__(self, mixed_precision: str, device: torch.device):
        self._dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
        self._device = device.type
        self._scaler = torch.amp.GradScaler(device.type, enabled=mixed_precision == "fp16")

    def autocast(self) -> torch.autocast:
        """The context for a forward pass."""
        return torch.autocast(self._device, self._dtype, enabled=self._dtype is not None)

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call `backward` of."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the gradients those of the loss itself, before they are clipped."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser step, left out where gradients overflowed; the scale follows."""
        if not any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            # A scaler refuses what has no gradients: codes that follow averages between networks that are frozen.
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state: the scale, and the steps it has held for; empty without one."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        if state:
            self._scaler.load_state_dict(state)


class MovingAverage:
    """Exponential moving average of a model's weights, as a second model to evaluate and save.

    After t updates the decay is min(decay, (1 + t) / (10 + t)), so that the first weights are soon forgotten. Buffers
    of floats are averaged alike: batch statistics of the newest weights do not fit averaged ones. A reservoir of
    vectors is not: its rows have no past.

    Args:
        model: The model to follow.
        decay: Limit of the decay.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self._averages = _averaged(self.model)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards the weights after optimiser step number `step` (1, 2, …)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, _averaged(model), 1 - decay)

    @torch.no_grad()
    def take_over(self, model: nn.Module, tensors: Sequence[torch.Tensor]) -> None:
        """Takes these parameters and buffers of the model as they are, instead of the average so far."""
        for mine, theirs in zip(self._averages, _averaged(model), strict=True):
            if any(theirs is tensor for tensor in tensors):
                mine.copy_(theirs)

    @torch.no_grad()
    def copy_rest(self, model: nn.Module) -> None:
        """Takes over the buffers that are not averaged: counters of steps and epochs, reservoirs."""
        averaged = {id(tensor) for tensor in self._averages}
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            if id(mine) not in averaged:
                mine.copy_(theirs)


def _averaged(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers of floats, but for reservoirs."""
    reservoirs = {id(module.vectors) for module in model.modules() if isinstance(module, Reservoir)}
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and id(buffer) not in reservoirs]
    return [*model.parameters(), *buffers]
