"""Errors of commands and scripts as their users read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def errors_as_messages(subject: str = "") -> Iterator[None]:
    """Ends the process with the message of an error that says what is wrong and what to do.

    A traceback would bury it; other errors keep theirs, and so does a pipe whose reader is gone,
    which no message reaches.

    Args:
        subject: What the message begins with, such as "system 'SQ-VAE': ".

    Raises:
        SystemExit: For a `ValueError`, an `OSError` or a `FloatingPointError`.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {subject}{error}") from error
