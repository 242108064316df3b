"""Layers whose activations can be computed again in the backward pass instead of being kept, to save memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hq_tokenizers.padding import Padding

from .masked_layers import run_layers


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """`model.gradient_checkpointing_enable()`, by its name in every version of transformers."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


class CheckpointedSequential(nn.Sequential):
    """A `Sequential` that `model.gradient_checkpointing_enable()` reaches: only its input is kept for the backward.

    Its batch norms see every batch once: the second computation leaves their running statistics alone. Under
    `torch.compile` everything is kept; the compiler has its own ways to save memory.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., torch.Tensor] = staticmethod(partial(checkpoint, use_reentrant=False))

    takes_padding = True

    def forward(self, input: torch.Tensor, padding: Padding | None = None) -> torch.Tensor:
        """(…) → (…), as the layers in a row; with padding see `masked_layers.run`.

        Raises:
            ValueError: If checkpointing was enabled with use_reentrant=True.
        """
        wanted = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if not wanted or torch.compiler.is_compiling():
            return run_layers(self, input, padding)
        if getattr(self._gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError(
                "The image tokenizers' gradient checkpointing needs use_reentrant=False, which is the default of "
                "gradient_checkpointing_kwargs: with True, batch norms would see every batch twice."
            )
        return self._gradient_checkpointing_func(run_layers, self, input, padding, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _FrozenStatistics([m for m in self.modules() if isinstance(m, _BatchNorm)])


class _FrozenStatistics(AbstractContextManager[None]):
    """Keeps batch norms from changing their running statistics and counters; entered once for every backward."""

    def __init__(self, norms: list[_BatchNorm]) -> None:
        self._norms = norms

    def __enter__(self) -> None:
        self._usual = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm in self._norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, num_batches_tracked) in zip(self._norms, self._usual, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
