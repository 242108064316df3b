"""Reading safetensors files of any origin: damage is named with the file, and nothing but the folder is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@contextmanager
def named_damage(path: str | Path) -> Iterator[None]:
    """Turns what safetensors says about a damaged file into a ValueError that names the file."""
    try:
        yield
    except SafetensorError as error:
        cause = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(f"{path} is damaged or no safetensors file: {cause}.") from error


def read_tensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or another file.
    """
    with named_damage(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def tensor_types(path: Path) -> dict[str, str]:
    """The type of every tensor of a safetensors file, as "F32" or "I64", from its header alone.

    Raises:
        ValueError: If it is damaged or another file, or its data are cut short.
    """
    with named_damage(path), safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


def model_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The weight files of a model in a folder: one, or the shards that its index names.

    Args:
        folder: The folder.
        variant: The word that the files' names have before their last part, as in model.fp16.safetensors.

    Returns:
        The files; none where there are neither weights nor pickled ones, which transformers explains itself.

    Raises:
        ValueError: If the weights are pickled, or the index is damaged, names files outside the folder, or files that
            are missing.
    """
    single, index = (folder / name for name in file_names(variant))
    if single.is_file():
        return [single]
    if index.is_file():
        return [_shard(folder, name, index) for name in shard_names(index)]
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise ValueError(
            f"{folder} has weights as a pickle only ({', '.join(pickled[:3])}), which can run code when it is read: "
            f"ask its author for {single.name}, or convert it where you trust it."
        )
    return []


def file_names(variant: str | None = None) -> tuple[str, str]:
    """Names of the file of a model's weights, and of the index where there are shards of it instead."""
    word = "" if variant is None else f".{variant}"
    return f"model{word}.safetensors", f"model.safetensors.index{word}.json"


def shard_names(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        ValueError: If the index is damaged, or names other files than safetensors in its own folder.
    """
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name or path.suffix != ".safetensors":
            raise ValueError(f"{index} names the file {name!r}; only safetensors files in its own folder are read.")
    return names


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{index} is damaged: {error}.") from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f'{index} is damaged: it has no "weight_map" of tensor names to file names.')
    return names


def _shard(folder: Path, name: str, index: Path) -> Path:
    if not (folder / name).is_file():
        raise ValueError(f"{index} names the file {name!r}, which is not there: copy or download it again.")
    return folder / name
