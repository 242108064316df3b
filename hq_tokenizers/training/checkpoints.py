"""Full-state checkpoints in safetensors and JSON: weights, average, optimiser, schedule, noise, position.

A checkpoint is the folder `checkpoints/step-00001234` of a run: written under another name, forced to the disk and
renamed when it is complete, so that neither an interruption nor a crash leaves half a checkpoint behind.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_file, save_model
from torch import nn

from hq_tokenizers.files import PARTIAL, naming_full_disk, read_json, sync, write_json
from hq_tokenizers.randomness import load_noise_state, noise_state
from hq_tokenizers.tensor_files import named_damage, read_tensors

FOLDER = "checkpoints"
_STATE = "state.json"
_NOISE, _OWN = "noise.", "own."


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((output_dir / FOLDER).glob("step-*[0-9]"))


def newest_checkpoint(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is not damaged, None when there is none; and what is wrong with the newer ones."""
    problems: list[str] = []
    for checkpoint in reversed(list_checkpoints(output_dir)):
        problem = _damage(checkpoint)
        if problem is None:
            return checkpoint, problems
        problems.append(problem)
    return None, problems


def weights_damage(path: Path) -> str | None:
    """What is wrong with a file of tensors: missing, cut off, or none; None when it is whole."""
    try:
        with safe_open(path, framework="pt"):
            return None
    except (FileNotFoundError, SafetensorError) as error:
        return f"{path} is missing or damaged ({error})"


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None when nothing is."""
    try:
        names = read_state(checkpoint)["files"]
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{checkpoint / _STATE} does not name the checkpoint's files"
    return next((problem for name in names if (problem := weights_damage(checkpoint / name))), None)


def save_checkpoint(
    output_dir: Path,
    step: int,
    models: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    own: dict[str, torch.Tensor] | None = None,
    process_index: int = 0,
    num_processes: int = 1,
    wait_for_everyone: Callable[[], None] = lambda: None,
) -> None:
    """Writes a checkpoint and deletes the oldest ones; to be called by every process.

    Newer checkpoints, which are damaged when the run was continued from an older one, are deleted as well.

    Args:
        output_dir: Folder of the run.
        step: Optimiser steps made.
        models: The modules to save, by name.
        optimizer: Its state is saved.
        state: Anything JSON-ready.
        keep: Newest checkpoints to keep.
        own: Tensors of which each process has its own.
        process_index: This process; number 0 writes what all share.
        num_processes: Processes.
        wait_for_everyone: Barrier of the processes.

    Raises:
        DiskFullError: If there was no space; earlier checkpoints are intact.
    """
    final = output_dir / FOLDER / f"step-{step:08d}"
    partial = final.with_name(final.name + PARTIAL)
    try:
        if process_index == 0:
            _make_empty(partial)
            for name, model in models.items():
                with _written(partial / f"{name}.safetensors") as path:
                    save_model(model, str(path))
            tensors, groups = _optimizer_tensors(optimizer)
            with _written(partial / "optimizer.safetensors") as path:
                save_file(tensors, path)
            files = [f"{name}.safetensors" for name in (*models, "optimizer")]
            files += [_process_file(index) for index in range(num_processes)]
            write_json(partial / _STATE, {"step": step, "files": files, "optimizer_groups": groups, **state})
        wait_for_everyone()
        mine = {f"{_NOISE}{name}": tensor for name, tensor in noise_state().items()}
        mine |= {f"{_OWN}{name}": tensor.detach().cpu().contiguous() for name, tensor in (own or {}).items()}
        with _written(partial / _process_file(process_index)) as path:
            save_file(mine, path)
        wait_for_everyone()
        if process_index == 0:
            sync(partial)
            _delete(final)
            partial.rename(final)
            sync(final.parent)
    except BaseException:
        if process_index == 0:
            # What is left of it would take the space that was lacking.
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if process_index == 0:
        checkpoints = list_checkpoints(output_dir)
        upto = checkpoints.index(final) + 1
        for unwanted in (*checkpoints[:upto][:-keep], *checkpoints[upto:]):
            _delete(unwanted)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint: `state` and `step` of `save_checkpoint`.

    Raises:
        ValueError: If it is damaged.
    """
    return read_json(checkpoint / _STATE, f"continue from an older checkpoint by deleting {checkpoint}")


def load_checkpoint(
    checkpoint: Path,
    models: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    process_index: int = 0,
    num_processes: int = 1,
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Restores models, optimiser and noise in place.

    Returns:
        `read_state(checkpoint)`, and this process's `own` tensors.

    Raises:
        ValueError: If another number of processes wrote the checkpoint, or a file is damaged.
        RuntimeError: If the weights do not fit the model.
    """
    written_by = len(list(checkpoint.glob(_process_file("*"))))
    if written_by != num_processes:
        raise ValueError(
            f"{checkpoint} was written by {written_by} processes, not {num_processes}: continue the run with "
            f"{written_by} (torchrun --nproc_per_node {written_by}), or choose another output_dir."
        )
    state = read_state(checkpoint)
    for name, model in models.items():
        path = checkpoint / f"{name}.safetensors"
        with named_damage(path):
            load_model(model, str(path))
    _load_optimizer(optimizer, read_tensors(checkpoint / "optimizer.safetensors")[0], state["optimizer_groups"])
    mine, _ = read_tensors(checkpoint / _process_file(process_index))
    load_noise_state(_with_prefix(mine, _NOISE))
    return state, _with_prefix(mine, _OWN)


def _process_file(index: int | str) -> str:
    return f"process-{index}.safetensors"


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    with naming_full_disk(path):
        yield path
        sync(path)


def _make_empty(partial: Path) -> None:
    """Makes the folder of a checkpoint to come, and clears away what interruptions left of others."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    for leftover in partial.parent.glob(f"step-*{PARTIAL}"):
        shutil.rmtree(leftover)
    partial.mkdir()


def _delete(checkpoint: Path) -> None:
    """Under another name first: an interruption must not leave half of it among the complete ones."""
    if checkpoint.exists():
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.old{PARTIAL}")))


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {f"{index}.{name}": t for index, values in state["state"].items() for name, t in values.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, state["param_groups"]


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], groups: list[dict[str, Any]]
) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})
