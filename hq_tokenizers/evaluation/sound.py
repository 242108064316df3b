"""Errors of spectrograms, and pictures of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.data.images import Batch
from hq_tokenizers.data.sound import SoundRows
from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.reporting.tracking import Record

from .references import data_identity


def squared_error(reconstruction: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ (x − x̂)² over the values that are no padding, and how many these are.

    Args:
        reconstruction: (B, C, H, W).
        batch: "pixel_values" of the same shape, and "attention_mask" (B, W).
    """
    real = batch["attention_mask"][:, None, None]
    error = (reconstruction.detach().float() - batch["pixel_values"].float()).square() * real
    values_per_frame = reconstruction.shape[1] * reconstruction.shape[2]
    return error.sum(), real.sum() * values_per_frame


def decibel_figures(mse: float, extractor: HQFeatureExtractor) -> Record:
    """The mean squared error of normalised spectrograms in dB² ("mse_db2"), and its root in dB ("rmse_db").

    "rmse" is the root in units of the training sounds' standard deviation.
    """
    mse_db2 = mse * extractor.std_db**2
    return {"mse_db2": mse_db2, "rmse_db": mse_db2**0.5, "rmse": mse**0.5}


def bits_per_second(model: PreTrainedModel, extractor: HQFeatureExtractor) -> float:
    """The bits of a tokenizer's codes for a second of sound.

    Args:
        model: The tokenizer, which has codes.
        extractor: Its front end, which says how many frames a second has.
    """
    seconds = image_height_width(model.config.image_size)[1] / extractor.frames_per_second
    bits: float = model.code_layout().bits_per_image
    return bits / seconds


def sound_provenance(config: DataConfig, split: str, rows: SoundRows, number: int) -> dict[str, Any]:
    """What figures of sounds were measured on.

    Args:
        config: Of the data.
        split: Option of the split.
        rows: The split.
        number: Sounds that were judged.
    """
    identity = data_identity(config, split)
    return {
        "reference": {
            "name": identity["reference_name"],
            "split": identity["reference_split"],
            "num_images": len(rows),
            "sha256": rows.sha256(),
        },
        "num_images": number,
        "kind": "sounds",
        "front_end": rows.extractor.to_dict(),
    }


def spectrogram_pictures(
    versions: Mapping[str, torch.Tensor], batch: Batch, extractor: HQFeatureExtractor
) -> dict[str, torch.Tensor]:
    """Spectrograms as grey pictures, low frequencies below: from the floor in black to the loudest original in white.

    Args:
        versions: By name, the originals first, as models take and give them.
        batch: Whose "attention_mask" says what is padding, which becomes white.
        extractor: The front end.

    Returns:
        (B, 1, bands, W) in [0, 1] each.
    """
    padding = batch["attention_mask"][:, None] == 0
    decibels = {name: extractor.to_decibels(values) for name, values in versions.items()}
    floor = extractor.floor_db
    span = (next(iter(decibels.values())).max() - floor).clamp_min(1.0)
    grey = {name: ((values - floor) / span).clamp(0, 1) for name, values in decibels.items()}
    return {name: values.masked_fill(padding, 1.0).flip(-2)[:, None] for name, values in grey.items()}
