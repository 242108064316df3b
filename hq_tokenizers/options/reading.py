"""Typed options: a dataclass filled from a YAML file and from `--field value` overrides with dotted names.

An option is a dataclass field annotated as `Annotated[type, "its meaning in one line"]`. Nested dataclasses are
sections; a `dict` field takes any keys (the `model` section, whose keys are the model configuration's own).
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hq_tokenizers.checks import check_value, converted, did_you_mean

T = TypeVar("T")


def load_options(cls: type[T], source: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Reads options: defaults, then the YAML file, then the overrides.

    Args:
        cls: The dataclass of the options.
        source: A YAML file, or None for the defaults.
        overrides: Command line words: `--field value` or `--field=value`, with dotted names for sections.

    Raises:
        FileNotFoundError: If the YAML file does not exist.
        ValueError: For an unknown name (the nearest accepted ones are given) or a value of the wrong type.
    """
    return options_from_dict(cls, read_values(cls, source, overrides))


def read_values(cls: type, source: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What the YAML file and the overrides say, nested by section, before it is checked; see `load_options`."""
    values: dict[str, Any] = {}
    if source is not None:
        values = _read_yaml(Path(source))
    for name, word in parse_overrides(overrides):
        path = name.split(".")
        _assign(values, path, _override_value(_hint_of(cls, path), word, name), name)
    return values


def parse_overrides(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of dotted name and value, as written, from `--name value` and `--name=value`.

    Raises:
        ValueError: For a word that is no option, or an option without a value.
    """
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise ValueError(f"Expected an option such as --seed 1, got {word!r}; options follow the YAML file.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                hint = did_you_mean(name, ("help",))
                raise ValueError(
                    f"--{name} needs a value, as in --{name} VALUE (true or false for a switch)."
                    f"{hint and ' Did you mean --help?'}"
                )
            value = rest.pop(0)
        yield name.replace("-", "_"), value


def options_from_dict(cls: type[T], values: Mapping[str, Any], prefix: str = "", defaults: T | None = None) -> T:
    """Builds the dataclass from nested mappings. A section that is given in part keeps its other defaults.

    Args:
        cls: The dataclass.
        values: Values by name; a mapping for a section.
        prefix: What to put before names in errors.
        defaults: The options without the values; None takes the defaults of `cls`.

    Raises:
        ValueError: For an unknown name or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    checked = {}
    for name, value in values.items():
        if name not in fields:
            hint = _near_options(cls, name, prefix)
            raise ValueError(unknown_name(f"{prefix}{name}", [f"{prefix}{a}" for a in fields], hint))
        hint, full_name = hints[name], f"{prefix}{name}"
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            section = getattr(defaults, name, None) or _default(fields[name])
            checked[name] = options_from_dict(typing.cast(type, hint), value, f"{full_name}.", section)
        else:
            checked[name] = convert_option(hint, value, full_name)
    return cls(**checked) if defaults is None else dataclasses.replace(typing.cast(Any, defaults), **checked)


def options_to_dict(options: Any) -> dict[str, Any]:
    """The nested mapping that `options_from_dict` reads."""
    return dataclasses.asdict(options)


def describe_options(cls: type, prefix: str = "", defaults: Any = None) -> Iterator[tuple[str, str, str]]:
    """(dotted name, default as YAML, meaning) of every option; a section's defaults are those of its owner."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        name, hint = f"{prefix}{field.name}", hints[field.name]
        default = _default(field) if defaults is None else getattr(defaults, field.name)
        if dataclasses.is_dataclass(hint):
            yield from describe_options(typing.cast(type, hint), f"{name}.", default)
        else:
            yield name, to_yaml(default), next(item for item in hint.__metadata__ if isinstance(item, str))


def unknown_name(name: str, accepted: Sequence[str], hint: str = "") -> str:
    """The message for a name that is not among the accepted ones; the hint, or else the nearest ones, come first."""
    hint = hint or did_you_mean(name, accepted, number=3, cutoff=0.5)
    return f"Unknown option {name!r}.{hint and f' {hint}'} Accepted: {', '.join(sorted(accepted))}."


def _near_options(cls: type, name: str, prefix: str) -> str:
    """The question for what is near an unknown name, at first where its section was left out.

    What a free section takes is not known here; how it is written is said.
    """
    hints = typing.get_type_hints(cls)
    known = [option for option, _, _ in describe_options(cls, prefix)]
    ends = {option: f"{option}.".find(f".{name}.") for option in known}
    # A dict in place of a set keeps the order.
    exact = list(dict.fromkeys(option[: end + len(name) + 1] for option, end in ends.items() if end >= 0))
    free = [option for option, hint in hints.items() if dict in (hint, typing.get_origin(hint))]
    if exact:
        near = f"Did you mean {' or '.join(exact)}?"
    elif near := did_you_mean(f"{prefix}{name}", known, number=3, cutoff=0.8):
        return near
    else:
        near = did_you_mean(f"{prefix}{name}", [f"{prefix}{option}" for option in hints], number=3, cutoff=0.5)
    return " ".join([near, *(f"What is meant for {each} is written {prefix}{each}.{name}." for each in free)]).strip()


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {str(path)!r}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold options as `name: value` lines, got {type(values).__name__}.")
    return values


def _hint_of(cls: type, path: Sequence[str]) -> Any:
    """The annotation of a dotted name; Any for the keys of a free section and for names that are not there."""
    hint: Any = cls
    for part in path:
        hint = typing.get_type_hints(hint).get(part, Any) if dataclasses.is_dataclass(hint) else Any
    return hint


class _NameLoader(yaml.SafeLoader):
    """YAML in which no, null, 0010 and 1e3 are names, as they may be of classes; only plain integers are numbers."""


_NameLoader.yaml_implicit_resolvers = {}
_NameLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(0|[1-9]\d*)$"), list("-0123456789"))
_NULLS = ("null", "~", "")


def _types_in(hint: Any) -> set[Any]:
    """The types that an annotation names, at any depth."""
    arguments = typing.get_args(hint)
    return set().union(*map(_types_in, arguments)) if arguments else {hint}


def _override_value(hint: Any, word: str, name: str) -> Any:
    """The value of a word. A text is what is written, since YAML would read 0010 as 8; all else is YAML.

    Where a text is one of several things that are accepted, only plain whole numbers are none.
    """
    if hint is str or (hint == str | None and word not in _NULLS):
        return word
    types = _types_in(hint)
    loader = _NameLoader if word not in _NULLS and str in types and not types & {bool, Any} else None
    try:
        return yaml.load(word, loader or yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"--{name}: {word!r} is not a YAML value ({error}).") from error


def _assign(values: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    for part in path[:-1]:
        section = values.get(part)
        values[part] = section = {} if section is None else section
        if not isinstance(section, dict):
            raise ValueError(f"--{name}: {part!r} holds the value {section!r}, not a section.")
        values = section
    values[path[-1]] = value


def convert_option(hint: Any, value: Any, name: str) -> Any:
    """A value checked against a type annotation. YAML reads 1e-3 as a string, so numbers in strings are numbers here.

    Args:
        hint: The annotation, see `checks.check_value`.
        value: What YAML gave.
        name: The option to name in errors.

    Raises:
        ValueError: If the value does not fit.
    """
    if dataclasses.is_dataclass(hint):
        options = [f"{name}.{option}" for option in typing.get_type_hints(hint)]
        raise ValueError(f"{name} is a section with options of its own ({', '.join(options)}), got {value!r}.")
    return check_value(name, converted(hint, value, texts=True), hint)


def to_yaml(value: Any) -> str:
    """A value as a user writes it."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
