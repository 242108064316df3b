"""What the library says about a wrong value, said on the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr


@contextmanager
def shown_on_page() -> Iterator[None]:
    """The errors by which the library refuses a value become messages with the same text; others stay failures.

    Raises:
        gr.Error: With the library's text.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
