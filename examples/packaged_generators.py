"""Makes of a trained generator the folder that comes with the package: half the bytes, chosen sampling, a card.

    python examples/packaged_generators.py --name fashion-mnist --output_dir hq_tokenizers/pretrained/fashion_mnist
    python examples/packaged_generators.py --name spoken-digits --output_dir hq_tokenizers/pretrained/spoken_digits

Weights are stored as float16 and load as float32, since config.json says so. The figures of the card are measured on
that folder, by commands that docs/pretrained.md has: run this again to write the card with them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import load_file, save_file

from hq_tokenizers import HQGeneratorModel
from hq_tokenizers.checks import check_choice
from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.hub import create_model_card
from hq_tokenizers.pretrained_models import DEFAULT
from hq_tokenizers.priors.configuration_code_generation import settings_from_options
from hq_tokenizers.reporting.tables import table_rows

FRONT_END = "preprocessor_config.json"


def accuracies_of_images(record: dict[str, Any], data: str) -> dict[str, float]:
    """Figures of the card from a record of benchmarks/sample_accuracy.py."""
    figures = {}
    for reader, found in (("convolutional classifier", record), ("random forest", record["forest"])):
        drawn = f"class accuracy, {data}, {record['samples']:,} samples, {reader}"
        real = f"class accuracy, {data}, real test images, {reader}"
        figures[drawn] = round(found["class_accuracy"], 4)
        figures[real] = round(found["classifier_accuracy_on_held_out_images"], 4)
    copies = f"exact copies of training images, {data}"
    return figures | {f"{copies}, {record['samples']:,} samples": record["exact_copies_of_training_images"]}


def accuracies_of_sounds(record: dict[str, Any], data: str) -> dict[str, float]:
    """Figures of the card from a record of benchmarks/sound_accuracy.py."""
    of = {
        "real": "real test sounds",
        "reconstructed": "test sounds after the tokenizer",
        "generated": f"{record['num_samples']:,} samples",
    }
    heard = (("digit accuracy", record["classes"]), ("speaker accuracy", record["speakers"]))
    return {f"{name}, {data}, {of[what]}": round(found[what], 4) for name, found in heard for what in of}


@dataclass(frozen=True)
class Package:
    """What is particular to one of the generators."""

    title: str
    dataset: str
    license: str
    accuracies: Callable[[dict[str, Any], str], dict[str, float]]
    trained: str
    """Where the recipes leave it."""
    description: str


PACKAGES = {
    "fashion-mnist": Package(
        "Fashion-MNIST",
        "zalando-datasets/fashion_mnist",
        "mit",
        accuracies_of_images,
        "runs/fashion_mnist_prior/generator",
        "A class-conditional generator of 28×28 pictures of clothes that comes with the library hq_tokenizers, to have "
        "something to draw with in the first minute. It was trained on the first 55,000 training images of "
        "Fashion-MNIST, by the recipes `examples/fashion_mnist_rsq_vae.yaml` and `examples/fashion_mnist_prior.yaml`, "
        "on one core of a CPU in less than an hour. Weights are stored in float16 and load as float32.",
    ),
    "spoken-digits": Package(
        "FSDD",
        "free-spoken-digit-dataset",
        "cc-by-sa-4.0",
        accuracies_of_sounds,
        "runs/fsdd_prior/generator",
        "A generator of spoken digits, told the digit and one of six speakers, that comes with the library "
        "hq_tokenizers, to have something to listen to in the first minute. It was trained on the 2,700 training "
        "sounds of the Free Spoken Digit Dataset (Zohar Jackson and others, CC BY-SA 4.0, 8 kHz, "
        "https://github.com/Jakobovski/free-spoken-digit-dataset), by the recipes `examples/fsdd_voices.yaml` and "
        "`examples/fsdd_prior.yaml`, on one core of a CPU in minutes. Weights are stored in float16 and load as "
        "float32.",
    ),
}


@dataclass(kw_only=True)
class Options:
    """Options of the script."""

    name: Annotated[str, f"which generator of the package: {' or '.join(PACKAGES)}"] = DEFAULT
    generator: Annotated[str | None, "folder that train-prior left; null takes where the recipes leave it"] = None
    output_dir: Annotated[str | None, "folder to write; null is runs/NAME"] = None
    generation: Annotated[dict[str, Any], "sampling settings to store; default: those stored already"] = field(
        default_factory=dict
    )
    accuracy: Annotated[
        str | None, "JSON file of benchmarks/sample_accuracy.py or sound_accuracy.py, for the card; null leaves it out"
    ] = None
    evaluations: Annotated[list[str], "report.json files of `evaluate`, for the card"] = field(default_factory=list)


def read_figures(options: Options, package: Package) -> dict[str, float | str]:
    """Figures of the card by name."""
    figures: dict[str, float | str] = {}
    if options.accuracy is not None:
        figures |= package.accuracies(json.loads(Path(options.accuracy).read_text(encoding="utf-8")), package.title)
    for path in options.evaluations:
        results = json.loads(Path(path).read_text(encoding="utf-8"))["results"]
        for label, value, conditions in table_rows(results):
            # Reports call the data by their folder; a card reads a name up to its first comma as the measure.
            data = re.sub(r"^parquet [^ ]+", package.title, conditions)
            figures[f"{label.replace(', ', '; ')}, {data}"] = value
    return figures


def store_in_half(path: Path) -> None:
    """Rewrites a safetensors file with its floating-point numbers as float16.

    Raises:
        ValueError: If a number is too large for it.
    """
    halved = {name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()}
    too_large = [name for name, tensor in halved.items() if not tensor.isfinite().all()]
    if too_large:
        raise ValueError(f"Numbers of {', '.join(too_large)} are too large for float16.")
    save_file(halved, path, metadata={"format": "pt"})


@errors_as_messages()
def main() -> None:
    """Writes the folder and prints the sizes of its files."""
    options = script_options(Options, __doc__)
    check_choice("name", options.name, tuple(PACKAGES))
    package = PACKAGES[options.name]
    folder = Path(options.output_dir or f"runs/{options.name}")
    source = Path(options.generator or package.trained)
    if not source.is_dir():
        raise SystemExit(f"error: there is no generator in {source}: train it first, or set generator to its folder.")
    generator = HQGeneratorModel.from_pretrained(source, dtype=torch.float32)
    settings = settings_from_options(options.generation)
    generator.generation_config = generator.generation_config.with_overrides(**settings)
    front_end = (source / FRONT_END).read_bytes()
    generator.save_pretrained(folder)
    (folder / FRONT_END).write_bytes(front_end)
    store_in_half(folder / "model.safetensors")
    write_card(generator, options, package, folder)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    print(json.dumps({"files": sizes, "bytes": sum(sizes.values())}, indent=2))


def write_card(generator: HQGeneratorModel, options: Options, package: Package, folder: Path) -> None:
    """README.md of the folder."""
    card = create_model_card(
        generator,
        options.name,
        license=package.license,
        datasets=[package.dataset],
        metrics=read_figures(options, package),
        description=package.description,
    )
    # The folder has no name on the Hub: the package knows where it is.
    name = f'"{options.name}"'
    card.content = card.content.replace(f"model={name}", f"model=hq_tokenizers.pretrained({name})")
    card.save(folder / "README.md")


if __name__ == "__main__":
    main()
