"""Full-state checkpoints in safetensors and JSON: weights, average, optimiser, schedule, noise, position.

A checkpoint is the folder `checkpoints/step-00001234` of a run: written under another name and renamed when it is
complete, so that an interrupted run never leaves half a checkpoint behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file, save_model
from torch import nn

from hq_tokenizers.randomness import load_noise_state, noise_state
from hq_tokenizers.tensor_files import named_damage, read_tensors

FOLDER = "checkpoints"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((output_dir / FOLDER).glob("step-*[0-9]"))


def save_checkpoint(
    output_dir: Path,
    step: int,
    models: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    process_index: int = 0,
    wait_for_everyone: Callable[[], None] = lambda: None,
) -> None:
    """Writes a checkpoint and deletes the oldest ones; to be called by every process.

    Args:
        output_dir: Folder of the run.
        step: Optimiser steps made.
        models: The modules to save, by name.
        optimizer: Its state is saved.
        state: Anything JSON-ready.
        keep: Newest checkpoints to keep.
        process_index: This process; number 0 writes what all share.
        wait_for_everyone: Barrier of the processes.
    """
    final = output_dir / FOLDER / f"step-{step:08d}"
    partial = final.with_name(f"{final.name}.partial")
    if process_index == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, model in models.items():
            save_model(model, str(partial / f"{name}.safetensors"))
        tensors, groups = _optimizer_tensors(optimizer)
        save_file(tensors, partial / "optimizer.safetensors")
        content = {"step": step, "optimizer_groups": groups, **state}
        (partial / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    wait_for_everyone()
    save_file(noise_state(), partial / f"noise-{process_index}.safetensors")
    wait_for_everyone()
    if process_index == 0:
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in list_checkpoints(output_dir)[:-keep]:
            shutil.rmtree(old)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint: `state` and `step` of `save_checkpoint`."""
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def load_checkpoint(
    checkpoint: Path,
    models: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    process_index: int = 0,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Restores models, optimiser and noise in place and returns `read_state(checkpoint)`.

    Raises:
        ValueError: If another number of processes wrote the checkpoint, or a file is damaged.
        RuntimeError: If the weights do not fit the model.
    """
    written_by = len(list(checkpoint.glob("noise-*.safetensors")))
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
    load_noise_state(read_tensors(checkpoint / f"noise-{process_index}.safetensors")[0])
    return state


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
