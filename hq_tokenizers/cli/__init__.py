"""The command `hq-tokenizers`; imports no torch until a command does its work, so that help comes at once."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from hq_tokenizers._version import __version__
from hq_tokenizers.options.reading import load_options

from .commands import COMMANDS
from .help import command_help, overview


def main(arguments: list[str] | None = None) -> None:
    """Runs a command.

    Args:
        arguments: The words after `hq-tokenizers`; default: those of this process.

    Raises:
        SystemExit: With a message, when an option, the data or a model is not acceptable.
    """
    try:
        _run(sys.argv[1:] if arguments is None else list(arguments))
        _leave_process_group()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has read enough. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (ValueError, OSError, FloatingPointError) as error:
        # These say what is wrong and what to do; a traceback would bury it.
        raise SystemExit(f"error: {error}") from error


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if words[0] == "--version":
        print(__version__)
        return
    name, *rest = words
    if name not in COMMANDS:
        raise SystemExit(f"error: there is no command {name!r}; the commands are {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    if "-h" in rest or "--help" in rest:
        print(command_help(name, command))
        return
    source = rest.pop(0) if rest and not rest[0].startswith("--") else None
    options: Any = load_options(command.options, source, rest)
    module, _, function = command.runner.partition(":")
    getattr(import_module(module), function)(options)


def _leave_process_group() -> None:
    """Ends the threads of the process group of torchrun, whose work at interpreter shutdown can abort the process."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
