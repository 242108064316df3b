"""Generators on the command line: joining the two stages, and drawing images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from transformers import AutoImageProcessor

from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.data.loading import OVERVIEW
from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.options.generation import GenerateConfig
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.options.training import PriorTrainingConfig
from hq_tokenizers.pipelines.configuration_hq_generator import HQGeneratorConfig
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorModel
from hq_tokenizers.priors.training import train_prior
from hq_tokenizers.training.figures import image_grid, save_png
from hq_tokenizers.training.loop import create_accelerator
from hq_tokenizers.training.reports import REPORT, read_report, write_report
from hq_tokenizers.training.trained_models import load_trained

from .evaluate import prior_evaluation


def train_prior_and_save_generator(config: PriorTrainingConfig) -> dict[str, Any]:
    """`train_prior`, then the generator in `output_dir/generator` when the tokenizer is at hand; returns the report."""
    tokenizer = config.tokenizer or EncodedImages.load(config.codes).tokenizer
    report = train_prior(config, prior_evaluation(config, tokenizer))
    if PartialState().is_main_process and (config.tokenizer or Path(tokenizer, "config.json").is_file()):
        save_generator(tokenizer, config.output_dir, Path(config.output_dir) / "generator")
    return report


def save_generator(tokenizer: str, prior: str, output_dir: Path) -> HQGeneratorModel:
    """Joins a tokenizer and a prior, each loaded from its folder, and saves the generator with its image processor."""
    generator = HQGeneratorModel.from_sub_models_pretrained(tokenizer, prior)
    generator.save_pretrained(output_dir)
    config = generator.image_tokenizer.config
    if not config.for_label_maps:
        HQImageProcessor.for_image_size(config.image_size, config.num_channels).save_pretrained(output_dir)
    return generator


def generate_images(config: GenerateConfig) -> None:
    """Draws images and writes `samples.png`, one PNG per image, named by its number and class, and `report.json`.

    The PNG of a label map holds its classes as grey levels. Of several processes only the main one draws.

    Raises:
        ValueError: If there is no such generator, the folder holds other images, or for an unknown class or sampling
            setting.
    """
    accelerator = create_accelerator()
    if not accelerator.is_main_process:
        return
    output_dir, request = Path(config.output_dir), options_to_dict(config)
    _check_folder(output_dir, request)
    generator = load_trained(config.generator, "generator", HQGeneratorConfig, "generator", "train-prior")
    generator = generator.to(accelerator.device)
    names = generator.config.id2label or {}
    given = config.class_labels if isinstance(config.class_labels, list | None) else [config.class_labels]
    labels: list[Any] = given or [names[index] for index in range(len(names))] or [None]
    images = generator.generate(
        class_labels=labels,
        num_images=config.num_images,
        generator=config.seed,
        batch_size=config.batch_size,
        progress=True,
        **config.generation,
    ).images
    output_dir.mkdir(parents=True, exist_ok=True)
    # Before the images, so that an interrupted call can be repeated.
    write_report(output_dir, {"options": request})
    save_png(image_grid(images, columns=config.num_images), output_dir / OVERVIEW)
    for index, image in enumerate(_to_pil(images, config.generator)):
        label = labels[index // config.num_images]
        image.save(output_dir / _file_name(index, label))
    print(f"{len(images)} images in {output_dir}.")


def _to_pil(images: torch.Tensor, generator: str) -> list[Image.Image]:
    if not images.is_floating_point():
        return [Image.fromarray(label_map) for label_map in images.to("cpu", torch.uint8).numpy()]
    return AutoImageProcessor.from_pretrained(generator).postprocess(images)


def _file_name(index: int, label: int | str | None) -> str:
    """A name that every file system takes; the number alone makes it unique."""
    slug = "" if label is None else "-" + re.sub(r"[^\w.-]+", "-", str(label))[:60]
    return f"{index:05d}{slug}.png"


def _check_folder(output_dir: Path, request: dict[str, Any]) -> None:
    """A folder of images holds those of one call, so that nobody measures a mixture."""
    if not any(output_dir.glob("*.png")):
        return
    earlier = read_report(output_dir).get("options", {}) if (output_dir / REPORT).is_file() else {}
    # The images depend on neither.
    anywhere = {"output_dir": None, "batch_size": None}
    if earlier | anywhere != request | anywhere:
        raise ValueError(
            f"output_dir {str(output_dir)!r} holds images that another call wrote: choose another output_dir, or "
            "delete them."
        )
