"""What is said about a wrong value, once: types, ranges, choices, image sizes, misspelt names.

A field says in its annotation what it accepts, `hidden_size: Annotated[int, Range(2, 65_536)]`; `check_fields` holds
every field of a configuration to that. Every error names the field, its value and what is accepted. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal


def is_list(values: Any) -> bool:
    """Whether these are things in an order: a list, tuple, range, column of `datasets` or pandas, or 1-D array."""
    if isinstance(values, str | bytes | bytearray | memoryview):
        return False
    return isinstance(values, Sequence) or (getattr(values, "ndim", None) == 1 and hasattr(values, "__iter__"))


@dataclass(frozen=True)
class Range:
    """In an annotation: what a number may be.

    Args:
        low: Smallest value.
        high: Largest value; more would be a mistake, or take memory that nobody has.
        above: Whether `low` itself is excluded.
        below: Whether `high` itself is excluded.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def accepts(self, value: Any) -> bool:
        """Whether a number, or every number of a list, lies in the range."""
        if isinstance(value, list | tuple):
            return all(map(self.accepts, value))
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low, high = (f"{bound:,}" if isinstance(bound, int) else f"{bound:g}" for bound in (self.low, self.high))
        if not (self.above or self.below):
            return f"from {low} to {high}"
        return f"{'above' if self.above else 'of at least'} {low} and {'below' if self.below else 'at most'} {high}"


@dataclass(frozen=True)
class Length:
    """In an annotation: how many entries a list, a mapping or a text may have."""

    low: int
    high: int

    def accepts(self, value: Any) -> bool:
        """Whether it has as many."""
        return self.low <= len(value) <= self.high

    def __str__(self) -> str:
        return f"of length {self.low}" if self.low == self.high else f"of length {self.low:,} to {self.high:,}"


