"""The state of torch's global noise, the only noise that training draws from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def noise_state() -> dict[str, torch.Tensor]:
    """The state of the CPU's generator and of the accelerator's, where there is one."""
    state = {"cpu": torch.get_rng_state()}
    if torch.accelerator.is_available():
        state["accelerator"] = torch.get_device_module().get_rng_state()
    return state


def load_noise_state(state: dict[str, torch.Tensor]) -> None:
    """Restores what `noise_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "accelerator" in state and torch.accelerator.is_available():
        torch.get_device_module().set_rng_state(state["accelerator"])


@contextmanager
def keep_noise() -> Iterator[None]:
    """Restores, afterwards, the state there was before."""
    state = noise_state()
    try:
        yield
    finally:
        load_noise_state(state)
