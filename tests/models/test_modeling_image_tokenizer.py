"""What all tokenizers check of their inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hq_tokenizers import HQImageProcessor, HQVAEConfig, HQVAEModel, SQVAEConfig, SQVAEModel

MODELS = {
    "SQ-VAE": lambda: SQVAEModel(SQVAEConfig(image_size=8, hidden_size=8, num_downsampling=1, codebook_size=8)),
    "HQ-VAE": lambda: HQVAEModel(HQVAEConfig(image_size=8, hidden_size=8, code_groups=["stride 4: 8", "stride 2: 8"])),
}
METHODS = ["forward", "encode", "posterior"]


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]().eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (float("nan"), r"\[nan, nan\]"),
        (float("inf"), r"\[0, inf\]"),
        (1.01, r"\[0, 1\.01\]"),
        (-0.01, r"\[-0\.01, 0\]"),
    ],
)
def test_values_that_are_no_pixels_are_refused(model, method, value, found):
    images = torch.zeros(2, 3, 8, 8)
    images[1, 2, 3, 4] = value
    with pytest.raises(
        ValueError, match=f"must lie in .0, 1., found {found}: divide .0, 255. by 255.*HQImageProcessor"
    ):
        getattr(model, method)(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_of_rounding_is_accepted(model, dtype):
    images = torch.tensor([-5e-4, 1 + 5e-4], dtype=dtype).repeat(1, 3, 8, 4)
    model.to(dtype).encode(images)


def test_values_that_are_not_at_hand_are_not_read(model):
    """Reading them would make a device wait, or break a graph."""
    images = torch.full((1, 3, 8, 8), 7.0)
    compiled = torch.compile(model.encode, backend="eager", fullgraph=True)
    assert compiled(images).batch_size == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Image.new("RGB", (8, 8)), "Image"),
        (np.zeros((8, 8, 3), np.uint8), "ndarray"),
        ("cat.png", "str"),
        ([1], "list"),
    ],
)
def test_what_is_no_tensor_needs_the_processor(model, method, image, name):
    with pytest.raises(TypeError, match=rf"must be a tensor, got {name}: .*HQImageProcessor\.for_config") as caught:
        getattr(model, method)(image)
    assert 'HQImageProcessor.for_config(model.config)(image)["pixel_values"]' in str(caught.value)
    if name in ("Image", "ndarray"):
        assert model.encode(HQImageProcessor.for_config(model.config)(image)["pixel_values"]).batch_size == 1


def test_label_maps_are_tensors_too():
    config = SQVAEConfig(num_classes=5, hidden_size=6, likelihood="categorical", image_size=8, codebook_size=8)
    with pytest.raises(TypeError, match="must be a tensor, got Image"):
        SQVAEModel(config).encode(Image.new("L", (8, 8)))
