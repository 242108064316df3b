"""Generators on the command line: joining the two stages, and drawing images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor

from hq_tokenizers.data.loading import OVERVIEW
from hq_tokenizers.models.trained_models import load_trained
from hq_tokenizers.options.generation import GenerateConfig
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.pipelines.configuration_hq_generator import HQGeneratorConfig
from hq_tokenizers.priors.configuration_code_generation import settings_from_options
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.figures import image_grid, save_png
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.reporting.reports import REPORT, changes, check_same_call, read_report, write_report
from hq_tokenizers.reporting.tracking import counting_bar


def generate_images(config: GenerateConfig) -> None:
    """Draws images and writes `samples.png`, one PNG per image, named by its number and class, and `report.json`.

    The PNG of a label map holds its classes as grey levels. Of several processes only the main one draws.

    Raises:
        BlockingIOError: If another command is writing to `config.output_dir`.
        ValueError: If there is no such generator, the folder holds other images, or for an unknown class or sampling
            setting.
    """
    accelerator = create_accelerator()
    with lock_folder("output_dir", config.output_dir):
        if accelerator.is_main_process:
            _generate_images(config, accelerator.device)


def _generate_images(config: GenerateConfig, device: torch.device) -> None:
    output_dir, request = Path(config.output_dir), options_to_dict(config)
    _check_folder(output_dir, request)
    generator = load_trained(config.generator, "generator", HQGeneratorConfig, "generator", "train-prior")
    generator = generator.to(device)
    names = generator.config.id2label or {}
    given = config.class_labels if isinstance(config.class_labels, list | None) else [config.class_labels]
    labels: list[Any] = given or [names[index] for index in range(len(names))] or [None]
    with counting_bar("generating") as show:
        images = generator.generate(
            class_labels=labels,
            num_images=config.num_images,
            generator=config.seed,
            batch_size=config.batch_size,
            progress=show,
            **settings_from_options(config.generation),
        ).images
    # Before the images, so that an interrupted call can be repeated.
    write_report(output_dir, {"options": request})
    titles = [""] * len(images)
    titles[:: config.num_images] = [names.get(label, label) or "" for label in labels]
    save_png(image_grid(images, config.num_images, titles), output_dir / OVERVIEW)
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
    # The images depend neither on the folder nor on the batch size.
    check_same_call("output_dir", output_dir, "images", changes(request, earlier, ignored=("output_dir", "batch_size")))
