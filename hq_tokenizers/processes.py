"""What several processes need: the accelerator, sums over all of them, and the word of the main one.

With one process everything here does nothing, so that callers need not ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import distributed, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def create_accelerator() -> Accelerator:
    """The `Accelerator` of this process.

    Without an accelerator device, `torchrun` would silently give independent processes unless the CPU is asked for.
    """
    # Imported here: models use the rest of this file where accelerate may be absent.
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.accelerator.is_available())


def is_distributed() -> bool:
    """Whether this process belongs to a group, which `torchrun` starts and accelerate joins."""
    return distributed.is_available() and distributed.is_initialized()


def is_main_process() -> bool:
    """Whether this is process 0, or the only one; before they are a group, `torchrun` says so."""
    return distributed.get_rank() == 0 if is_distributed() else os.environ.get("RANK", "0") == "0"


def all_reduce(tensor: torch.Tensor) -> None:
    """Adds up a tensor over all processes, in place."""
    if is_distributed():
        distributed.all_reduce(tensor)


def broadcast(tensor: torch.Tensor) -> None:
    """Gives all processes the tensor of the main one, in place."""
    if is_distributed():
        distributed.broadcast(tensor, src=0)


def average_gradients(module: nn.Module) -> None:
    """Gives all processes the mean of their gradients, of a module that no wrapper does this for."""
    if not is_distributed():
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def check_processes(accelerator: Accelerator) -> None:
    """Refuses ways to share a model that training does not know.

    Raises:
        ValueError: If accelerate is configured for anything but data parallelism.
    """
    kind = str(accelerator.distributed_type).rpartition(".")[-1]
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
        raise ValueError(
            f"accelerate is configured for {kind}, but training keeps a whole model on every device (data "
            "parallelism). Start it with torchrun, and see docs/training.md for what fits."
        )


def main_process_says(condition: bool, device: torch.device) -> bool:
    """The condition as the main process sees it: a step that only some processes take would wait for ever."""
    flag = torch.tensor(condition, device=device)
    broadcast(flag)
    return bool(flag)


def main_process_finds(found: T) -> T:
    """What the main process has found on the disk or in the system: others may see files later, or not at all."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([found])[0]


def main_process_does(work: Callable[[], T]) -> T:
    """What the main process gets from some work on the disk, in every process; and so with what it raises.

    Raises:
        Exception: What the work raised. Processes that went on without the main one would wait for it for ever.
    """
    result: T | None = None
    problem: Exception | None = None
    if is_main_process():
        try:
            result = work()
        except Exception as error:
            problem = error
    result, problem = main_process_finds((result, problem))
    if problem is not None:
        raise problem
    return cast(T, result)


def leave_process_group() -> None:
    """Ends the threads of the process group, whose work at interpreter shutdown can abort the process."""
    if is_distributed():
        distributed.destroy_process_group()
