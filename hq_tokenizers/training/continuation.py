"""What a run and its continuation have to share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from hq_tokenizers.options.reading import options_from_dict, options_to_dict
from hq_tokenizers.options.training import LoopConfig
from hq_tokenizers.reporting.reports import changes, check_same_call

from .checkpoints import newest_checkpoint, read_state
from .model_options import earlier_settings, settings_of

# Options that may differ between a run and its continuation: they decide how long and how loudly, not what is learned.
# Where images, codes and pretrained weights come from may change, too, since their hashes may not: see `check_inputs`.
_FREE_OPTIONS = {
    *("output_dir", "epochs", "max_steps", "log_steps", "validation_steps", "checkpoint_steps", "keep_checkpoints"),
    *("samples", "tokenizer", "codes", "generation", "gradient_checkpointing", "dry_run", "trackers"),
    *("evaluation_steps", "evaluation_reference", "evaluation_images", "metrics"),
}
_FREE_SECTION_OPTIONS = {
    "data": {"name", "path", "files", "label_column", "test_split", "num_workers", "max_image_pixels"},
    "perceptual": {"weights"},
    "model": {"from_autoencoder"},
}


def check_run(config: LoopConfig, steps_per_epoch: int) -> None:
    """Refuses an output folder early for what a run into it would find wrong with the run that it holds.

    Raises:
        ValueError: See `check_checkpoints` and `check_options`.
    """
    output_dir = Path(config.output_dir)
    checkpoint, problems = newest_checkpoint(output_dir)
    check_checkpoints(output_dir, checkpoint, problems)
    if checkpoint is not None:
        check_options(config, read_state(checkpoint)["options"], steps_per_epoch)


def check_checkpoints(output_dir: Path, checkpoint: Path | None, problems: Sequence[str]) -> None:
    """Checks what `newest_checkpoint` has found.

    Raises:
        ValueError: If there are checkpoints, and all are damaged.
    """
    if checkpoint is None and problems:
        raise ValueError(
            f"{output_dir} holds a run whose checkpoints are all damaged ({'; '.join(problems)}): put a copy of one "
            "back, or delete them to start over, or choose another output_dir."
        )


def count_steps(options: Mapping[str, Any], steps_per_epoch: int) -> int:
    """Optimiser steps of a run with these options."""
    return options["max_steps"] or max(1, round(options["epochs"] * steps_per_epoch))


def check_options(config: LoopConfig, earlier: Mapping[str, Any], steps_per_epoch: int) -> None:
    """Checks that options continue the run of earlier ones.

    Args:
        config: The options.
        earlier: Those of the checkpoint.
        steps_per_epoch: Optimiser steps of an epoch.

    Raises:
        ValueError: If one that decides what is learned has changed, or the length of a cosine schedule.
    """
    now = options_to_dict(config)
    # Options that did not exist when the checkpoint was written have their defaults.
    earlier = options_to_dict(options_from_dict(type(config), earlier))
    difference = changes(_deciding(now), _deciding(earlier))
    check_same_call("output_dir", config.output_dir, "a run", difference)
    steps, earlier_steps = count_steps(now, steps_per_epoch), count_steps(earlier, steps_per_epoch)
    if config.schedule == "cosine" and steps != earlier_steps:
        # Every learning rate so far was that of a run of the earlier length.
        raise ValueError(
            f"{config.output_dir} holds a run of {earlier_steps} steps with schedule cosine, whose learning rates "
            f"depend on the number of steps; it cannot be made {steps} steps. Choose the steps before a run, or "
            "schedule constant; or another output_dir."
        )


def check_settings(output_dir: str, config: PreTrainedConfig, earlier: Mapping[str, Any] | None) -> None:
    """Checks that a model is configured as the one that a run was started with: a preset can mean something else today.

    Raises:
        ValueError: If it is not. Of a run whose version did not store the settings nothing is known.
    """
    if earlier is not None:
        difference = changes(settings_of(config), earlier_settings(config, earlier))
        check_same_call("output_dir", output_dir, "a run with an earlier version's presets, so", difference)


def _deciding(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide what is learned; those of sections by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name in _FREE_OPTIONS:
            continue
        if isinstance(value, Mapping):
            free = _FREE_SECTION_OPTIONS.get(name, ())
            found |= {f"{name}.{inner}": item for inner, item in value.items() if inner not in free}
        else:
            found[name] = value
    return found


def check_inputs(output_dir: str, now: Mapping[str, str], earlier: Mapping[str, str]) -> None:
    """Checks that a run is continued on the inputs, by name and hash, that it was started on.

    Raises:
        ValueError: If one has changed. Of an input whose hash the earlier version did not store, nothing is known.
    """
    difference = changes(now, {**now, **earlier})
    check_same_call("output_dir", output_dir, "a run", difference and f"made from other data: {difference}")
