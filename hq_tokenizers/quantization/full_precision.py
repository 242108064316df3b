"""Modules that stay in float32 when the model around them is converted to 16 bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Conversion = Callable[[torch.Tensor], torch.Tensor]


def without_rounding(convert: Conversion, *parts: nn.Module) -> Conversion:
    """What `nn.Module._apply` is to do to a model's tensors, but for rounding those of some parts to 16 bits.

    Args:
        convert: What it was asked to do: move, convert, or both.
        *parts: Modules whose parameters, gradients and buffers are moved, and converted to other types only.
    """
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    exact = {id(item) for tensor in tensors for item in (tensor, tensor.grad) if item is not None}

    def convert_or_move(tensor: torch.Tensor) -> torch.Tensor:
        converted = convert(tensor)
        rounded = converted.dtype in (torch.bfloat16, torch.float16)
        return tensor.to(converted.device) if id(tensor) in exact and rounded else converted

    return convert_or_move
