"""What fits into the memory of this machine: refused before it is allocated, since afterwards nobody can say why."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from torch import nn

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GENERATOR_BYTES = 5056
"""The state of a `torch.Generator`."""


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that the process runs in."""
    total = psutil.virtual_memory().total
    limit = _CONTAINER_LIMIT.read_text().strip() if _CONTAINER_LIMIT.is_file() else ""
    return min(total, int(limit)) if limit.isdigit() else total


def accelerator_memory() -> int:
    """Bytes of memory of all graphics processors, over which a large model may be spread."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return sum(torch.cuda.get_device_properties(device).total_memory for device in devices)


def check_memory(what: str, num_bytes: int, remedy: str) -> None:
    """Checks that something fits into memory.

    Args:
        what: What takes the memory, in the plural.
        num_bytes: How much it takes at least.
        remedy: What to do about it.

    Raises:
        ValueError: If it does not, naming both sizes.
    """
    available = machine_memory()
    if num_bytes > available:
        # Asked for only now: it wakes the accelerators up.
        available += accelerator_memory()
    if num_bytes > available:
        raise ValueError(
            f"{what} take {num_bytes / 2**30:,.1f} GiB, this machine has {available / 2**30:,.1f} GiB: {remedy}."
        )


def check_samples_memory(num_samples: int, num_codes: int) -> None:
    """Checks that so many samples of so many codes fit into memory, with their generators of random numbers.

    Raises:
        ValueError: If they do not.
    """
    each = 8 * num_codes + _GENERATOR_BYTES
    check_memory(f"{num_samples:,} samples", num_samples * each, "draw fewer at a time, with other seeds")


def check_model_memory(model: nn.Module, name: str) -> None:
    """Checks that the parameters and buffers of a model, which may be on the meta device, fit into memory.

    Args:
        model: The model.
        name: What to call it.

    Raises:
        ValueError: If they do not.
    """
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    check_memory(
        f"The {sum(tensor.numel() for tensor in tensors):,} numbers of {name}",
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "lower the sizes in its configuration, such as hidden_size, the number of layers or blocks, codebook sizes and "
        "num_classes",
    )
