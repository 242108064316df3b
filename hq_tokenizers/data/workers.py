"""Worker processes that decode rows: started for a pass over a split, and gone after it, however it ends."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def decoded_batches(
    rows: Dataset, index_batches: Iterable[torch.Tensor | list[Any]], num_workers: int, **options: Any
) -> Generator[Any, None, None]:
    """Batches of rows, decoded by worker processes.

    Args:
        rows: What decodes a row.
        index_batches: Row indices of every batch, or lists of whatever `rows` takes for an index.
        num_workers: Processes; 0 decodes in this one.
        **options: Further arguments of torch's `DataLoader`.

    Raises:
        ValueError: What a worker found wrong with a row.
    """
    loader = DataLoader(
        rows,
        batch_sampler=(indices if isinstance(indices, list) else indices.tolist() for indices in index_batches),
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_the_main_process,
        # Without one of its own it would draw from the global noise, and training with it would be another run.
        generator=torch.Generator(),
        **options,
    )
    batches = iter(loader)
    try:
        with _said_by_worker():
            yield from batches
    finally:
        _end_workers(batches)


def _end_workers(batches: Any) -> None:
    """Ends the workers now: torch waits for its iterator to be collected, which a kept error's traceback prevents, and
    what does not end by itself it sends a SIGTERM, which they do not heed.
    """
    workers = getattr(batches, "_workers", ())
    if not workers:
        return
    batches._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
        worker.join()


@contextmanager
def _said_by_worker() -> Iterator[None]:
    """What a worker process found wrong, without the traceback that torch puts before it."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Caught "):
            raise
        raise type(error)(str(error).rstrip().rpartition("\n")[2].partition(": ")[2]) from error


def _leave_signals_to_the_main_process(worker_index: int) -> None:
    """Ctrl-C and many a SIGTERM reach the workers as well, which the main process needs for its last step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
