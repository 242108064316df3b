"""Options of scripts, read and explained as those of the commands are."""

from __future__ import annotations

import sys
from typing import TypeVar

from hq_tokenizers.options.reading import load_options

from .help import option_lines
from .messages import errors_as_messages

T = TypeVar("T")


def script_options(options: type[T], documentation: str) -> T:
    """Options from the words after the script's name: [CONFIG.yaml] [--option value …].

    Args:
        options: Dataclass of the options, with their meanings as annotations.
        documentation: What `--help` prints before them.

    Raises:
        SystemExit: After help, or with a message when an option is not acceptable.
    """
    words = sys.argv[1:]
    if "-h" in words or "--help" in words:
        print("\n".join([documentation.strip(), "", "options:", *option_lines(options)]))
        raise SystemExit(0)
    source = words.pop(0) if words and not words[0].startswith("--") else None
    with errors_as_messages():
        return load_options(options, source, words)
