"""Judging a generator by its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.priors.configuration_code_generation import settings_from_options

from .image_sets import SetComparison
from .references import load_reference
from .sampling import NumberedSamples, generator_samples
from .sound_sets import refuse_sound_network


def evaluate_generator(
    config: EvaluateConfig, generator: PreTrainedModel, settings: dict[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """Evaluates `config.num_images` samples against the reference.

    Args:
        config: Options.
        generator: The generator that `config.generator` names, on the accelerator's device.
        settings: All its sampling settings, for the report and for the request of `images_dir`.
        accelerator: Whose processes share the work.

    Returns:
        The report but for its options, see `write_evaluation`.

    Raises:
        OSError, ValueError: If generator, reference and metrics do not fit together, or `images_dir` holds images of
            another request.
    """
    refuse_sound_network(config.metrics, "generator")
    folder = None if config.images_dir is None else Path(config.images_dir)
    sample = generator_samples(generator, settings_from_options(config.generation))
    samples = NumberedSamples(sample, len(generator.config.id2label or {}), config.seed, folder)
    request = {"generator_sha256": weights_sha256(generator), "seed": config.seed, "generation": settings}
    comparison = compare_samples(config, generator.image_tokenizer, accelerator)
    samples.open_folder(request, accelerator)
    found = comparison.compare(samples.share(config.num_images, config.batch_size, accelerator))
    subject = {"kind": "generator", "path": config.generator, **request, "num_images": config.num_images}
    return {"subject": subject, "results": {"fid": found}, "left_out": {}}


def compare_samples(
    config: EvaluateConfig, tokenizer: PreTrainedModel, accelerator: Accelerator, option: str = "reference"
) -> SetComparison:
    """The comparison of `config.num_images` images that a tokenizer decodes with the reference.

    Args:
        config: Options.
        tokenizer: What decodes the images.
        accelerator: Whose processes share the work.
        option: What the user knows `config.reference` as, for errors.

    Raises:
        OSError, ValueError: As `SetComparison`, or if the tokenizer's images are label maps.
    """
    if tokenizer.config.for_label_maps:
        raise ValueError("Label maps have no Fréchet distance: the tokenizer decodes no images.")
    size = image_height_width(tokenizer.config.image_size)
    return SetComparison(config, load_reference(config, option), config.num_images, size, accelerator)