Number = float | int
Count = Annotated[int, Range(1, 2**31 - 1)]
Width = Annotated[int, Range(1, 65_536)]
BeamWidth = Annotated[int, Range(1, 4096)]
CodebookSize = Annotated[int, Range(1, 2**24)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Positive = Annotated[Number, Range(0, 1e9, above=True)]
NotNegative = Annotated[Number, Range(0, 1e9)]
Fraction = Annotated[Number, Range(0, 1, below=True)]
Name = Annotated[str, Length(1, 4096)]
ImageSize = Width | Annotated[list[Width] | tuple[Width, ...], Length(2, 2)]


def check_value(name: str, value: Any, hint: Any) -> Any:
    """Checks a value against an annotation, and returns it as plain Python.

    Args:
        name: What the error calls it.
        value: The value.
        hint: A type, `Literal`, union, list, tuple or dict, also `Annotated` with `Range` and `Length`. A float may be
            an integer, but neither NaN nor infinite; a truth value is no integer.

    Returns:
        What `converted` makes of the value.

    Raises:
        ValueError: If it is of another type or out of range.
    """
    plain = converted(hint, value)
    if not accepts(hint, plain):
        suggestion = did_you_mean(value, _choices(hint)) if isinstance(value, str) else ""
        if isinstance(value, str) and typing.get_origin(hint) is dict:
            suggestion = f"Its parts are set as in --{name}.NAME VALUE."
        raise ValueError(f"{name} must be {describe(hint)}, got {_shown(value)}.{suggestion and f' {suggestion}'}")
    return plain


def _choices(hint: Any) -> list[str]:
    """The texts that an annotation names."""
    if typing.get_origin(hint) is Literal:
        return [choice for choice in typing.get_args(hint) if isinstance(choice, str)]
    return [choice for argument in typing.get_args(hint) for choice in _choices(argument)]


def _shown(value: Any) -> str:
    """The value as Python writes it, cut where it would fill the screen."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of thousands of digits.
        text = "an integer of thousands of digits"
    return text if len(text) <= 200 else f"{text[:200]}…"


def check_fields(owner: Any, below: type = object, prefix: str = "") -> None:
    """Checks every field that the class of a configuration, or a class between it and `below`, declares.

    NumPy's numbers become Python's, and whole floats integers where integers are wanted, so that JSON takes them.

    Args:
        owner: A dataclass.
        below: A base class whose fields are not checked, nor those of its bases.
        prefix: What to put before names in errors.

    Raises:
        ValueError: Naming the first field with a wrong value.
    """
    for name, hint in field_hints(type(owner), below).items():
        value = getattr(owner, name)
        plain = check_value(f"{prefix}{name}", value, hint)
        if plain is not value:
            setattr(owner, name, plain)


def field_hints(cls: type, below: type = object) -> Mapping[str, Any]:
    """Annotations of the dataclass fields that a class and its bases up to `below`, exclusive, declare."""
    fields = {field.name for field in dataclasses.fields(cls)}
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base is below or not issubclass(base, below):
            continue
        annotations = inspect.get_annotations(base, eval_str=True)
        hints |= {name: hint for name, hint in annotations.items() if name in fields}
    return hints


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value is of the annotated type and in the annotated range."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin is Annotated:
        return accepts(arguments[0], value) and all(m.accepts(value) for m in arguments[1:] if hasattr(m, "accepts"))
    if origin in (typing.Union, types.UnionType):
        return any(accepts(argument, value) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if hint is float:
        finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        return finite and not isinstance(value, bool)
    if not isinstance(value, origin or hint) or isinstance(value, bool) != (hint is bool):
        return False
    return _accepts_items(origin, arguments, value)


def _accepts_items(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if not arguments:
        return True
    if origin is dict:
        return all(accepts(arguments[0], key) and accepts(arguments[1], item) for key, item in value.items())
    if origin is tuple and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(map(accepts, arguments, value))
    return all(accepts(arguments[0], item) for item in value)


def converted(hint: Any, value: Any, texts: bool = False) -> Any:
    """A value as its annotation means it, where that is clear; the value itself where it is not.

    Args:
        hint: The annotation.
        value: NumPy's numbers and arrays become Python's, and whole floats integers where an integer is wanted. A value
            that is accepted as it is, is not changed otherwise.
        texts: Whether a text that reads as a number is one where a number is wanted, and a number a text where a text
            is: YAML reads 1e-3 as a text and 7 as a number. Likewise a truth value is the word (no, off, yes, on)
            that is one of the choices.
    """
    value = _plain(value)
    return value if accepts(hint, value) else _reading(hint, value, texts)


_YAML_WORDS = {False: ("no", "off"), True: ("yes", "on")}
"""What YAML reads as truth values, besides false and true."""


def _reading(hint: Any, value: Any, texts: bool) -> Any:
    """The value as the first of the annotated types that it can be read as."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _reading(arguments[0], value, texts)
    if origin in (typing.Union, types.UnionType):
        readings = ((argument, converted(argument, value, texts)) for argument in arguments)
        return next((reading for argument, reading in readings if accepts(argument, reading)), value)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        # What is saved as JSON reads back as a list.
        return origin(converted(arguments[0], item, texts) for item in value)
    if isinstance(value, bool):
        words = _YAML_WORDS[value] if origin is Literal and texts else ()
        return next((word for word in words if word in arguments), value)
    if hint is str and texts and isinstance(value, int | float):
        return str(value)
    if hint in (int, float) and texts and isinstance(value, str):
        value = _number_in(value)
    return int(value) if hint is int and isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    """Python's numbers and lists in the place of NumPy's, also inside lists and mappings."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value


def _number_in(text: str) -> Any:
    """The number that a text is; the text where it is none."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    dict: "a mapping of names to values",
}


