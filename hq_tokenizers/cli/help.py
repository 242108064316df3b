"""Help texts, made from the commands and the annotations of their options."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any, Literal

from hq_tokenizers.options.reading import describe_options

from .commands import COMMANDS, Command

_WIDTH = 100


def overview() -> str:
    """The text of `hq-tokenizers --help`."""
    width = max(map(len, COMMANDS))
    lines = [
        "hq-tokenizers: train discrete image tokenizers and generators on top of them.",
        "",
        "usage: hq-tokenizers COMMAND [CONFIG.yaml] [--option value …]",
        "",
        *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "The usual order: train-tokenizer, encode, train-prior, generate; evaluate judges what came of it.",
        "demo does all but the last on a small data set; env says what a report of a bug has to.",
        "To reconstruct, vary or inpaint images of your own, use the app, or Python's pipeline('hq-generation', "
        "model=FOLDER).",
        "`hq-tokenizers COMMAND --help` explains a command and every option of it;",
        "`hq-tokenizers train-tokenizer --model.preset rsq_vae --help model` the fields of that model.",
    ]
    return "\n".join(lines)


def command_help(name: str, command: Command) -> str:
    """The text of `hq-tokenizers COMMAND --help`."""
    lines = [
        f"usage: hq-tokenizers {name} [CONFIG.yaml] [--option value …]",
        "",
        *textwrap.wrap(command.explanation, _WIDTH, break_on_hyphens=False),
        "",
        "examples:",
        *(f"  {example}" for example in command.examples),
        "",
        "options, in the YAML file (dots are sections) or after it; options given after it win:",
        *option_lines(command.options),
    ]
    return "\n".join(lines)


def topic_help(name: str, topic: str, values: Mapping[str, Any]) -> str:
    """The text of `hq-tokenizers COMMAND [CONFIG.yaml] [--option value …] --help model`: the fields of that model.

    Args:
        name: The command.
        topic: What follows `--help`.
        values: What the file and the options before it say.

    Raises:
        ValueError: If there is no such topic, or the model section is not acceptable.
    """
    models: dict[str, Literal["tokenizer", "prior"]] = {"train-tokenizer": "tokenizer", "train-prior": "prior"}
    if topic != "model" or name not in models:
        hint = "train-tokenizer and train-prior have --help model, on the fields of a model."
        raise ValueError(f"{name} has no help on {topic!r}: --help alone explains all options; {hint}")
    # Imports the configurations of the models, and torch with them.
    from hq_tokenizers.training.model_options import describe_model

    described = describe_model(values.get("model") or {}, models[name])
    lines = [*textwrap.wrap(described.title, _WIDTH), ""]
    for field in described.fields:
        lines.append(f"  --model.{field.name} (default: {field.default})")
        text = f"{field.meaning} Accepted: {field.accepted}."
        lines += textwrap.wrap(text, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def option_lines(options: type) -> list[str]:
    """Every option of a dataclass with its default and meaning."""
    lines = []
    for option, default, meaning in describe_options(options):
        lines.append(f"  --{option} (default: {default})")
        lines += textwrap.wrap(meaning, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return lines
