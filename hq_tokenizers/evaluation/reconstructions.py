"""What a tokenizer keeps of a split's images: pixel errors, perceptual distances and codebook usage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.metrics.codebook_usage import CodebookUsage
from hq_tokenizers.metrics.reconstruction import Reconstruction
from hq_tokenizers.metrics.segmentation import Segmentation
from hq_tokenizers.metrics.streaming_metric import StreamingMetric
from hq_tokenizers.options.evaluation import MetricConfig
from hq_tokenizers.reporting.tracking import Record, progress_bar

from .decoding import encode_and_decode
from .networks import Notes, as_rgb, build_fid, build_lpips, finish, unless_impossible

Results = dict[str, dict[str, Any]]
# What is reported of the reconstructions from the first levels only.
_PARTIAL_FIGURES = ("mse", "psnr", "lpips", "pixel_accuracy", "mean_iou")
# What training learns from them in addition to its validation.
_NEW_FIGURES = ("ssim", "lpips", "rfid", "frechet_distance")


@dataclass(frozen=True)
class Reconstructions:
    """What was found.

    Args:
        results: By metric, its figures and their provenance: "reconstruction" and "lpips", or "segmentation" for label
            maps; "rfid"; "codebook_usage"; and of a hierarchy "partial": lists over the first 1, …, L levels.
        errors: (N,) float64: each image's mean squared error, or share of wrong pixels, in the order of the rows.
    """

    results: Results
    errors: torch.Tensor


class ReconstructionMetrics:
    """The metrics of a tokenizer on one split, for any number of evaluations.

    Args:
        config: Which networks judge.
        model: The tokenizer, or one of the same configuration.
        rows: The images.
        identity: Options of every metric that name the images: reference_name, reference_split, resize_filter.
        accelerator: Whose processes share the work.

    Raises:
        OSError, ValueError: If a network that was asked for by name cannot be had or does not fit the images; what
            "auto" cannot have is left out, and `notes` say why.
    """

    def __init__(
        self,
        config: MetricConfig,
        model: PreTrainedModel,
        rows: ImageRows,
        identity: Mapping[str, Any],
        accelerator: Accelerator,
    ) -> None:
        self.notes: Notes = {}
        self._rows = rows
        self._accelerator = accelerator
        self._identity = dict(identity)
        self._usage = CodebookUsage(**self._identity) if model.config.has_codes else None
        self._num_levels = 1 if self._usage is None else model.code_layout().num_levels
        # One process downloads weights, the others find them.
        with accelerator.local_main_process_first():
            self._levels = [self._level(config, model) for _ in range(self._num_levels)]
            self._fid = None if model.config.for_label_maps else self._distance(config)

    def __call__(self, model: PreTrainedModel, batch_size: int) -> Reconstructions:
        """Evaluates the deterministic reconstructions, on every process with the same result.

        Args:
            model: An image tokenizer in evaluation mode.
            batch_size: Images at a time; the figures do not depend on it, up to the rounding of convolutions.
        """
        processes, index = self._accelerator.num_processes, self._accelerator.process_index
        shares = validation_batches(len(self._rows), batch_size, processes, index)
        batches = self._rows.batches(shares, self._accelerator.device)
        title, active = "reconstructing", self._accelerator.is_main_process
        errors = [
            (indices, self._add(model, batch["pixel_values"]).double().cpu())
            for indices, batch in zip(shares, progress_bar(batches, len(shares), title, active), strict=True)
        ]
        return Reconstructions(self._results(), _in_order(errors, len(self._rows), processes))

    def _level(self, config: MetricConfig, model: PreTrainedModel) -> dict[str, StreamingMetric[Any]]:
        """The metrics of pairs of images, for the reconstructions from one number of levels."""
        if model.config.for_label_maps:
            return {"segmentation": Segmentation(num_classes=model.config.num_classes, **self._identity)}
        metrics: dict[str, StreamingMetric[Any]] = {"reconstruction": Reconstruction(**self._identity)}
        if config.lpips is not None and "lpips" not in self.notes:
            automatic = config.lpips == "auto" and config.lpips_weights is None
            form = self._rows.image_format
            size = form.height, form.width
            lpips = unless_impossible("lpips", automatic, self.notes, lambda: build_lpips(config, size, self._identity))
            metrics |= {} if lpips is None else {"lpips": lpips}
        return metrics

    def _distance(self, config: MetricConfig) -> StreamingMetric[Any] | None:
        if config.features is None:
            return None
        automatic = config.features == "auto" and config.feature_weights is None
        number = len(self._rows)
        return unless_impossible(
            "rfid", automatic, self.notes, lambda: build_fid(config, number, number, **self._identity)
        )

    def _add(self, model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
        """Adds a batch to every metric and returns each image's error; reconstructions are clamped to [0, 1]."""
        codes, decoded = encode_and_decode(model, pixel_values)
        reconstructions = [images.float().clamp(0, 1) if images.is_floating_point() else images for images in decoded]
        if self._usage is not None:
            self._usage.add_batch(codes=codes)
        for metrics, reconstruction in zip(self._levels, reconstructions, strict=True):
            for name, metric in metrics.items():
                predictions, references = reconstruction, pixel_values
                if name == "lpips":
                    predictions, references = as_rgb(predictions), as_rgb(references)
                metric.add_batch(predictions=predictions, references=references)
        whole = reconstructions[-1]
        if not pixel_values.is_floating_point():
            return (whole != pixel_values).flatten(1).float().mean(1)
        if self._fid is not None:
            self._fid.add_batch(predictions=as_rgb(whole), references=as_rgb(pixel_values))
        return (whole - pixel_values).square().flatten(1).mean(1)

    def _results(self) -> Results:
        levels = [{name: finish(metric) for name, metric in metrics.items()} for metrics in self._levels]
        results: Results = dict(levels[-1])
        if self._fid is not None:
            distance = finish(self._fid)
            results["rfid"] = {"rfid" if name == "fid" else name: value for name, value in distance.items()}
        if self._usage is not None:
            results["codebook_usage"] = finish(self._usage)
        if len(levels) > 1:
            flat = [{name: value for result in level.values() for name, value in result.items()} for level in levels]
            results["partial"] = {name: [level[name] for level in flat] for name in _PARTIAL_FIGURES if name in flat[0]}
        return results


def evaluation_figures(results: Results) -> Record:
    """The figures that validation lacks, as a flat record: numbers, and lists by the number of levels."""
    record: Record = {f"{name}_by_levels": values for name, values in results.get("partial", {}).items()}
    for metric, figures in results.items():
        if metric not in ("partial", "codebook_usage"):
            record |= {name: figures[name] for name in _NEW_FIGURES if name in figures}
    return record


def _in_order(parts: list[tuple[torch.Tensor, torch.Tensor]], number: int, processes: int) -> torch.Tensor:
    """The values of all processes' (indices, values), by index."""
    values = torch.empty(number, dtype=torch.float64)
    for indices, part in gather_object(parts) if processes > 1 else parts:
        values[indices] = part
    return values
