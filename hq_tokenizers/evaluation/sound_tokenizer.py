"""Judging a trained tokenizer of sounds by its reconstructions of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.data.images import Batch
from hq_tokenizers.data.sound import model_inputs
from hq_tokenizers.data.sound_loading import check_speakers, load_front_end, load_sound_splits
from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.quantization.usage import code_counts, usage_figures
from hq_tokenizers.reporting.figures import reconstruction_grid, save_png
from hq_tokenizers.reporting.tracking import progress_bar

from .pictures import named_reconstructions
from .references import data_identity, evaluated_split
from .sound import decibel_figures, spectrogram_pictures, squared_error
from .validation import RunningSums

_PICTURES = 24


def evaluate_sounds(
    config: EvaluateConfig, model: PreTrainedModel, accelerator: Accelerator, picture: str
) -> dict[str, Any]:
    """Evaluates `config.tokenizer` on sounds, with the front end that is saved beside it, and writes a picture.

    Args:
        config: Options.
        model: The tokenizer, in evaluation mode.
        accelerator: Whose processes share the work.
        picture: Name of the file of the picture.

    Returns:
        "results" as `write_evaluation` takes them: "reconstruction", the error of all frames in dB², dB and units of
        the normalised spectrograms; "codebook_usage"; and of several levels "partial", lists over the first 1, …, L of
        them.

    Raises:
        OSError, ValueError: If front end, tokenizer and data do not fit together.
    """
    assert config.tokenizer is not None
    extractor = load_front_end(config.tokenizer, model.config)
    split = evaluated_split(config.data)
    (rows,) = load_sound_splits(config.data, extractor, split)
    check_speakers(model.config, rows)
    if rows.speaker_names is not None and not model.config.num_speakers:
        raise ValueError("The tokenizer knows no speakers: leave out data.sound.speaker_column.")
    sums = RunningSums()
    shares = validation_batches(len(rows), config.batch_size, accelerator.num_processes, accelerator.process_index)
    batches = rows.batches(shares, accelerator.device)
    for batch in progress_bar(batches, len(shares), "reconstructing", accelerator.is_main_process):
        _add(sums, model, batch)
    totals = sums.reduce(accelerator)
    if accelerator.is_main_process:
        (batch,) = rows.batches([torch.arange(min(_PICTURES, len(rows)))], accelerator.device)
        versions = spectrogram_pictures(named_reconstructions(model, **model_inputs(batch)), batch, extractor)
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        save_png(reconstruction_grid(versions), Path(config.output_dir) / picture)
    identity = data_identity(config.data, split)
    provenance = {
        "reference": {
            "name": identity["reference_name"],
            "split": identity["reference_split"],
            "num_images": len(rows),
            "sha256": rows.sha256(),
        },
        "num_images": len(rows),
        "kind": "sounds",
        "front_end": extractor.to_dict(),
    }
    return _results(model, totals, extractor, provenance)


@torch.no_grad()
def _add(sums: RunningSums, model: PreTrainedModel, batch: Batch) -> None:
    inputs = model_inputs(batch)
    output = model(**inputs, return_loss=False)
    reconstructions = [output.reconstruction]
    if output.codes is not None:
        others = {name: value for name, value in inputs.items() if name != "pixel_values"}
        first = range(1, output.codes.num_levels)
        reconstructions = [*(model.decode(output.codes, num_levels=n, **others) for n in first), *reconstructions]
        levels = model.code_levels(output.codes, batch["attention_mask"])
        for level, (codes, size) in enumerate(zip(levels, output.codes.layout.codebook_sizes, strict=True)):
            sums.add(f"counts_{level}", code_counts(codes, size))
    errors, numbers = zip(*(squared_error(one, batch) for one in reconstructions), strict=True)
    sums.add("squared_error", torch.stack(errors))
    sums.add("num_values", numbers[0])


def _results(
    model: PreTrainedModel, totals: dict[str, torch.Tensor], extractor: HQFeatureExtractor, provenance: dict[str, Any]
) -> dict[str, Any]:
    errors = (totals["squared_error"] / totals["num_values"]).tolist()
    per_level = [{"mse": error, **decibel_figures(error, extractor)} for error in errors]
    results: dict[str, Any] = {"reconstruction": {**per_level[-1], "provenance": provenance}}
    counts = [value for name, value in totals.items() if name.startswith("counts_")]
    if counts:
        usage = {name: values.tolist() for name, values in usage_figures(counts).items()}
        usage["active_codes"] = list(map(int, usage["active_codes"]))
        seconds = image_height_width(model.config.image_size)[1] / extractor.frames_per_second
        rate = model.code_layout().bits_per_image / seconds
        results["codebook_usage"] = {**usage, "bits_per_second": rate, "provenance": provenance}
    if len(errors) > 1:
        results["partial"] = {name: [level[name] for level in per_level] for name in ("mse_db2", "rmse_db")}
    return results
