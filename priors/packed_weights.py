"""Weights laid out once for many small matrix products on a CPU.

A matrix product rearranges its weight into the blocks of the processor before it multiplies. Sampling multiplies a few
rows with the same weights at each of hundreds of steps, and would spend much of its time on that. oneDNN takes a
weight that is rearranged already; PyTorch has no public name for that product, so where it is missing, or of no use,
the plain one serves.
"""

from __future__ import annotations

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
        A copy whose float32 `nn.Linear` layers on the CPU have packed weights, which take as much memory again; their
        results differ from the plain ones by rounding only. With a single row they also use all threads, which the
        plain ones do not. The module itself where packing gains nothing: on an accelerator, under autocast, or without
        oneDNN.
    """
    on_cpu = all(parameter.is_cpu for parameter in module.parameters())
    if not on_cpu or torch.is_autocast_enabled("cpu") or not _has_packed_product():
        return module
    return cast(ModuleT, _packed(module, num_rows))


def _has_packed_product() -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))


def _packed(module: nn.Module, num_rows: int) -> nn.Module:
    """A twin of the module, or the module itself where nothing in it can be packed."""
    if module._compiled_call_impl is not None:
        return module
    if _is_plain_linear(module):
        weight, bias = cast(torch.Tensor, module.weight).detach(), cast(torch.Tensor | None, module.bias)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)
        return _twin(module, forward=partial(_product, packed, None if bias is None else bias.detach()))
    children = {name: None if child is None else _packed(child, num_rows) for name, child in module._modules.items()}
    unchanged = all(twin is module._modules[name] for name, twin in children.items())
    return module if unchanged else _twin(module, _modules=children)


def _is_plain_linear(module: nn.Module) -> bool:
    """Whether it multiplies with its own weight as it is now, and does nothing else.

    Another class or forward may be an adapter, a quantised or an offloaded layer; a weight that is no parameter, or a
    hook before the forward, may make the weight anew in every pass.
    """
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and "weight" in module._parameters
        and not module._forward_pre_hooks
        and module.weight.dtype == torch.float32
    )


def _twin(module: nn.Module, **replaced: object) -> nn.Module:
    """Another module with the same attributes, but for those that are replaced."""
    twin = module.__class__.__new__(module.__class__)
    vars(twin).update(vars(module) | replaced)
    return twin


def _product(weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
