"""The command `hq-tokenizers`; imports no torch until a command does its work, so that help comes at once."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from hq_tokenizers._version import __version__
from hq_tokenizers.checks import did_you_mean
from hq_tokenizers.files import naming_full_disk
from hq_tokenizers.options.reading import load_options, read_values

from .commands import COMMANDS
from .help import command_help, overview, topic_help
from .messages import errors_as_messages

INTERRUPTED = 130
"""Exit code after a Ctrl-C, as shells have it: 128 and the number of the signal."""


def main(arguments: list[str] | None = None) -> None:
    """Runs a command.

    Args:
        arguments: The words after `hq-tokenizers`; default: those of this process.

    Raises:
        SystemExit: With a message, when an option, the data or a model is not acceptable; with 130 after a Ctrl-C and
            143 after a SIGTERM in training.
    """
    try:
        with errors_as_messages():
            _run(sys.argv[1:] if arguments is None else list(arguments))
        _leave_process_group()
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has read enough. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:  # Training has said more.
            print("Interrupted: run the same command again.", file=sys.stderr)
        _leave_process_group()
        raise SystemExit(INTERRUPTED) from None
    except SystemExit:
        _leave_process_group()
        raise


def _leave_process_group() -> None:
    if "torch" in sys.modules:
        from hq_tokenizers.processes import leave_process_group

        leave_process_group()


def _run(words: list[str]) -> None:
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help", *words[2:]]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return
    if words[0] == "--version":
        print(__version__)
        return
    name, *rest = words
    if name not in COMMANDS:
        hint = did_you_mean(name, (*COMMANDS, "--help", "--version"))
        raise SystemExit(
            f"error: there is no command {name!r}.{hint and f' {hint}'} The commands are {', '.join(COMMANDS)}."
        )
    command = COMMANDS[name]
    topic = _help_topic(rest)
    if topic == "":
        print(command_help(name, command))
        return
    source = rest.pop(0) if rest and not rest[0].startswith("--") else None
    if topic is not None:
        print(topic_help(name, topic, read_values(command.options, source, rest)))
        return
    options: Any = load_options(command.options, source, rest)
    _prepare_libraries()
    module, _, function = command.runner.partition(":")
    with naming_full_disk(getattr(options, "output_dir", ".")):
        getattr(import_module(module), function)(options)


def _help_topic(words: list[str]) -> str | None:
    """Takes `--help` and its topic out of the words: None without `--help`, an empty text without a topic."""
    asked = [index for index, word in enumerate(words) if word in ("-h", "--help")]
    if not asked:
        return None
    topic = words[asked[0] + 1 :][:1]
    if topic and not topic[0].startswith("-"):
        del words[asked[0] : asked[0] + 2]
        return topic[0]
    return ""


def _prepare_libraries() -> None:
    """Registers the models; of progress bars, the commands show their own only."""
    import datasets
    import transformers

    from hq_tokenizers.registration import register

    register()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
