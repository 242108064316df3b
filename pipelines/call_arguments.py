"""Counts, seeds and names of settings as users write them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from hq_tokenizers.checks import did_you_mean, is_list
from hq_tokenizers.image_decoding import is_open_file
from hq_tokenizers.priors.configuration_code_generation import CodeGenerationConfig

# One bit less than torch.Generator accepts: seeds travel as int64 tensors, and seed + i has to be a seed as well.
_MAX_SEED = 2**63 - 1


def check_setting_names(settings: Iterable[str], arguments: Sequence[str]) -> None:
    """Refuses what is no setting of the generation: transformers' `Pipeline` would swallow it in silence.

    Args:
        settings: Names as they were given.
        arguments: Names of a call's own arguments.

    Raises:
        TypeError: Naming it, and what is accepted.
    """
    known = CodeGenerationConfig.setting_names()
    for name in settings:
        if name not in known:
            accepted = [*arguments, *known]
            hint = did_you_mean(name, accepted)
            raise TypeError(f"Unknown argument {name!r}. {hint and hint + ' '}Accepted are {', '.join(accepted)}.")


def check_count(name: str, value: Any) -> int:
    """A number of things, at least 1.

    Args:
        name: What the error calls it.
        value: An integer, of Python, NumPy or a tensor.

    Raises:
        ValueError: If it is no integer, or less than 1.
    """
    count = _as_integer(value)
    if count is None or count < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    return count


def sample_seeds(seed: Any, num_samples: int, items: str = "images") -> list[int]:
    """One seed per image, or sound.

    Args:
        seed: An integer s gives s, s + 1, …; a list, tuple, 1-D array or tensor gives every image its own; None draws
            them from torch's global generator.
        num_samples: Number of images or sounds.
        items: What errors call them.

    Raises:
        TypeError: If a seed is no integer.
        ValueError: If a seed is outside 0 … 2⁶³ − 1, or a list has another length than `num_samples`.
    """
    if seed is None:
        return torch.randint(_MAX_SEED, (num_samples,)).tolist()
    first = _as_integer(seed)
    if first is not None:
        _check_seed(first, items)
        _check_seed(first + max(num_samples - 1, 0), items)
        return [first + index for index in range(num_samples)]
    if not is_list(seed):
        raise TypeError(f"seed is an integer, a list of them, or None, got {seed!r} of type {type(seed).__name__}.")
    values = seed.tolist() if hasattr(seed, "tolist") else list(seed)  # arrays and tensors, as Python's numbers
    if len(values) != num_samples:
        raise ValueError(
            f"Got {len(values)} seeds for {num_samples} {items}: give one per {items[:-1]}, or a single integer."
        )
    return [_list_item(value, index, items) for index, value in enumerate(values)]


def stream_seeds(seed: Any, items: str = "images") -> Iterator[int]:
    """One seed per image, or sound, of a stream, whose length is not known.

    Args:
        seed: An integer s gives s, s + 1, …; None draws them from torch's global generator.
        items: What errors call them.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is outside 0 … 2⁶³ − 1.
    """
    if seed is None:
        return (sample_seeds(None, 1)[0] for _ in itertools.count())
    first = _as_integer(seed)
    if first is None:
        raise TypeError(f"seed is an integer or None for a stream, got {seed!r} of type {type(seed).__name__}.")
    _check_seed(first, items)
    return (sample_seeds(number, 1, items)[0] for number in itertools.count(first))


def is_stream(values: Any) -> bool:
    """Whether these are inputs to take one by one as results are asked for: an iterator, or a torch `Dataset`.

    transformers' `KeyDataset`, one column of a data set, is one. An open file is not, though Python iterates over it.
    """
    return isinstance(values, (Iterator, Dataset)) and not is_open_file(values)


def _list_item(value: Any, index: int, items: str) -> int:
    seed = _as_integer(value)
    if seed is None:
        raise TypeError(f"Seeds are integers, but seed[{index}] is {value!r} of type {type(value).__name__}.")
    _check_seed(seed, items)
    return seed


def _check_seed(seed: int, items: str) -> None:
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(
            f"Seeds lie between 0 and 2**63 - 1; {items[:-1]} i of the call gets seed + i. This one is {seed}."
        )


def _as_integer(value: Any) -> int | None:
    """The value as a Python integer; None when it is none (a truth value is none either)."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) > 0:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None
