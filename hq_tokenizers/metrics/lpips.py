"""LPIPS between predictions and references, averaged over images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import evaluate
import torch

from hq_tokenizers.metrics.image_inputs import as_pixels, check_pair, check_rgb, quantize, to_unit_range
from hq_tokenizers.metrics.pretrained.lpips_network import NetType, load_lpips
from hq_tokenizers.metrics.running.pair_sums import PairSums
from hq_tokenizers.metrics.streaming_metric import StreamingMetric

_CITATION = "Zhang, Isola, Efros, Shechtman, Wang: The Unreasonable Effectiveness of Deep Features, CVPR 2018."


class LPIPS(StreamingMetric[PairSums]):
    """Learned perceptual image patch similarity, LPIPS v0.1 as torchmetrics computes it; lower is more alike.

    Result: `lpips`, the mean over images, and `provenance`.

    Args:
        net_type: "squeeze", "alex" or "vgg".
        weights: The backbone's weight file; default torchvision's, from torch's hub cache or downloaded.
        device: Where the network runs; default where each batch is.
        **options: See `StreamingMetric`.

    Raises:
        OSError, ValueError: If the weights cannot be had, saying how to get them.
    """

    def __init__(
        self,
        *,
        net_type: NetType = "squeeze",
        weights: str | Path | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        self._network = load_lpips(net_type, weights)
        self._device = device
        super().__init__(**options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Learned perceptual image patch similarity of pairs of images.",
            citation=_CITATION,
            inputs_description="predictions, references: RGB images, uint8 or floats in [0, 1], (B, 3, H, W), or PIL.",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _new_state(self) -> PairSums:
        return PairSums()

    def _settings(self) -> dict[str, Any]:
        return {"feature_network": self._network.describe()}

    def _update(self, inputs: dict[str, Any]) -> None:
        predictions = as_pixels(inputs["predictions"], "predictions")
        references = as_pixels(inputs["references"], "references")
        check_pair(predictions, references)
        check_rgb(predictions, "predictions and references", "LPIPS")
        self._state.references.check_shape(tuple(references.shape[1:]), "references")
        device = self._device or references.device
        pair = [to_unit_range(pixels.to(device)) for pixels in (predictions, references)]
        distances = self._network.to(device)(*pair)
        self._state.update(quantize(references), {"lpips": distances})

    def _result(self) -> dict[str, Any]:
        provenance = self._provenance(self._state.references)
        provenance["feature_network"] = {**self._network.describe(), "weights_file": self._network.weights_file}
        return {"lpips": self._state.mean("lpips"), "provenance": provenance}
