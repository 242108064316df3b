"""Networks on batches with padding: every item gets the features that it has alone.

Alone, an item is surrounded by the zeros of its convolutions. In a batch the same zeros are put where its padding is,
before every convolution that looks at neighbours, and batch norms take their statistics from what is real.

Shape legend: B batch, c channels, h × w grid; masks (B, w) of whole positions, see `Padding.positions`.
"""

from __future__ import annotations

import torch
from torch import nn

from hq_tokenizers.padding import Padding

_ELEMENTWISE = (nn.ReLU, nn.Identity)


def run(module: nn.Module, hidden_states: torch.Tensor, padding: Padding | None = None) -> torch.Tensor:
    """`module(hidden_states)` as it would be without the padding.

    Args:
        module: A layer, a `Sequential` of layers, or a module with `takes_padding`, which has it as second argument.
        hidden_states: (B, c, h, w).
        padding: Of the batch, or None.

    Raises:
        TypeError: For a layer of which it is not known whether it looks at neighbours.
    """
    if padding is None:
        return module(hidden_states)
    if getattr(module, "takes_padding", False):
        return module(hidden_states, padding)
    if isinstance(module, nn.Sequential):
        return run_layers(module, hidden_states, padding)
    if isinstance(module, _ELEMENTWISE) or (isinstance(module, nn.BatchNorm2d) and not module.training):
        return module(hidden_states)
    real = padding.positions(hidden_states.shape[-1])[:, None, None]
    if isinstance(module, nn.BatchNorm2d):
        return masked_batch_norm(module, hidden_states, real)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        return module(hidden_states * real.to(hidden_states.dtype))
    raise TypeError(f"{type(module).__name__} is not known to work on batches with padding: leave attention_mask out.")


def run_layers(layers: nn.Sequential, hidden_states: torch.Tensor, padding: Padding | None = None) -> torch.Tensor:
    """The layers in a row, as `run`."""
    for layer in layers:
        hidden_states = run(layer, hidden_states, padding)
    return hidden_states


def masked_batch_norm(norm: nn.BatchNorm2d, hidden_states: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Batch norm in training, whose mean and variance are those of the real positions.

    Args:
        norm: The layer; its running statistics move as PyTorch moves them.
        hidden_states: (B, c, h, w).
        real: Booleans (B, 1, 1, w).
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    values, weights = hidden_states.float(), real.float()
    number = weights.sum() * values.shape[2]
    mean = (values * weights).sum(dim=(0, 2, 3), keepdim=True) / number
    centred = values - mean
    variance = (centred.square() * weights).sum(dim=(0, 2, 3), keepdim=True) / number
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.flatten().to(norm.running_mean.dtype), norm.momentum)
        unbiased = variance.flatten() * number / (number - 1).clamp_min(1)
        norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)
    normalized = centred * (variance + norm.eps).rsqrt()
    if norm.affine:
        scale, shift = (parameter.float().view(1, -1, 1, 1) for parameter in (norm.weight, norm.bias))
        normalized = normalized * scale + shift
    return normalized.to(hidden_states.dtype)
