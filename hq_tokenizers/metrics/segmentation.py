"""Pixel accuracy and mean intersection over union of label maps."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import torch

from hq_tokenizers.checks import is_list
from hq_tokenizers.metrics.running.confusion import Confusion
from hq_tokenizers.metrics.streaming_metric import StreamingMetric


class Segmentation(StreamingMetric[Confusion]):
    """Agreement of label maps, from one confusion matrix over all pixels added.

    Result:
        * `pixel_accuracy`: share of pixels with the reference's class.
        * `mean_iou`: mean of TP / (TP + FP + FN) over the classes that occur on either side.
        * `iou_per_class`: those values, None for a class on neither side and for the ignored one.
        * `provenance`.

    Args:
        num_classes: Number of classes C; labels lie in [0, C).
        ignore_index: A reference label whose pixels do not count, such as "void"; in [0, C) or outside. Predicting it
            where the reference has a real class is a mistake.
        **options: See `StreamingMetric`.

    Raises:
        ValueError: If `num_classes` is below 2.
    """

    def __init__(self, *, num_classes: int, ignore_index: int | None = None, **options: Any) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        self._num_classes = num_classes
        self._ignore_index = ignore_index
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.List(datasets.List(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Pixel accuracy and mean intersection over union of label maps.",
            citation="",
            inputs_description='predictions, references: integer tensors (B, H, W), or PIL images of mode "L" or "P".',
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _new_state(self) -> Confusion:
        return Confusion(torch.zeros(self._num_classes, self._num_classes, dtype=torch.long))

    def _settings(self) -> dict[str, Any]:
        return {"num_classes": self._num_classes, "ignore_index": self._ignore_index}

    def _update(self, inputs: dict[str, Any]) -> None:
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        predictions = _label_maps(inputs["predictions"], "predictions")
        references = _label_maps(inputs["references"], "references")
        if predictions.shape != references.shape:
            raise ValueError(
                f"Predictions {tuple(predictions.shape)} and references {tuple(references.shape)} are compared pixel "
                "by pixel and must have one shape (B, H, W): resize one side first (nearest neighbour)."
            )
        self._check_range(predictions, "predictions", None)
        self._check_range(references, "references", self._ignore_index)
        self._state.references.update(references, "references")
        self._state.matrix += multiclass_confusion_matrix(
            predictions, references, self._num_classes, ignore_index=self._ignore_index, validate_args=False
        )

    def _check_range(self, labels: torch.Tensor, side: str, ignored: int | None) -> None:
        wrong = (labels < 0) | (labels >= self._num_classes)
        if ignored is not None:
            wrong &= labels != ignored
        if wrong.any():
            raise ValueError(
                f"{side}: labels lie in [0, {self._num_classes}), found {int(labels[wrong][0])}. Raise num_classes, or "
                "pass ignore_index for a label of references that does not count."
            )

    def _result(self) -> dict[str, Any]:
        counted = int(self._state.matrix.sum())
        if not counted:
            raise ValueError(f"Every reference pixel has the ignored label {self._ignore_index}: nothing to measure.")
        iou = self._state.intersection_over_union()
        if self._ignore_index is not None and 0 <= self._ignore_index < self._num_classes:
            iou[self._ignore_index] = torch.nan
        return {
            "pixel_accuracy": int(self._state.matrix.trace()) / counted,
            "mean_iou": float(iou.nanmean()),
            "iou_per_class": [None if torch.isnan(value) else float(value) for value in iou],
            "provenance": self._provenance(self._state.references),
        }


def _label_maps(maps: Any, side: str) -> torch.Tensor:
    accepted = 'label maps are an integer tensor (B, H, W) or a list of PIL images of mode "L" or "P"'
    if is_list(maps) and not isinstance(maps, torch.Tensor) and len(maps):
        tensors = [m if isinstance(m, torch.Tensor) else _from_pil(m, f"{side}: {accepted}") for m in maps]
        if len({tensor.shape for tensor in tensors}) != 1:
            raise ValueError(f"{side}: label maps of one batch must have one size; resize them (nearest neighbour).")
        maps = torch.stack(tensors)
    if not isinstance(maps, torch.Tensor) or maps.dtype.is_floating_point or maps.dtype.is_complex:
        kind = maps.dtype if isinstance(maps, torch.Tensor) else type(maps).__name__
        raise TypeError(f"{side}: {accepted}; got {kind}. Class scores (B, C, H, W) become labels by argmax(dim=1).")
    if maps.ndim != 3 or not maps.numel():
        raise ValueError(f"{side}: {accepted}; got the shape {tuple(maps.shape)}.")
    return maps.long().cpu()


def _from_pil(image: Any, message: str) -> torch.Tensor:
    import numpy as np
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise TypeError(f"{message}; got a list of {type(image).__name__}.")
    if image.mode not in ("L", "P"):
        raise ValueError(f"{message}; got mode {image.mode!r}.")
    return torch.from_numpy(np.array(image))
