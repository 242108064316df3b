"""What a set of images is compared with: a split, a folder, or saved statistics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.loading import load_image_folder, load_image_splits
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.processes import is_main_process


@dataclass(frozen=True)
class Reference:
    """What to compare with.

    Args:
        rows: The images, or None with `statistics`.
        names: Their names, when they come from a folder.
        statistics: File of reference statistics, or None.
        identity: Options of every metric that name the images; the file knows its own.
        option: Name of the option that gave them, for errors.
    """

    rows: ImageRows | None = None
    names: list[str] | None = None
    statistics: Path | None = None
    identity: dict[str, str] = field(default_factory=dict)
    option: str = "reference"


def evaluated_split(config: DataConfig) -> str:
    """Name of the option that says which split to evaluate on: test_split, or validation_split where that is null."""
    return "validation_split" if config.test_split is None else "test_split"


def data_identity(config: DataConfig, split_option: str) -> dict[str, str]:
    """What results call the split that an option names, without the folders around it."""
    first = f"[:{config.max_validation_images}]" if config.streaming else ""
    return {
        "reference_name": config.name if config.path is None else f"{config.name} {Path(config.path).name}",
        "reference_split": getattr(config, split_option) + first,
        "resize_filter": _resize_filter(config),
    }


def load_reference(config: EvaluateConfig, option: str = "reference") -> Reference:
    """Loads what the options name.

    Args:
        config: Options.
        option: What the user knows `config.reference` as, for errors.

    Raises:
        FileNotFoundError: If there is no such folder, file or data.
        ValueError: For a wrong split, column, label or size.
    """
    if config.data.label_map_classes is not None:
        raise ValueError("data.label_map_classes: label maps have no Fréchet distance; only a tokenizer can be judged.")
    if config.reference is None:
        split = evaluated_split(config.data)
        (rows,) = load_image_splits(config.data, split)
        if config.data == DataConfig() and is_main_process():
            print("data: the images to compare with are the embedded digits; data.name and reference choose others.")
        return Reference(rows, identity=data_identity(config.data, split))
    if config.reference.endswith(".safetensors"):
        if config.save_reference is not None:
            raise ValueError("reference is a file of statistics already: leave out save_reference.")
        return Reference(statistics=Path(config.reference), option=option)
    rows, names = load_image_folder(config.data, config.reference, option)
    identity = {
        "reference_name": Path(config.reference).name,
        "reference_split": "all",
        "resize_filter": _resize_filter(config.data),
    }
    return Reference(rows, names, identity=identity, option=option)


def _resize_filter(config: DataConfig) -> str:
    return (
        "none"
        if config.image_size is None
        else "shorter side to the size, bicubic, antialiased (torchvision), then centre crop"
    )
