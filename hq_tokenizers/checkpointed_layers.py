"""Layers whose activations can be computed again in the backward pass instead of being kept, to save memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """`model.gradient_checkpointing_enable()`, by its name in every version of transformers."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


class CheckpointedSequential(nn.Sequential):
    """A `Sequential` that `model.gradient_checkpointing_enable()` reaches: only its input is kept for the backward.

    Its batch norms see every batch once: the second computation leaves their running statistics alone.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., torch.Tensor] = staticmethod(checkpoint)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…) → (…), as the layers in a row."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return super().forward(input)
        return self._gradient_checkpointing_func(super().forward, input, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), self._with_frozen_statistics()

    @contextmanager
    def _with_frozen_statistics(self) -> Iterator[None]:
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        usual = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, (momentum, num_batches_tracked) in zip(norms, usual, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, num_batches_tracked
