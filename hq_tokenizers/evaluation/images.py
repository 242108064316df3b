"""Judging a folder of images against a split, another folder or saved statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.loading import load_image_folder
from hq_tokenizers.metrics.reconstruction import Reconstruction
from hq_tokenizers.metrics.streaming_metric import StreamingMetric
from hq_tokenizers.options.evaluation import EvaluateConfig

from .image_sets import SetComparison, check_sizes, share_of_images
from .networks import Notes, as_rgb, build_lpips, finish, unless_impossible
from .reconstructions import Results
from .references import Reference, load_reference


def evaluate_images(config: EvaluateConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Evaluates the folder `config.images`; returns the report but for its options, see `write_evaluation`.

    Raises:
        OSError, ValueError: If images, reference and metrics do not fit together.
    """
    assert config.images is not None
    reference = load_reference(config)
    rows, names = load_image_folder(config.data, config.images, "images")
    size = rows.image_format.height, rows.image_format.width
    notes: Notes = {}
    pairs = _pair_metrics(config, rows, names, reference, notes, accelerator) if config.pairs else {}
    sets = None
    if config.metrics.features is not None:
        asked = config.kid or config.inception_score or config.precision_recall or config.save_reference is not None
        automatic = config.metrics.features == "auto" and config.metrics.feature_weights is None
        sets = unless_impossible(
            "fid",
            automatic and config.pairs and not asked,
            notes,
            lambda: SetComparison(config, reference, len(rows), size, accelerator),
        )
    results: Results = {}
    if pairs:
        _add_pairs(pairs, rows, reference.rows, config.batch_size, accelerator)
        results |= {name: finish(metric) for name, metric in pairs.items()}
    if sets is not None:
        results["fid"] = sets.compare(share_of_images(rows, config.batch_size, accelerator, "images"))
    subject = {"kind": "images", "path": str(Path(config.images)), "num_images": len(rows)}
    return {"subject": subject, "results": results, "left_out": notes}


def _pair_metrics(
    config: EvaluateConfig,
    rows: ImageRows,
    names: list[str],
    reference: Reference,
    notes: Notes,
    accelerator: Accelerator,
) -> dict[str, StreamingMetric[Any]]:
    assert reference.names is not None
    assert reference.rows is not None
    _check_names(names, reference.names)
    size = rows.image_format.height, rows.image_format.width
    check_sizes(size, reference)
    metrics: dict[str, StreamingMetric[Any]] = {"reconstruction": Reconstruction(**reference.identity)}
    if config.metrics.lpips is not None:
        automatic = config.metrics.lpips == "auto" and config.metrics.lpips_weights is None
        with accelerator.local_main_process_first():
            lpips = unless_impossible(
                "lpips", automatic, notes, lambda: build_lpips(config.metrics, size, reference.identity)
            )
        metrics |= {} if lpips is None else {"lpips": lpips}
    return metrics


def _add_pairs(
    metrics: dict[str, StreamingMetric[Any]],
    rows: ImageRows,
    reference: ImageRows | None,
    batch_size: int,
    accelerator: Accelerator,
) -> None:
    assert reference is not None
    originals = share_of_images(reference, batch_size, accelerator, "pairs")
    for images, references in zip(share_of_images(rows, batch_size, accelerator, ""), originals, strict=True):
        for metric in metrics.values():
            metric.add_batch(predictions=as_rgb(images), references=as_rgb(references))


def _check_names(names: list[str], references: list[str]) -> None:
    for side, there, option in ((names, references, "reference"), (references, names, "images")):
        missing = sorted(set(side) - set(there))
        if missing:
            raise ValueError(
                f"pairs: {option} lacks {len(missing)} of the other folder's images, such as {', '.join(missing[:3])}."
            )
        if len(set(side)) < len(side):
            raise ValueError("pairs: two images of a folder have the same name but for their ending.")
