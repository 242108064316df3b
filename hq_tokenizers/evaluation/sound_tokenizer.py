"""Judging a trained tokenizer of sounds by its reconstructions of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hq_tokenizers.codes import Codes
from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.data.images import Batch
from hq_tokenizers.data.sound import SoundRows, model_inputs
from hq_tokenizers.data.sound_loading import check_speakers, load_front_end, load_sound_splits
from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.metrics.code_labels import code_label_counts, normalized_mutual_information
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.quantization.usage import code_counts, usage_figures
from hq_tokenizers.reporting.figures import reconstruction_grid, save_png
from hq_tokenizers.reporting.players import save_players
from hq_tokenizers.reporting.tracking import progress_bar

from .decoding import encode_and_decode
from .pictures import named_reconstructions, spread_over
from .references import evaluated_split
from .sound import bits_per_second, decibel_figures, sound_provenance, spectrogram_pictures, squared_error
from .sound_sets import SoundDistance, sound_network
from .validation import RunningSums

_PICTURES = 24
_PLAYED = 8


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
        the normalised spectrograms; "codebook_usage", with the normalised mutual information of each level's codes with
        the classes and the speakers of the sounds they are in; of several levels "partial", lists over the first 1, …,
        L of them; and with `metrics.sound_network` "fad", the Fréchet distance of what Griffin-Lim makes of the
        reconstructions from the sounds.

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
    network = sound_network(config.metrics, accelerator)
    distance = None
    if network is not None:
        distance = SoundDistance(network, extractor.sampling_rate, config.metrics.allow_few_images)
    sums = RunningSums()
    shares = validation_batches(len(rows), config.batch_size, accelerator.num_processes, accelerator.process_index)
    batches = rows.batches(shares, accelerator.device)
    batches = progress_bar(batches, len(shares), "reconstructing", accelerator.is_main_process)
    for indices, batch in zip(shares, batches, strict=True):
        reconstruction = _add(sums, model, batch, rows)
        if distance is not None:
            originals = [rows.waveform(number) for number in indices.tolist()]
            distance.add(extractor.to_waveforms(reconstruction, batch["attention_mask"]), originals)
    totals = sums.reduce(accelerator)
    if accelerator.is_main_process:
        (batch,) = rows.batches([spread_over(len(rows), _PICTURES)], accelerator.device)
        versions = named_reconstructions(model, **model_inputs(batch))
        output_dir = Path(config.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        save_png(reconstruction_grid(spectrogram_pictures(versions, batch, extractor)), output_dir / picture)
        _save_players(output_dir / picture, versions, batch, rows)
    provenance = sound_provenance(config.data, split, rows, len(rows))
    results = _results(model, totals, extractor, provenance)
    return results if distance is None else {**results, "fad": distance.result(provenance)}


def _save_players(picture: Path, versions: dict[str, torch.Tensor], batch: Batch, rows: SoundRows) -> None:
    """A page with the first sounds, what the front end leaves of them, and the reconstructions."""
    number = min(_PLAYED, len(rows))
    mask = batch["attention_mask"][:number]
    named = {"spectrogram of the original" if name == "original" else name: v for name, v in versions.items()}
    played = {"original": [rows.waveform(index) for index in range(number)]}
    played |= {name: rows.extractor.to_waveforms(values[:number], mask) for name, values in named.items()}
    titles = [str(index) for index in range(number)]
    save_players(picture.with_suffix(".html"), played, rows.extractor.sampling_rate, titles, picture.name)


@torch.no_grad()
def _add(sums: RunningSums, model: PreTrainedModel, batch: Batch, rows: SoundRows) -> torch.Tensor:
    """Adds a batch, and returns its reconstruction."""
    codes, reconstructions = encode_and_decode(model, **model_inputs(batch))
    if codes is not None:
        levels = model.code_levels(codes, batch["attention_mask"])
        for level, (indices, size) in enumerate(zip(levels, codes.layout.codebook_sizes, strict=True)):
            sums.add(f"counts_{level}", code_counts(indices, size))
        _add_labels(sums, model, codes, batch, rows)
    errors, numbers = zip(*(squared_error(one, batch) for one in reconstructions), strict=True)
    sums.add("squared_error", torch.stack(errors))
    sums.add("num_values", numbers[0])
    return reconstructions[-1]


def _add_labels(sums: RunningSums, model: PreTrainedModel, codes: Codes, batch: Batch, rows: SoundRows) -> None:
    """How often each code of a level comes in sounds of each class and speaker."""
    known = {"classes": ("labels", rows.label_names), "speakers": ("speaker_ids", rows.speaker_names)}
    for kind, (column, names) in known.items():
        if column not in batch or names is None:
            continue
        # The label of a sound is that of all its positions.
        spread = Codes(tuple(batch[column][:, None, None, None].expand_as(grid) for grid in codes.groups), codes.layout)
        pairs = (model.code_levels(each, batch["attention_mask"]) for each in (codes, spread))
        for level, (found, labels) in enumerate(zip(*pairs, strict=True)):
            size = codes.layout.codebook_sizes[level]
            sums.add(f"{kind}_{level}", code_label_counts(found, labels, size, len(names)))


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
        shared = {
            f"nmi_{kind}": [normalized_mutual_information(totals[f"{kind}_{level}"]) for level in range(len(counts))]
            for kind in ("classes", "speakers")
            if f"{kind}_0" in totals
        }
        results["codebook_usage"] = {
            **usage,
            "bits_per_second": bits_per_second(model, extractor),
            **shared,
            "provenance": provenance,
        }
    if len(errors) > 1:
        results["partial"] = {name: [level[name] for level in per_level] for name in ("mse_db2", "rmse_db")}
    return results
