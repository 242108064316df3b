"""Where records go besides `metrics.jsonl`: TensorBoard, Weights & Biases and Trackio, by accelerate's trackers."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hq_tokenizers.files import write_text

TENSORBOARD = "tensorboard"
PROJECT = "hq-tokenizers"
_RUN_NAME = "run_name.txt"


def check_trackers(names: Sequence[str] | None) -> list[str]:
    """The trackers to use; None asks for TensorBoard where it is installed.

    Raises:
        ValueError: If the package of one is not installed.
    """
    if names is None:
        return [TENSORBOARD] if find_spec(TENSORBOARD) else []
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ValueError(f"trackers needs {' and '.join(missing)}: pip install {' '.join(missing)}, or leave it out.")
    return list(names)


def start_trackers(names: Sequence[str], output_dir: Path, first_step: int) -> list[Any]:
    """Accelerate's trackers of a run, which they continue where it is one of an earlier call.

    Args:
        names: From `check_trackers`.
        output_dir: Folder of the run, where TensorBoard's files go; the others name the run after it.
        first_step: Steps made already.
    """
    if not names:
        return []
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    from hq_tokenizers.processes import create_accelerator

    # accelerate's trackers ask it which process they are in.
    create_accelerator()
    trackers: list[Any] = []
    for name in names:
        if name == TENSORBOARD:
            trackers.append(TensorBoardTracker(TENSORBOARD, output_dir, purge_step=first_step + 1))
        elif name == "wandb":
            run = _run_name(output_dir)
            trackers.append(WandBTracker(PROJECT, id=run, name=run, resume="allow", dir=str(output_dir)))
        else:
            trackers.append(TrackioTracker(PROJECT, name=_run_name(output_dir), resume="allow"))
        trackers[-1].start()
    return trackers


def _run_name(output_dir: Path) -> str:
    """The run's name with services, the same in every call that continues it."""
    path = output_dir / _RUN_NAME
    if not path.is_file():
        write_text(path, f"{output_dir.resolve().name}-{secrets.token_hex(4)}")
    return path.read_text(encoding="utf-8")
