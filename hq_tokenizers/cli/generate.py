"""Generators on the command line: joining the two stages, and drawing images or sounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from hq_tokenizers.data.loading import OVERVIEW
from hq_tokenizers.data.sound_loading import load_front_end
from hq_tokenizers.evaluation.sound import spectrogram_pictures
from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.models.configuration_image_tokenizer import is_of_sound
from hq_tokenizers.models.trained_models import load_generator, load_image_processor
from hq_tokenizers.options.generation import GenerateConfig
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorOutput
from hq_tokenizers.priors.configuration_code_generation import settings_from_options
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.figures import image_grid, save_png
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.reporting.players import save_players
from hq_tokenizers.reporting.reports import REPORT, changes, check_same_call, read_report, write_report
from hq_tokenizers.reporting.tracking import counting_bar
from hq_tokenizers.sound_decoding import encode_wav

PLAYERS = "samples.html"


def generate_images(config: GenerateConfig) -> None:
    """Draws images or sounds and writes `samples.png`, a file per sample, named by number and class, and `report.json`.

    Images are PNG; the PNG of a label map holds its classes as grey levels. Sounds are WAV, by the Griffin-Lim
    algorithm; `samples.png` shows their spectrograms and `samples.html` plays them. Of several processes only the main
    one draws.

    Raises:
        BlockingIOError: If another command is writing to `config.output_dir`.
        ValueError: If there is no such generator, the folder holds other images, or for an unknown class, speaker or
            sampling setting.
    """
    accelerator = create_accelerator()
    with lock_folder("output_dir", config.output_dir):
        if accelerator.is_main_process:
            _generate_images(config, accelerator.device)


def _generate_images(config: GenerateConfig, device: torch.device) -> None:
    output_dir, request = Path(config.output_dir), options_to_dict(config)
    _check_folder(output_dir, request)
    generator = load_generator(config.generator)
    generator = generator.to(device)
    of_sound = is_of_sound(generator.config.image_tokenizer_config)
    front_end = load_front_end(config.generator, generator.image_tokenizer.config) if of_sound else None
    processor = None if of_sound else load_image_processor(config.generator, generator.image_tokenizer.config)
    names = generator.config.id2label or {}
    labels = _listed(config.class_labels) or [names[index] for index in range(len(names))] or [None]
    speakers = _listed(config.speakers) or list(generator.config.speaker_names) or [None]
    pairs = [(label, speaker) for label in labels for speaker in speakers]
    with counting_bar("generating") as show:
        output = generator.generate(
            class_labels=[label for label, _ in pairs],
            speakers=[speaker for _, speaker in pairs],
            num_images=config.num_images,
            generator=config.seed,
            batch_size=config.batch_size,
            progress=show,
            **settings_from_options(config.generation),
        )
    titles = [_title(label, speaker, generator) for label, speaker in pairs]
    # Before the images, so that an interrupted call can be repeated.
    write_report(output_dir, {"options": request})
    of_each = [title for title in titles for _ in range(config.num_images)]
    if front_end is None:
        _save_images(output, config, of_each, processor)
    else:
        _save_sounds(output, config, of_each, front_end)
    print(f"{len(of_each)} {'images' if front_end is None else 'sounds'} in {output_dir}.")


def _listed(given: Any) -> list[Any]:
    if given is None:
        return []
    return given if isinstance(given, list) else [given]


def _title(label: int | str | None, speaker: int | str | None, generator: PreTrainedModel) -> str:
    """What is drawn, in words; "" where neither a class nor a speaker was asked for."""
    classes, speakers = generator.config.id2label or {}, generator.config.speaker_names
    known = ({-1: "no class", **classes}, label), ({-1: "no speaker", **speakers}, speaker)
    words = [str(names.get(given, given)) for names, given in known if given is not None]
    return ", ".join(word for word in words if word)


def _save_images(
    output: HQGeneratorOutput, config: GenerateConfig, titles: list[str], processor: HQImageProcessor | None
) -> None:
    assert output.images is not None
    _save_grid(output.images, config, titles)
    for index, image in enumerate(_to_pil(output.images, processor)):
        image.save(Path(config.output_dir) / _file_name(index, titles[index], "png"))


def _save_sounds(
    output: HQGeneratorOutput, config: GenerateConfig, titles: list[str], front_end: HQFeatureExtractor
) -> None:
    assert output.images is not None
    assert output.attention_mask is not None
    output_dir, mask = Path(config.output_dir), {"attention_mask": output.attention_mask}
    _save_grid(spectrogram_pictures({"samples": output.images}, mask, front_end)["samples"], config, titles)
    waveforms = front_end.to_waveforms(output.images, output.attention_mask)
    for index, waveform in enumerate(waveforms):
        path = output_dir / _file_name(index, titles[index], "wav")
        path.write_bytes(encode_wav(waveform, front_end.sampling_rate))
    save_players(output_dir / PLAYERS, {"samples": waveforms}, front_end.sampling_rate, titles, OVERVIEW)


def _save_grid(images: torch.Tensor, config: GenerateConfig, titles: list[str]) -> None:
    first = [title if index % config.num_images == 0 else "" for index, title in enumerate(titles)]
    save_png(image_grid(images, config.num_images, first), Path(config.output_dir) / OVERVIEW)


def _to_pil(images: torch.Tensor, processor: HQImageProcessor | None) -> list[Image.Image]:
    if processor is None:
        return [Image.fromarray(label_map) for label_map in images.to("cpu", torch.uint8).numpy()]
    pictures = processor.postprocess(images)
    assert isinstance(pictures, list)  # of its default, "pil"
    return pictures


def _file_name(index: int, title: str, ending: str) -> str:
    """A name that every file system takes; the number alone makes it unique."""
    slug = "-" + re.sub(r"[^\w.-]+", "-", title)[:60] if title else ""
    return f"{index:05d}{slug}.{ending}"


def _check_folder(output_dir: Path, request: dict[str, Any]) -> None:
    """A folder of images holds those of one call, so that nobody measures a mixture."""
    if not any(output_dir.glob("*.png")):
        return
    earlier = read_report(output_dir).get("options", {}) if (output_dir / REPORT).is_file() else {}
    # The images depend neither on the folder nor on the batch size.
    check_same_call("output_dir", output_dir, "images", changes(request, earlier, ignored=("output_dir", "batch_size")))
