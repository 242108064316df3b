"""Judging a trained tokenizer by its reconstructions of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hq_tokenizers.data.compatibility import check_images
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.models.trained_models import load_tokenizer, set_beam_width
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.reporting.figures import reconstruction_grid, save_png

from .pictures import named_reconstructions
from .reconstructions import ReconstructionMetrics
from .references import data_identity, evaluated_split
from .sound_sets import refuse_sound_network
from .sound_tokenizer import evaluate_sounds

PICTURE = "reconstructions.png"
_COLUMNS = 8
_BLOCKS = ("best", "median", "worst")


def evaluate_tokenizer_on_data(config: EvaluateConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Evaluates `config.tokenizer` on the data and writes the picture of its best, median and worst reconstructions.

    Returns:
        The report but for its options, see `write_evaluation`.

    Raises:
        OSError, ValueError: If tokenizer, data and metrics do not fit together.
    """
    assert config.tokenizer is not None
    model = load_tokenizer(config.tokenizer)
    beam_width = set_beam_width(model, config.beam_width)
    model = model.to(accelerator.device)
    if model.config.modality == "sound":
        results = evaluate_sounds(config, model, accelerator, PICTURE)
        return {"subject": _subject(config.tokenizer, model, beam_width), "results": results, "left_out": {}}
    refuse_sound_network(config.metrics, "tokenizer")
    split = evaluated_split(config.data)
    (rows,) = load_image_splits(config.data, split)
    check_images(model, rows, split)
    metrics = ReconstructionMetrics(config.metrics, model, rows, data_identity(config.data, split), accelerator)
    found = metrics(model, config.batch_size)
    if accelerator.is_main_process:
        output_dir = Path(config.output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        chosen = best_median_worst(found.errors, _COLUMNS)
        (batch,) = rows.batches([chosen], accelerator.device)
        versions = named_reconstructions(model, batch["pixel_values"])
        save_png(reconstruction_grid(versions, len(chosen) // len(_BLOCKS), _BLOCKS), output_dir / PICTURE)
    return {
        "subject": _subject(config.tokenizer, model, beam_width),
        "results": found.results,
        "left_out": metrics.notes,
    }


def _subject(path: str, model: PreTrainedModel, beam_width: int) -> dict[str, Any]:
    layout = model.code_layout() if model.config.has_codes else None
    return {
        "kind": "tokenizer",
        "path": path,
        "weights_sha256": weights_sha256(model),
        "code_layout": None if layout is None else str(layout),
        "bits_per_image": None if layout is None else layout.bits_per_image,
        "beam_width": beam_width,
    }


def best_median_worst(errors: torch.Tensor, number: int) -> torch.Tensor:
    """Indices of the images with the smallest, the middle and the largest errors, `number` each, in ascending order.

    Args:
        errors: (N,).
        number: Images of each kind; of fewer than 3 · number images, a third of them each, at least one.
    """
    order = errors.argsort(stable=True)
    number = max(1, min(number, len(order) // 3))
    middle = (len(order) - number) // 2
    return torch.cat([order[:number], order[middle : middle + number], order[len(order) - number :]])