def describe(hint: Any, beside: Sequence[Any] = ()) -> str:
    """What an annotation accepts, in words; `beside` are the alternatives it stands among."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        conditions = [str(item) for item in arguments[1:] if hasattr(item, "accepts")]
        return " ".join([describe(arguments[0], beside), *conditions])
    if origin in (typing.Union, types.UnionType):
        # A float may be an integer: said once. Lists and tuples are both lists to a reader.
        kinds = [argument for argument in arguments if not (argument is int and float in arguments)]
        return " or ".join(dict.fromkeys(describe(kind, (*beside, *arguments)) for kind in kinds))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    words = _WORDS.get(origin or hint)
    if words is None:
        return getattr(hint, "__name__", str(hint))
    if origin in (list, tuple) and arguments:
        return f"{words} of them" if arguments[0] in beside else f"{words} ({describe(arguments[0])} each)"
    return words


def class_names(id2label: Any) -> dict[int, str]:
    """The names of classes by their numbers.

    Args:
        id2label: A mapping, whose numbers are texts where it was saved as JSON, or a list of names.

    Raises:
        ValueError: If it is neither, a key is no integer, or a name is no text or empty.
    """
    given = dict(enumerate(id2label)) if isinstance(id2label, list | tuple) else id2label
    try:
        names = {int(str(number)): name for number, name in given.items()}
    except (AttributeError, ValueError) as error:
        raise ValueError(f"id2label must map the numbers of classes to their names, got {_shown(id2label)}.") from error
    for number, name in names.items():
        check_value(f"id2label[{number}]", name, Annotated[str, Length(1, 4096)])
    return names


def check_choice(name: str, value: Any, accepted: Sequence[str]) -> None:
    """Raises a ValueError unless `value` is one of `accepted`; the nearest one is suggested."""
    if value not in accepted:
        hint = did_you_mean(str(value), accepted)
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}, got {value!r}.{hint and f' {hint}'}")


def check_minimum(name: str, value: Any, minimum: float) -> None:
    """Raises a ValueError if `value` is below `minimum` or no finite number."""
    check_value(name, value, float)
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}.")


def did_you_mean(name: str, accepted: Iterable[str], number: int = 1, cutoff: float = 0.6) -> str:
    """The question "Did you mean codebook_size?" for a name that is near an accepted one, else an empty text."""
    nearest = difflib.get_close_matches(name, list(accepted), n=number, cutoff=cutoff)
    return f"Did you mean {' or '.join(nearest)}?" if nearest else ""


def image_height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of an image size given as an integer or a pair.

    Raises:
        ValueError: If it is neither.
    """
    size: Any = list(image_size) if isinstance(image_size, list | tuple) else image_size
    if not accepts(ImageSize, size):
        size = converted(ImageSize, size)
    if not accepts(ImageSize, size):
        raise ValueError(f"image_size must be an integer or [height, width], got {image_size!r}.")
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def as_image_size(height: int, width: int) -> int | list[int]:
    """Height and width as a user writes them: 32, or [32, 48]."""
    return height if height == width else [height, width]


def check_image_size(
    image_size: int | Sequence[int], stride: int | tuple[int, int], prefix: str = ""
) -> tuple[int, int]:
    """(height, width), after checking that the stride divides both.

    Args:
        image_size: An integer or a pair.
        stride: The stride, or that of the height and that of the width.
        prefix: What to put before the error.

    Raises:
        ValueError: If it does not, naming the nearest sizes that fit.
    """
    height, width = image_height_width(image_size)
    strides = (stride, stride) if isinstance(stride, int) else stride
    for side, step in zip((height, width), strides, strict=True):
        if side < step or side % step:
            lower = max(step, side // step * step)
            nearest = f"{lower}" if side < step else f"{lower} or {lower + step}"
            which = "both sides" if len(set(strides)) == 1 else "the width"
            raise ValueError(
                f"{prefix}Images of {height}×{width} do not fit a tokenizer of stride {step}: {which} must be "
                f"multiples of {step}; instead of {side}, use {nearest}."
            )
    return height, width
