"""SIGTERM and Ctrl-C: noted while a run trains, so that it ends after a step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes the first SIGTERM or Ctrl-C within a `with` block; a Ctrl-C after that stops at once.

    A SIGTERM after the first signal changes nothing: `timeout`, for one, sends two. In a thread nothing is noted, since
    signals are the main thread's.

    Args:
        active: Whether this process reports (the main one).
    """

    def __init__(self, active: bool) -> None:
        self._active = active
        self._received = 0
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                # What is ignored stays ignored, as for a job that a shell has put in the background.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that one of the processes has got, 0 for none; to be asked by all of them."""
        if accelerator.num_processes == 1:
            return self._received
        return int(accelerator.gather(torch.tensor([self._received], device=accelerator.device)).max())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received = number
            if self._active:
                _tell(b"\nStopping, with a checkpoint; another Ctrl-C stops at once.\n")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt


def _tell(text: bytes) -> None:
    """To the screen, not by print, which the signal may have interrupted; it may be gone, as after a hangup."""
    with suppress(OSError):
        os.write(2, text)
