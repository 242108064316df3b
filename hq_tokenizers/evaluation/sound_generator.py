"""Judging a generator of sounds by its samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.data.sound_loading import load_front_end, load_sound_splits
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.priors.configuration_code_generation import settings_from_options
from hq_tokenizers.reporting.figures import image_grid, save_png
from hq_tokenizers.reporting.players import save_players
from hq_tokenizers.reporting.tracking import progress_bar

from .references import evaluated_split
from .sound import sound_provenance, spectrogram_pictures
from .sound_sets import SoundDistance, sound_network

_OF_IMAGES = ("reference", "save_reference", "kid", "inception_score", "precision_recall", "images_dir")
_COLUMNS = 8


def evaluate_sound_generator(
    config: EvaluateConfig, generator: PreTrainedModel, settings: dict[str, Any], accelerator: Accelerator
) -> dict[str, Any]:
    """Evaluates `config.num_images` sounds against the data, and writes samples.png and samples.html.

    Sound i has the noise of seed + i and the classes in turn; of generators that know speakers, each in turn has all
    classes.

    Args:
        config: Options.
        generator: The generator that `config.generator` names, on the accelerator's device.
        settings: All its sampling settings, for the report.
        accelerator: Whose processes share the work.

    Returns:
        The report but for its options, see `write_evaluation`.

    Raises:
        ValueError: If no network is given, an option is for images, or generator and data do not fit together.
    """
    assert config.generator is not None
    for name in _OF_IMAGES:
        if getattr(config, name):
            raise ValueError(f"{name} is for images, and the generator makes sounds: leave it out.")
    network = sound_network(config.metrics, accelerator)
    if network is None:
        raise ValueError(
            "A generator of sounds is judged by the features of a network of your choice: set metrics.sound_network to "
            "the folder or Hub id of a model of transformers that takes waveforms."
        )
    front_end = load_front_end(config.generator, generator.image_tokenizer.config)
    split = evaluated_split(config.data)
    (rows,) = load_sound_splits(config.data, front_end, split)
    distance = SoundDistance(network, front_end.sampling_rate, config.metrics.allow_few_images)
    processes, index = accelerator.num_processes, accelerator.process_index
    for indices in validation_batches(len(rows), config.batch_size, processes, index):
        distance.add(references=[rows.waveform(number) for number in indices.tolist()])
    shares = validation_batches(config.num_images, config.batch_size, processes, index)
    overrides = settings_from_options(config.generation)
    num_classes = max(1, len(generator.config.id2label or {}))
    names = list(generator.config.speaker_names)
    for indices in progress_bar(iter(shares), len(shares), "sampling", accelerator.is_main_process):
        numbers = indices.tolist()
        output = generator.generate(
            [number % num_classes if generator.config.id2label else None for number in numbers],
            speakers=[number // num_classes % len(names) for number in numbers] if names else None,
            generator=[torch.Generator().manual_seed(config.seed + number) for number in numbers],
            batch_size=len(numbers),
            **overrides,
        )
        waveforms = front_end.to_waveforms(output.images, output.attention_mask)
        distance.add(predictions=waveforms)
        if 0 in numbers:
            output_dir = Path(config.output_dir)
            output_dir.mkdir(parents=True, exist_ok=True)
            shown = spectrogram_pictures(
                {"samples": output.images}, {"attention_mask": output.attention_mask}, front_end
            )
            save_png(image_grid(shown["samples"], _COLUMNS), output_dir / "samples.png")
            titles = [str(number) for number in numbers]
            save_players(
                output_dir / "samples.html", {"samples": waveforms}, front_end.sampling_rate, titles, "samples.png"
            )
    provenance = sound_provenance(config.data, split, rows, config.num_images)
    subject = {
        "kind": "generator",
        "path": config.generator,
        "generator_sha256": weights_sha256(generator),
        "seed": config.seed,
        "generation": settings,
        "num_images": config.num_images,
    }
    return {"subject": subject, "results": {"fad": distance.result(provenance)}, "left_out": {}}
