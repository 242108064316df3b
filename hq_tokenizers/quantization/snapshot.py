"""Reads of state that the same forward pass changes afterwards: moving averages, variances, counts of steps."""

from __future__ import annotations

import torch


@torch.library.custom_op("hq_tokenizers::snapshot", mutates_args=())
def _opaque_copy(state: torch.Tensor) -> torch.Tensor:
    return state.clone()


@_opaque_copy.register_fake
def _(state: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(state)


def snapshot(state: torch.Tensor) -> torch.Tensor:
    """What a buffer holds now, also for the backward pass.

    `torch.compile` may compute again in the backward pass what it can compute from buffers, and does not notice that
    the forward pass has changed them since: the gradients are wrong, without an error
    (https://github.com/pytorch/pytorch/pull/197039). What an operator that it does not know returns, it keeps, as long
    as it is not told to compute all that it can again. Not for functions that a checkpoint runs again: read before.

    Args:
        state: A buffer without gradient.

    Returns:
        Where gradients are compiled a copy; elsewhere the buffer itself, of whose changes autograd knows.
    """
    compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    return _opaque_copy(state) if compiled and torch.is_grad_enabled() else state
