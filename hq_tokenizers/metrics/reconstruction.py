"""MSE, RMSE, PSNR and SSIM between predictions and references."""

from __future__ import annotations

import math
from typing import Any, cast

import datasets
import evaluate
import torch

from hq_tokenizers.metrics.image_inputs import as_pixels, check_pair, quantize, to_unit_range
from hq_tokenizers.metrics.psnr import psnr
from hq_tokenizers.metrics.running.pair_sums import PairSums
from hq_tokenizers.metrics.streaming_metric import StreamingMetric

_SSIM_CONVENTION = (
    "torchmetrics' default: Gaussian window 11×11, σ = 1.5, K1 = 0.01, K2 = 0.03, borders reflected, mean over all "
    "pixels and channels"
)
# Reflection needs more pixels than half a window.
_SSIM_MINIMUM_SIZE = 6
_CITATION = "Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to SSIM, TIP 2004."


class Reconstruction(StreamingMetric[PairSums]):
    """Pixel errors of reconstructions, for values in [0, 1] (uint8 is divided by 255).

    Result, with e the difference of two pixel values and N images:
        * `mse`: mean of e² over all values; `rmse`: its square root.
        * `psnr`: mean over images of −10 log10(image's MSE), in dB, as scikit-image's averaged; an image that is
          reproduced exactly counts as 100 dB. `psnr_of_mse`: −10 log10(`mse`), as torchmetrics' default.
        * `ssim`: mean over images, in torchmetrics' convention (reflected borders). scikit-image leaves out a border of
          5 pixels instead.
        * `provenance`.

    Args:
        **options: See `StreamingMetric`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="MSE, RMSE, PSNR and SSIM of pairs of images.",
            citation=_CITATION,
            inputs_description="predictions, references: images, uint8 or floats in [0, 1], (B, C, H, W), or PIL.",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _new_state(self) -> PairSums:
        return PairSums()

    def _settings(self) -> dict[str, Any]:
        return {"ssim_convention": _SSIM_CONVENTION}

    def _update(self, inputs: dict[str, Any]) -> None:
        predictions = as_pixels(inputs["predictions"], "predictions")
        references = as_pixels(inputs["references"], "references")
        check_pair(predictions, references)
        self._state.references.check_shape(tuple(references.shape[1:]), "references")
        x, y = (to_unit_range(pixels.cpu(), torch.float64) for pixels in (predictions, references))
        squared_error = (x - y).square().flatten(1).mean(dim=1)
        values = {"mse": squared_error, "psnr": psnr(squared_error), "ssim": _ssim(x, y)}
        self._state.update(quantize(references), values)

    def _result(self) -> dict[str, Any]:
        mse = self._state.mean("mse")
        return {
            "mse": mse,
            "rmse": math.sqrt(mse),
            "psnr": self._state.mean("psnr"),
            "psnr_of_mse": psnr(torch.tensor(mse, dtype=torch.float64)).item(),
            "ssim": self._state.mean("ssim"),
            "provenance": self._provenance(self._state.references),
        }


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(x.shape[-2:]) < _SSIM_MINIMUM_SIZE:
        raise ValueError(
            f"SSIM's 11×11 window needs images of at least {_SSIM_MINIMUM_SIZE}×{_SSIM_MINIMUM_SIZE}, got "
            f"{x.shape[-2]}×{x.shape[-1]}: enlarge both sides first."
        )
    similarity = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    return cast(torch.Tensor, similarity).reshape(-1)
