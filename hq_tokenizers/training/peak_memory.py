"""How much memory a training step takes besides weights, gradients and the optimiser's state."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors that operations allocate while it is entered, and remembers the most at a time.

    Gradients of the model's parameters are left out. What kernels allocate for themselves is not seen.

    Args:
        model: Whose parameters receive gradients.
        known: Tensors that are there already.
    """

    def __init__(self, model: nn.Module, known: Iterable[torch.Tensor]):
        super().__init__()
        self.peak = 0
        self._now = 0
        self._sizes = WeakIdKeyDictionary()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for tensor in (*model.parameters(), *model.buffers(), *known):
            self._sizes[tensor.untyped_storage()] = 0

    def __enter__(self) -> PeakMemory:
        self._hooks = [p.register_post_accumulate_grad_hook(self._leave_out_gradient) for p in self._parameters]
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and looks at what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        # Views and results in place share a storage that was seen.
        if storage in self._sizes:
            return
        self._sizes[storage] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self._now -= size

    def _leave_out_gradient(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        self._see(storage)
        # Counted down now, and up again when it is freed, since `_freed` counts it down then.
        self._now -= self._sizes[storage]
        weakref.finalize(storage, self._freed, -self._sizes[storage])
        self._sizes[storage] = 0
