"""What a run says while it trains: a progress bar, a history on disk, and trackers such as TensorBoard."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hq_tokenizers.files import is_full_disk, naming_full_disk, write_text

from .trackers import TENSORBOARD, check_trackers, start_trackers

Record = dict[str, Any]
HISTORY = "metrics.jsonl"
SECONDS_BETWEEN_LINES = 10.0

T = TypeVar("T")


def read_history(output_dir: Path) -> list[Record]:
    """Records of a run, in the order of their steps; each has "step", "split", "epoch" if there are, and its figures.

    A line that is no record, as an interruption or a crash leaves one, is left out.
    """
    return [record for line in _history_lines(output_dir) if (record := _read_line(line)) is not None]


def _history_lines(output_dir: Path) -> list[str]:
    path = output_dir / HISTORY
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def _read_line(line: str) -> Record | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None


def summary(record: Record) -> str:
    """The figures of a record that matter most, on one line: what a person compares first, the objective last."""
    wanted = {
        "mse": "MSE {:.3g}",
        "mse_relaxed": "relaxed {:.3g}",
        "mse_sampled": "sampled {:.3g}",
        "psnr": "PSNR {:.2f} dB",
        "ssim": "SSIM {:.3f}",
        "lpips": "LPIPS {:.3g}",
        "fid": "FID {:.4g}",
        "rfid": "rFID {:.4g}",
        "frechet_distance": "Fréchet distance {:.4g}",
        "pixel_accuracy": "pixel accuracy {:.4f}",
        "perplexity": "perplexity {}",
        "batch_perplexity": "perplexity {}",
        "usage": "usage {} %",
        "residual_energy": "left over {}",
        "kl_bits_per_image": "KL {:.0f} bits",
        "histogram_bits_per_image": "histogram {:.0f} bits",
        "bits_per_code": "{:.3f} bits/code",
        "loss": "loss {:.4g}",
        "images_per_second": "{:.0f} images/s",
    }
    parts = []
    for name, text in wanted.items():
        # The data set's perplexity, where it is known, is the headline; the batch's is its stand-in.
        if name in record and record[name] != [] and not (name == "batch_perplexity" and "perplexity" in record):
            value = record[name]
            if isinstance(value, list):
                scale, digits = (100, ".0f") if name == "usage" else (1, ".2g" if name == "residual_energy" else ".0f")
                value = "/".join(f"{v * scale:{digits}}" for v in value)
            parts.append(text.format(value))
    return ", ".join(parts)


class Tracker:
    """Writes `metrics.jsonl`, the progress bar and other trackers of one run; silent unless `active`.

    Args:
        output_dir: Folder of the run.
        title: What is trained, for the progress bar.
        total_steps: Optimiser steps of the run.
        first_step: Steps made already; later records of an earlier attempt are dropped.
        active: Whether this process reports (the main one).
        trackers: See `check_trackers`.

    Raises:
        ValueError: If the package of a tracker is not installed.
    """

    def __init__(
        self,
        output_dir: Path,
        title: str,
        total_steps: int,
        first_step: int = 0,
        active: bool = True,
        trackers: Sequence[str] | None = None,
    ):
        self.active = active
        self.output_dir = output_dir
        self._total_steps = total_steps
        self._title = title
        self._last_line = 0.0
        self._trackers: list[Any] = []
        names = check_trackers(trackers)
        self._earlier_hook = threading.excepthook
        self._console = Console(quiet=not active)
        self._progress = _new_bar(self._console, active, TextColumn("{task.fields[figures]}"))
        self._task = self._progress.add_task(title, total=total_steps, completed=first_step, figures="")
        if active:
            output_dir.mkdir(parents=True, exist_ok=True)
            self._drop_after(first_step)
            self._trackers = start_trackers(names, output_dir, first_step)

    def __enter__(self) -> Tracker:
        self._earlier_hook, threading.excepthook = threading.excepthook, self._thread_failed
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        try:
            for tracker in self._trackers:
                # What the run ended with must not be hidden by what ending it meets with.
                with suppress(OSError) if error else naming_full_disk(self.output_dir / TENSORBOARD):
                    tracker.finish()
        finally:
            threading.excepthook = self._earlier_hook

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def record(self, record: Record) -> None:
        """Stores and shows one record."""
        if not self.active:
            return
        path = self.output_dir / HISTORY
        with naming_full_disk(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._progress.update(self._task, figures=summary(record))
        self._print_line(record)
        scalars = {f"{record['split']}/{name}": value for name, value in _scalars(record)}
        for tracker in self._trackers:
            with naming_full_disk(self.output_dir / TENSORBOARD):
                tracker.log(scalars, step=record["step"])

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Shows an image (H, W, 3) of uint8 in the trackers that show images."""
        for tracker in self._trackers:
            if tracker.name == TENSORBOARD:
                tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [pixels]}, step=step)

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._progress.console.print(text, highlight=False, soft_wrap=True)

    def _thread_failed(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread: its next call in the main thread raises the same error, without this traceback."""
        if failure.exc_value is None or not is_full_disk(failure.exc_value):
            self._earlier_hook(failure)

    def _print_line(self, record: Record) -> None:
        """Validations are always printed; training figures only without a bar, and not too often."""
        now = time.monotonic()
        due = not self._console.is_terminal and now - self._last_line >= SECONDS_BETWEEN_LINES
        if record["split"] != "train" or due:
            self._last_line = now
            where = f"step {record['step']}/{self._total_steps}"
            where += f", epoch {record['epoch']:.2f}" if "epoch" in record else ""
            self.say(f"{self._title}: {where}: {record['split']} {summary(record)}")

    def _drop_after(self, step: int) -> None:
        records = read_history(self.output_dir)
        damaged = len(_history_lines(self.output_dir)) - len(records)
        if damaged:
            self.say(f"warning: {self.output_dir / HISTORY} has {damaged} damaged line(s), which are left out.")
        kept = [record for record in records if record["step"] <= step]
        write_text(self.output_dir / HISTORY, "".join(json.dumps(record) + "\n" for record in kept))


def _scalars(record: Record) -> Iterable[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, list):
            yield from ((f"{name}/level_{level}", v) for level, v in enumerate(value, start=1))
        elif name not in ("step", "split"):
            yield name, value


def progress_bar(items: Iterable[T], total: int, title: str, active: bool) -> Iterator[T]:
    """The items, with a bar that counts them.

    Args:
        items: What to go through.
        total: How many they are.
        title: What is being done.
        active: Whether this process shows the bar (the main one).
    """
    with counting_bar(title, active) as show:
        for done, item in enumerate(items):
            show(done, total)
            yield item
        show(total, total)


@contextmanager
def counting_bar(title: str, active: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on a terminal; yields a function to call with (done, total), such as `generate(progress=…)` takes.

    A total of None is one that is not known.
    """
    with _new_bar(Console(), active) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _new_bar(console: Console, active: bool, *further: ProgressColumn) -> Progress:
    """The one kind of bar that commands show, on a terminal and in one process only."""
    columns = TextColumn("[bold]{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    return Progress(*columns, *further, console=console, disable=not (active and console.is_terminal))
