"""Layers prepared once for many calls with a few rows on a CPU.

Sampling multiplies a few rows with the same weights at each of hundreds of steps. What such a step costs is not
arithmetic but reading weights, calling operators and calling modules, so each of them is cut down here:

* **One row** times a matrix is a stream of the weights through the processor. A product per thread, over its share of
  the matrix's rows, reads them as fast as the memory gives them; the plain matrix–vector product uses one thread.
* **Several rows**: a product rearranges its weight into the blocks of the processor before it multiplies. oneDNN takes
  a weight that is rearranged already; PyTorch has no public name for that product, so where it is missing, or of no
  use, the plain one serves.
* **RMSNorm** is put together from seven operators; ‖x‖ and hypot do the same in four.
* **Dropout** does nothing outside training.
* Such layers are called as functions, not through `nn.Module.__call__`, unless a hook waits there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from .transformer import CausalTransformer, CrossAttention, GELUBlock, SelfAttention, SwiGLU, TransformerLayer

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Function = Callable[[torch.Tensor], torch.Tensor]

_CALLERS = {CausalTransformer, TransformerLayer, SelfAttention, CrossAttention, SwiGLU, GELUBlock}
"""Modules that do nothing with their layers but call them; others may read a layer's weight."""


def with_fast_layers(module: ModuleT, num_rows: int) -> ModuleT:
    """A module to run on many inputs of `num_rows` rows without gradients, with weights that do not change meanwhile.

    Args:
        module: Left as it is; the result shares its parameters, buffers and hooks.
        num_rows: Rows of the matrices that its linear layers are given.

    Returns:
        A copy in which float32 `nn.Linear` and `nn.RMSNorm` layers on the CPU, and `nn.Dropout` outside training, are
        faster. Results differ from the plain ones by rounding only. With several rows the weights are held a second
        time. The module itself where nothing is gained: on an accelerator, or under autocast.
    """
    on_cpu = all(parameter.is_cpu for parameter in module.parameters())
    # A global hook wants to see every call.
    if not on_cpu or torch.is_autocast_enabled("cpu") or _has_any_global_hook():
        return module
    return cast(ModuleT, _with_fast_children(module, num_rows))


def _with_fast_children(module: nn.Module, num_rows: int) -> nn.Module:
    """A twin of the module, or the module itself where nothing in it can be faster."""
    if module._compiled_call_impl is not None:
        return module
    function = _fast_function(module, num_rows)
    if function is not None:
        return _twin(module, forward=function)
    children = {
        name: None if child is None else _with_fast_children(child, num_rows) for name, child in module._modules.items()
    }
    if all(twin is module._modules[name] for name, twin in children.items()):
        return module
    if type(module) not in _CALLERS:
        return _twin(module, _modules=children)
    # Found before `nn.Module.__getattr__` is asked, and called without `nn.Module.__call__`.
    direct = {
        name: vars(twin)["forward"]
        for name, twin in children.items()
        if twin is not None and twin is not module._modules[name] and _is_function(twin)
    }
    return _twin(module, _modules=children, **direct)


def _is_function(twin: nn.Module) -> bool:
    """Whether calling a twin is calling the function that it was given here."""
    return "forward" in vars(twin) and not twin._forward_hooks


def _fast_function(module: nn.Module, num_rows: int) -> Function | None:
    """What the module computes, faster; None where it may compute something else, or where there is nothing to gain.

    Another class or forward may be an adapter, a quantised or an offloaded layer; a weight that is no parameter, or a
    hook before the forward, may make the weight anew in every pass.
    """
    if "forward" in vars(module) or module._forward_pre_hooks:
        return None
    if type(module) is nn.Dropout and not module.training:
        return _same
    if type(module) not in (nn.Linear, nn.RMSNorm):
        return None
    weight = module._parameters.get("weight")
    # The parameter of a tensor subclass, such as a quantised one, has the subclass as its type.
    if type(weight) is not nn.Parameter or weight.dtype != torch.float32:
        return None
    if isinstance(module, nn.RMSNorm):
        return _rms_norm(module) if len(module.normalized_shape) == 1 else None
    return _linear(cast(nn.Linear, module), num_rows)


def _same(inputs: torch.Tensor) -> torch.Tensor:
    return inputs


def _rms_norm(module: nn.RMSNorm) -> Function:
    """The norm x ⊙ w / √(Σx²/H + ε) as x ⊙ √H·w / hypot(‖x‖, √(H·ε))."""
    (size,) = module.normalized_shape
    eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
    return partial(_scaled_to_norm, module.weight.detach() * math.sqrt(size), torch.tensor(math.sqrt(size * eps)))


def _scaled_to_norm(weight: torch.Tensor, smallest: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
    return (inputs / norm.hypot_(smallest)).mul_(weight)


def _linear(module: nn.Linear, num_rows: int) -> Function | None:
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    if num_rows == 1:
        parts = (number for number in range(torch.get_num_threads(), 0, -1) if len(weight) % number == 0)
        return partial(_product_in_parts, weight.unflatten(0, (next(parts), -1)), bias)
    if _has_packed_product():
        return partial(_packed_product, torch.ops.mkldnn._reorder_linear_weight.default(weight, num_rows), bias)
    return None


def _product_in_parts(weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
    """The product with a weight (parts, O / parts, I): each part is a thread's."""
    # Of a single column the idle axis needs this stride, too: with another one MKL takes several times as long.
    columns = inputs.reshape(1, -1, weight.shape[-1]).transpose(1, 2)
    outputs = torch.bmm(weight, columns.expand(len(weight), -1, -1))
    outputs = outputs.flatten(0, 1).t().view(*inputs.shape[:-1], -1)
    return outputs if bias is None else outputs.add_(bias)


def _has_packed_product() -> bool:
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))


def _packed_product(weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")


def _twin(module: nn.Module, **replaced: object) -> nn.Module:
    """Another module with the same attributes, but for those that are replaced."""
    twin = module.__class__.__new__(module.__class__)
    vars(twin).update(vars(module) | replaced)
    return twin
