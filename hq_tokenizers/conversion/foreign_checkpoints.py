"""Reading checkpoints of other packages: safetensors, or pickles of which nothing but tensors is taken."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hq_tokenizers.tensor_files import read_tensors


class _Ignored:
    """Takes the place of every class of another package in a checkpoint: holds what it is given, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_state(path: Path, *keys: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name.

    Pickles are read with `weights_only=True`, and no code of theirs runs. Objects of other packages' classes, which
    Lightning puts beside the weights, become empty ones; containers of such classes (`defaultdict` and subclasses of
    list and dict) cannot be filled, and are refused.

    Args:
        path: The file.
        keys: Under which of these the weights may be, the first that is there; none of them: the file is the weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint of tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    content: Any = read_tensors(path)[0] if path.suffix == ".safetensors" else _unpickled(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name, nor any under {', '.join(keys) or 'a name'}.")
    return tensors


def _unpickled(path: Path) -> Any:
    try:
        classes: Any = [(_Ignored, name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(str(path))]
        with torch.serialization.safe_globals(classes):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, AttributeError) as error:
        # What torch says of a pickle it does not read advises to run it.
        raise ValueError(
            f"{path} is damaged, or holds what cannot be read as weights alone, such as containers of other packages' "
            "classes. Where you trust it, save its state_dict with safetensors.torch.save_file, and convert that."
        ) from error
