"""The steps since the last log record: sums of their figures, and the time they took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from .stage import Metrics


class LogWindow:
    """Adds up on the device, so that no step waits for it.

    Attributes:
        sums: This process's sums by name. With `state_dict` they are what a checkpoint keeps, so that the record after
            a resume is that of a run without interruption.
    """

    def __init__(self) -> None:
        self.sums: Metrics = {}
        self._counts: dict[str, int] = {}
        self._parts = 0
        self._seconds_before = 0.0
        self._started = time.perf_counter()

    def start(self) -> None:
        """The clock runs from here."""
        self._started = time.perf_counter() - self._seconds_before

    def add(self, metrics: Metrics) -> None:
        """Adds the figures of a part of a step."""
        for name, value in metrics.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1
        self._parts += 1

    def close(self, accelerator: Accelerator) -> tuple[dict[str, Any], int, float]:
        """Means over the window and over all processes, parts of steps in it, and seconds; a new window begins.

        A figure that not every part had, since it began or ended in the window, is averaged over those that did.
        """
        means = {name: accelerator.reduce(total, "mean") / self._counts[name] for name, total in self.sums.items()}
        # Waits for the device, hence before the clock is read.
        figures = {name: mean.tolist() for name, mean in means.items()}
        parts, seconds = self._parts, self._seconds()
        self.sums, self._counts, self._parts, self._started = {}, {}, 0, time.perf_counter()
        return figures, parts, seconds

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """What happens within does not count as training time."""
        started = time.perf_counter()
        yield
        self._started += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        """JSON-ready state, besides `sums`."""
        return {"parts": self._parts, "counts": self._counts, "seconds": self._seconds()}

    def load_state_dict(self, state: dict[str, Any], sums: Metrics, device: torch.device) -> None:
        """Restores `state_dict` and `sums`; `start` follows."""
        self.sums = {name: total.to(device) for name, total in sums.items()}
        self._parts, self._seconds_before = state["parts"], state["seconds"]
        self._counts = dict(state.get("counts") or dict.fromkeys(sums, self._parts))

    def _seconds(self) -> float:
        return time.perf_counter() - self._started
