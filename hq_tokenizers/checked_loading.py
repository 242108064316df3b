"""`from_pretrained` for files of any origin: what is damaged, missing, too large or not finite is named and refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import extract_commit_hash

from hq_tokenizers.checks import check_fields
from hq_tokenizers.hub_files import damage_in_cache, download_weights, hub_arguments
from hq_tokenizers.memory import check_model_memory
from hq_tokenizers.tensor_files import model_files, named_damage, tensor_types

_FLOATS = ("F", "BF")


def check_config_memory(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> None:
    """Checks that a model of this configuration fits into memory, by building it without any.

    Does nothing where the model is being built on the meta device, which takes no memory.

    Raises:
        ValueError: If it does not, naming its size.
    """
    if torch.get_default_device().type != "meta":
        with torch.device("meta"):
            check_model_memory(model_class(config), f"this {model_class.__name__}")


class CheckedLoading(PreTrainedModel):
    """Base of all models: loads safetensors only, and no weights that are damaged, incomplete or not finite.

    Args:
        config: The configuration of the model.

    Raises:
        ValueError: If a field has a wrong value: `from_pretrained(…, hidden_size=…)` sets it after the configuration
            has checked itself.
    """

    _keys_to_ignore_on_save: set[str] | list[str] | None

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any):
        check_fields(config, below=PreTrainedConfig)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Loads a model as transformers does, from safetensors only.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *args: As transformers takes them.
            **kwargs: Likewise; `ignore_mismatched_sizes=True` lets parameters whose weights are missing or of another
                shape start anew.

        Returns:
            The model in evaluation mode; with `output_loading_info=True` a pair of it and a dictionary.

        Raises:
            OSError: If there is no such model, or its download breaks off.
            ValueError: Naming the file and what is wrong with it, or the size of a model that memory does not hold.
        """
        if kwargs.get("use_safetensors") is False:
            raise ValueError("use_safetensors=False would read pickles, which can run code: leave it out.")
        where, start_anew = str(pretrained_model_name_or_path), kwargs.get("ignore_mismatched_sizes", False)
        with_info = kwargs.pop("output_loading_info", False)
        is_local = pretrained_model_name_or_path is None or Path(where).exists()
        files, types = _local_files(where, kwargs) if is_local else _downloaded_files(where, kwargs)
        config = kwargs.get("config")
        if config is None and pretrained_model_name_or_path is not None:
            config, _ = cls.config_class.from_pretrained(where, return_unused_kwargs=True, **kwargs)
        if isinstance(config, PreTrainedConfig):
            check_config_memory(cls, config)
        settings = kwargs | {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        with named_damage(where):
            model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **settings)
        source = str(files[0]) if is_local and len(files) == 1 else where
        if not start_anew:
            _check_complete(info, source)
        _check_values(model, types, source)
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Saves the model with transformers' arguments, without the `spent_buffers` of its modules, which are empty."""
        always = self._keys_to_ignore_on_save
        spent = {
            f"{name}.{buffer}"
            for name, module in self.named_modules()
            for buffer in getattr(module, "spent_buffers", ())
        }
        self._keys_to_ignore_on_save = {*(always or ()), *spent}
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._keys_to_ignore_on_save = always


def _local_files(where: str, arguments: dict[str, Any]) -> tuple[list[Path], dict[str, str]]:
    """The weight files of a folder, if it is one, and the types of their tensors."""
    folder = Path(where, arguments.get("subfolder") or "")
    files = model_files(folder, arguments.get("variant")) if folder.is_dir() else []
    return files, {name: kind for file in files for name, kind in tensor_types(file).items()}


def _downloaded_files(where: str, arguments: dict[str, Any]) -> tuple[list[Path], dict[str, str]]:
    """The same of a model on the Hub. Everything else is then loaded from the same commit."""
    types: dict[str, str] = {}
    files = download_weights(where, arguments.get("variant"), hub_arguments(arguments))
    for file in files:
        try:
            types |= tensor_types(file)
        except ValueError as error:
            raise damage_in_cache(where, file, error) from error
    # A push in the meantime would otherwise mix two models, and every file is asked for once instead of twice.
    arguments["revision"] = extract_commit_hash(str(files[0]), None) or arguments.get("revision")
    arguments.pop("force_download", None)
    return files, types


def _check_complete(info: dict[str, Any], source: str) -> None:
    remedy = "take weights and config.json from one run, or pass ignore_mismatched_sizes=True to let these start anew"
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        raise ValueError(
            f"{source}: {name} has the shape {tuple(found)}, config.json wants {tuple(wanted)}{_more(mismatched)}: "
            f"{remedy}."
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{source} lacks the weights {missing[0]}{_more(missing)}: {remedy}.")


def _check_values(model: PreTrainedModel, types: dict[str, str], source: str) -> None:
    """Once after loading, so that nothing is checked when the model works."""
    prefix = f"{model.base_model_prefix}."
    types = {name.removeprefix(prefix): kind for name, kind in types.items()}
    unset = {
        id(buffer)
        for module in model.modules()
        if getattr(module, "nan_when_unset", False)
        for buffer in module.buffers(recurse=False)
    }
    for name, tensor in model.state_dict(keep_vars=True).items():
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_meta
        if not plain or not tensor.is_floating_point():
            continue
        kind = types.get(name, "F32")
        if not kind.startswith(_FLOATS):
            raise ValueError(
                f"{source}: {name} has the type {kind}, but the model's weights are floating-point numbers."
            )
        if id(tensor) not in unset and not bool(tensor.isfinite().all()):
            raise ValueError(f"{source}: {name} has values that are NaN or infinite; the model would compute nonsense.")


def _more(names: list[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
