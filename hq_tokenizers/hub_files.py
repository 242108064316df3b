"""The weight files of a model on the Hub, in the cache: what cannot be had is named, with what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import LocalEntryNotFoundError
from transformers.utils.hub import cached_file, cached_files

from hq_tokenizers.hashing import file_sha256
from hq_tokenizers.tensor_files import file_names, shard_names

_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")


def hub_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that say where and how a file is looked for."""
    return {name: arguments[name] for name in _ARGUMENTS if name in arguments}


def download_weights(repo_id: str, variant: str | None, arguments: dict[str, Any]) -> list[Path]:
    """Brings the weights of a model into the cache, unless they are there.

    Args:
        repo_id: Hub id, as "user/name".
        variant: As `tensor_files.model_files` takes it.
        arguments: Those of `hub_arguments`.

    Returns:
        The files in the cache: one, or the shards.

    Raises:
        OSError: If there is no such repository, no access to it, no such file in it, or the download breaks off.
        ValueError: If the index of the shards is damaged.
    """
    names = file_names(variant)
    for name in names:
        found = _download(repo_id, [name], arguments, _raise_exceptions_for_missing_entries=False)
        if found and name == names[0]:
            return found
        if found:
            return _download(repo_id, _shards(repo_id, found[0]), arguments)
    try:
        # The same once more, to be told whether the Hub could be asked at all.
        return _download(repo_id, [names[0]], arguments)
    except OSError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError):
            raise
    place = "/".join(filter(None, [repo_id, arguments.get("subfolder")]))
    raise OSError(
        f"{place} has neither {names[0]} nor {names[1]}. Weights of other formats are pickles, which can run code when "
        "they are read: ask the author for safetensors."
    )


def damage_in_cache(repo_id: str, path: Path, error: ValueError) -> ValueError:
    """The error about a damaged file, with whose fault it is and what to do."""
    # The cache names the content of large files by their SHA-256.
    digest = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        remedy = (
            "Load once with force_download=True; if that changes nothing, it is damaged on the Hub: tell its author."
        )
    elif file_sha256(path) != digest:
        remedy = "Its download was damaged: load once with force_download=True."
    else:
        remedy = "It is damaged on the Hub: tell its author, and load again when it is mended there."
    return ValueError(f"{repo_id}: {error} {remedy}")


def _download(repo_id: str, names: list[str], arguments: dict[str, Any], **settings: Any) -> list[Path]:
    try:
        if len(names) == 1:
            path = cached_file(repo_id, names[0], **arguments, **settings)
            return [] if path is None else [Path(path)]
        return [Path(path) for path in cached_files(repo_id, names, **arguments, **settings) or []]
    except (OSError, ValueError):
        raise
    # Every version of huggingface_hub has errors of another HTTP library.
    except Exception as error:
        raise OSError(
            f"{repo_id}: the download of {', '.join(names[:3])} broke off ({error}). Load it again: the cache keeps "
            "whole files only."
        ) from error


def _shards(repo_id: str, index: Path) -> list[str]:
    try:
        return shard_names(index)
    except ValueError as error:
        raise damage_in_cache(repo_id, index, error) from error
