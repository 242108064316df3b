"""Pixel errors against scikit-image, torchmetrics and hand-computed values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import skimage.metrics
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from hq_tokenizers.metrics.reconstruction import Reconstruction


@pytest.fixture(params=[1, 3], ids=["grey", "colour"])
def pair(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """Floats (5, C, 20, 24): smooth references, noisy predictions of growing noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(5, request.param, 5, 6, generator=generator)
    references = torch.nn.functional.interpolate(coarse, (20, 24), mode="bilinear")
    noise = torch.randn(references.shape, generator=generator) * torch.linspace(0.01, 0.2, 5).view(5, 1, 1, 1)
    return (references + noise).clamp(0, 1), references


def test_agrees_with_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, references = pair
    result = Reconstruction().compute(predictions=predictions, references=references)
    x, y = (images.double().permute(0, 2, 3, 1).numpy() for images in pair)
    mses = [skimage.metrics.mean_squared_error(b, a) for a, b in zip(x, y, strict=True)]
    psnrs = [skimage.metrics.peak_signal_noise_ratio(b, a, data_range=1.0) for a, b in zip(x, y, strict=True)]
    assert result["mse"] == pytest.approx(np.mean(mses), rel=1e-12)
    assert result["rmse"] == pytest.approx(math.sqrt(np.mean(mses)), rel=1e-12)
    assert result["psnr"] == pytest.approx(np.mean(psnrs), rel=1e-12)
    assert result["psnr_of_mse"] == pytest.approx(10 * math.log10(1 / np.mean(mses)), rel=1e-12)

    # scikit-image leaves a border of half a window out of the mean; with reflected borders around the image, what
    # remains are the windows ours averages over.
    def ssim(a: np.ndarray, b: np.ndarray) -> float:
        padded = [np.pad(image, ((5, 5), (5, 5), (0, 0)), mode="reflect") for image in (a, b)]
        return skimage.metrics.structural_similarity(
            *padded, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=2
        )

    assert result["ssim"] == pytest.approx(np.mean([ssim(a, b) for a, b in zip(x, y, strict=True)]), rel=1e-9)
    assert 0.1 < result["ssim"] < 0.99


def test_agrees_with_torchmetrics(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    result = Reconstruction().compute(predictions=pair[0], references=pair[1])
    ssim, psnr = StructuralSimilarityIndexMeasure(data_range=1.0), PeakSignalNoiseRatio(data_range=1.0)
    psnr_per_image = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3))
    for metric in (ssim, psnr, psnr_per_image):
        metric.update(*pair)
    assert result["ssim"] == pytest.approx(float(ssim.compute()), rel=1e-5)
    assert result["psnr"] == pytest.approx(float(psnr_per_image.compute()), rel=1e-5)
    assert result["psnr_of_mse"] == pytest.approx(float(psnr.compute()), rel=1e-5)


def test_streaming_and_8_bit_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    predictions, references = ((images * 255).round().to(torch.uint8) for images in pair)
    metric = Reconstruction()
    for part in range(0, 5, 2):
        metric.add_batch(predictions=predictions[part : part + 2], references=references[part : part + 2])
    streamed = metric.compute()
    whole = metric.compute(predictions=predictions.double() / 255, references=references.double() / 255)
    assert streamed.pop("provenance") == whole.pop("provenance")
    assert streamed == pytest.approx(whole, rel=1e-12)


def test_hand_computed() -> None:
    black, grey = torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), 0.5)
    grey[1] = 0.1
    result = Reconstruction().compute(predictions=grey, references=black)
    assert result["mse"] == pytest.approx((0.25 + 0.01) / 2, rel=1e-6)
    assert result["psnr"] == pytest.approx((-10 * math.log10(0.25) + 20) / 2, rel=1e-6)
    # Constant images: SSIM = (2μμ' + c₁)/(μ² + μ'² + c₁) with c₁ = 0.01².
    assert result["ssim"] == pytest.approx((1e-4 / (0.25 + 1e-4) + 1e-4 / (0.01 + 1e-4)) / 2, rel=1e-5)


def test_exact_reconstruction() -> None:
    images = torch.rand(2, 3, 16, 16)
    result = Reconstruction().compute(predictions=images, references=images)
    assert result["mse"] == 0
    assert result["psnr"] == result["psnr_of_mse"] == 100
    assert result["ssim"] == pytest.approx(1)


def test_provenance() -> None:
    images = torch.rand(2, 1, 16, 20)
    metric = Reconstruction(reference_name="noise", reference_split="test", resize_filter="box")
    provenance = metric.compute(predictions=images, references=images)["provenance"]
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["metric"] == "reconstruction"
    assert provenance["image_size"] == [16, 20]
    assert "borders reflected" in provenance["ssim_convention"]


def test_refusals() -> None:
    metric = Reconstruction()
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(ValueError, match="compared image by image and must have one shape"):
        metric.add_batch(predictions=images, references=torch.rand(2, 3, 32, 32))
    with pytest.raises(TypeError, match="rounding only one side to 8 bits"):
        metric.add_batch(predictions=images, references=images.byte())
    with pytest.raises(ValueError, match="at least 6×6, got 5×16"):
        metric.add_batch(predictions=images[:, :, :5], references=images[:, :, :5])
    assert len(metric) == 0
    metric.add_batch(predictions=images, references=images)
    with pytest.raises(ValueError, match=r"so far \(3, 16, 16\), now \(1, 16, 16\)"):
        metric.add_batch(predictions=images[:, :1], references=images[:, :1])
