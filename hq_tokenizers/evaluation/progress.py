"""A progress bar, on a terminal and in one process only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress_bar(items: Iterable[T], total: int, title: str, active: bool) -> Iterator[T]:
    """The items, with a bar that counts them.

    Args:
        items: What to go through.
        total: How many they are.
        title: What is being done.
        active: Whether this process shows the bar (the main one).
    """
    from rich.console import Console
    from rich.progress import track

    console = Console()
    yield from track(items, title, total, console=console, disable=not (active and console.is_terminal))
