"""Weights laid out once for many small matrix products on a CPU.

A matrix product rearranges its weight into the blocks of the processor before it multiplies. Sampling multiplies a few
rows with the same weights at each of hundreds of steps, and would spend much of its time on that. oneDNN takes a
weight that is rearranged already; PyTorch has no public name for that product, so where it is missing, or of no use,
the plain one serves.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import TypeVar, cast

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def with_packed_weights(module: ModuleT, num_rows: int) -> ModuleT:
    """A module to run on many inputs of `num_rows` rows without gradients, with weights that do not change meanwhile.

    Args:
        module: Left as it is; the result shares its parameters, buffers and hooks.
        num_rows: Rows of the matrices that its linear layers are given.

    Returns:
        A copy whose float32 `nn.Linear` layers on the CPU have packed weights; their results differ from the plain ones
        by rounding only. With a single row they also use all threads, which the plain ones do not. The module itself
        where packing gains nothing: on an accelerator, under autocast, or when PyTorch was built without oneDNN.
    """
    on_cpu = all(parameter.is_cpu for parameter in module.parameters())
    if not on_cpu or torch.is_autocast_enabled("cpu") or not _has_packed_product():
        return module
    return cast(ModuleT, _packed(module, num_rows))


def _has_packed_product() -> bool:
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )


def _packed(module: nn.Module, num_rows: int) -> nn.Module:
    twin = copy.copy(module)
    # Layers of another class, or with a forward of their own, do more than a product (adapters, quantisation, offload).
    if type(module) is nn.Linear and "forward" not in vars(module):
        weight, bias = module.weight.detach(), module.bias
        if weight.dtype == torch.float32:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
            vars(twin)["forward"] = partial(_product, packed, None if bias is None else bias.detach())
        return twin
    children = module._modules.items()
    vars(twin)["_modules"] = {name: None if child is None else _packed(child, num_rows) for name, child in children}
    return twin


def _product(weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
