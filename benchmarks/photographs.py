r"""What perceptual and adversarial losses change, on crops of photographs: one tokenizer, trained in several ways.

    python benchmarks/photographs.py benchmarks/photographs.yaml --train FOLDER/bsds500-train.parquet \
        --held_out FOLDER/bsds500-test.parquet --lpips_weights SQUEEZENET

Photographs are cut into squares that do not overlap. Every way of training has the same steps and seed. A record of
the errors of held-out crops over the steps, their curves, and a grid of some held-out crops and what every tokenizer
makes of them go to `report_dir` and `figures`. An interrupted run goes on where it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from plots import new_figure
from records import check_names, slug, write_record
from transformers import AutoModel

from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.hashing import file_sha256
from hq_tokenizers.image_decoding import decode_image
from hq_tokenizers.options.reading import options_from_dict
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.reporting.figures import reconstruction_grid, save_png
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.tokenizer import train_tokenizer

CURVES = {"mse": "MSE per pixel value", "lpips": "LPIPS (SqueezeNet)"}


@dataclass(kw_only=True)
class Photographs:
    """Options of the comparison."""

    train: Annotated[str, "parquet file of the photographs to train on"] = "bsds500-train.parquet"
    held_out: Annotated[str, "parquet file of those to judge by"] = "bsds500-test.parquet"
    crop_size: Annotated[int, "pixels of a side of the crops"] = 64
    num_held_out: Annotated[int, "crops to judge by, spread evenly over the photographs"] = 256
    training: Annotated[dict[str, Any], "options of train-tokenizer, the same for all"] = field(default_factory=dict)
    stages: Annotated[dict[str, Any], "name of each way to train: what options it adds"] = field(default_factory=dict)
    lpips_weights: Annotated[str | None, "file of SqueezeNet's weights; null takes torch's hub cache"] = None
    seed: Annotated[int, "seed of all"] = 0
    output_dir: Annotated[str, "where crops and runs go"] = "runs/photographs"
    report_dir: Annotated[str, "where the record goes"] = "docs/results"
    figures: Annotated[str, "where curves and grid go"] = "docs/figures"
    name: Annotated[str, "name of record and pictures"] = "photographs"


@errors_as_messages()
def main() -> None:
    config = script_options(Photographs, __doc__ or "")
    check_names(config.stages)
    files = {
        "train": cut(config, config.train, "train", None),
        "test": cut(config, config.held_out, "test", config.num_held_out),
    }
    data = {"name": "parquet", "path": config.output_dir, "files": files, "test_split": "test"}
    histories = {}
    for name, added in config.stages.items():
        print(f"== {name}", flush=True)
        training = training_config(config, name, added, data)
        train_tokenizer(training)
        histories[name] = held_out_errors(Path(training.output_dir))
    write_record(Path(config.report_dir) / f"{config.name}.json", describe(config, histories))
    Path(config.figures).mkdir(parents=True, exist_ok=True)
    plot(config, histories)
    draw(config, data)


def cut(config: Photographs, source: str, split: str, number: int | None) -> str:
    """Writes the crops of a file of photographs, all or so many, and returns the name of their file."""
    from datasets import Dataset, Features, Image

    # Crops of other photographs, or another number of them, are another file.
    digest = file_sha256(Path(source))[:12]
    target = Path(config.output_dir) / f"{split}-{config.crop_size}-{number or 'all'}-{digest}.parquet"
    if not target.exists():
        rows = Dataset.from_parquet(source)
        crops = [crop for row in rows for crop in squares(decode_image(row["image"]).convert("RGB"), config.crop_size)]
        chosen = range(len(crops)) if number is None else np.linspace(0, len(crops) - 1, number).astype(int)
        target.parent.mkdir(parents=True, exist_ok=True)
        table = Dataset.from_dict({"image": [crops[index] for index in chosen]}, features=Features({"image": Image()}))
        table.to_parquet(target)
    return target.name


def squares(image: Any, size: int) -> list[np.ndarray]:
    """The squares (size, size, 3) of an image that do not overlap, row by row."""
    pixels = np.asarray(image)
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    return [
        pixels[row * size : (row + 1) * size, column * size : (column + 1) * size]
        for row in range(rows)
        for column in range(columns)
    ]


def run_folder(config: Photographs, name: str) -> Path:
    return Path(config.output_dir) / slug(name)


def training_config(
    config: Photographs, name: str, added: dict[str, Any], data: dict[str, Any]
) -> TokenizerTrainingConfig:
    """The options of one way to train."""
    options = {**config.training, **added}
    options["data"] = {**options.get("data", {}), **data}
    options["metrics"] = {"features": None, "lpips": "squeeze", "lpips_weights": config.lpips_weights}
    if "perceptual" in options:
        options["perceptual"] = {**options["perceptual"], "weights": config.lpips_weights}
    options |= {"output_dir": str(run_folder(config, name)), "seed": config.seed}
    return options_from_dict(TokenizerTrainingConfig, options)


def held_out_errors(folder: Path) -> dict[str, list[float]]:
    """The "step", "mse" and "lpips" of every evaluation of a run."""
    merged: dict[int, dict[str, Any]] = {}
    for record in read_history(folder):
        if record["split"] in ("validation", "evaluation"):
            merged.setdefault(record["step"], {}).update(record)
    records = [merged[step] for step in sorted(merged) if set(CURVES) <= set(merged[step])]
    return {name: [record[name] for record in records] for name in ("step", *CURVES)}


def describe(config: Photographs, histories: dict[str, Any]) -> dict[str, Any]:
    """The record."""
    settings = {name: getattr(config, name) for name in ("training", "stages", "crop_size", "num_held_out", "seed")}
    reports = {
        name: json.loads((run_folder(config, name) / "report.json").read_text(encoding="utf-8")) for name in histories
    }
    kept = ("num_parameters", "code_layout", "bits_per_image", "images_per_second", "test", "discriminator")
    return {
        **settings,
        "reports": {name: {key: report[key] for key in kept if key in report} for name, report in reports.items()},
        "histories": histories,
    }


def plot(config: Photographs, histories: dict[str, Any]) -> None:
    """The errors over the steps, and when a discriminator begins to count."""
    figure, axes = new_figure(len(histories), columns=len(CURVES))
    for axis, (figure_name, title) in zip(axes, CURVES.items(), strict=True):
        for name, history in histories.items():
            axis.plot(history["step"], history[figure_name], label=name)
        for added in config.stages.values():
            if "adversarial" in added:
                axis.axvline(added["adversarial"]["start_step"], color="grey", linestyle=":", linewidth=1)
        settled = [value for history in histories.values() for value in history[figure_name][2:]]
        axis.set_ylim(0, max(settled, default=1) * 1.1)
        axis.set(xlabel="steps", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(Path(config.figures) / f"{config.name}_training.png", dpi=110)


def draw(config: Photographs, data: dict[str, Any], number: int = 8) -> None:
    """A row of held-out crops, and below what every tokenizer makes of them."""
    options = options_from_dict(TokenizerTrainingConfig, {"data": data})
    (rows,) = load_image_splits(options.data, "test_split")
    picked = torch.linspace(0, len(rows) - 1, number).long()
    (batch,) = rows.batches([picked], torch.device("cpu"))
    versions = {"held-out crops": batch["pixel_values"]}
    for name in config.stages:
        model = AutoModel.from_pretrained(run_folder(config, name)).eval()
        with torch.no_grad():
            versions[name] = model(**batch).reconstruction
    enlarged = {name: images.repeat_interleave(2, -1).repeat_interleave(2, -2) for name, images in versions.items()}
    save_png(reconstruction_grid(enlarged, number), Path(config.figures) / f"{config.name}.png")


if __name__ == "__main__":
    main()
