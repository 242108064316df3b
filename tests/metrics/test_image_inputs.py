"""Which images are taken, as what, and what the refusals say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hq_tokenizers.metrics.image_inputs import as_pixels, quantize, to_unit_range


def test_forms_of_one_image_agree() -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    assert torch.equal(as_pixels([Image.fromarray(a) for a in array], "x"), tensor)
    assert torch.equal(as_pixels(list(tensor), "x"), tensor)
    assert torch.equal(quantize(as_pixels(tensor.float() / 255, "x")), tensor)
    assert torch.equal(quantize(as_pixels((tensor.double() / 255), "x")), tensor)
    grey = as_pixels([Image.fromarray(a[..., 0]) for a in array], "x")
    assert torch.equal(grey, tensor[:, :1])
    assert torch.equal(to_unit_range(tensor, torch.float64), tensor.double() / 255)


def test_all_levels_survive_floats() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        floats = (levels.double() / 255).to(dtype)
        if dtype is not torch.bfloat16:  # which has 8 bits of precision, not 8 bits of levels
            assert torch.equal(quantize(as_pixels(floats, "x")), levels)
        assert as_pixels(floats, "x").dtype == (torch.float64 if dtype is torch.float64 else torch.float32)


def test_rounding_noise_around_the_range_is_clamped() -> None:
    pixels = as_pixels(torch.tensor([-1e-6, 1 + 1e-6]).view(1, 1, 1, 2), "x")
    assert pixels.aminmax() == (0, 1)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 3, 4, 4) * 255, ValueError, r"these in \[.*\]: for values 0 to 255 pass uint8 or divide by 255"),
        (torch.rand(1, 3, 4, 4) - 0.9, ValueError, r"use \(images \+ 1\) / 2; a decoder's output is not clamped"),
        (torch.rand(1, 3, 4, 4) + 0.5, ValueError, r"not clamped, use images.clamp\(0, 1\)"),
        (torch.full((1, 1, 2, 2), torch.nan), ValueError, "image 0 of the batch has NaN or infinite"),
        (torch.full((1, 1, 2, 2), torch.inf), ValueError, "image 0 of the batch has NaN or infinite"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), TypeError, r"got torch.int64. Use images.to\(torch.uint8\)"),
        (torch.rand(3, 4, 4), ValueError, r"got the shape \(3, 4, 4\). Add the batch dimension with images\[None\]"),
        (torch.rand(2, 4, 4, 3), ValueError, r"Channels come first: use images.permute\(0, 3, 1, 2\)"),
        (torch.rand(2, 4, 4, 4), ValueError, r"C = 1 or 3.*got the shape \(2, 4, 4, 4\)\.$"),
        (torch.rand(4, 4), ValueError, r"got the shape \(4, 4\)"),
        (torch.rand(0, 3, 4, 4), ValueError, "holds no pixels"),
        (np.zeros((1, 3, 4, 4)), TypeError, "got ndarray"),
        (Image.new("RGB", (4, 4)), TypeError, "a list of PIL images; got Image"),
        ([], ValueError, "the list of images is empty"),
        (["a.png"], TypeError, "got a list of str"),
        ([Image.new("RGBA", (4, 4))], ValueError, r"got 'RGBA': use image.convert\(\"RGB\"\)"),
        ([Image.new("L", (4, 4)), Image.new("RGB", (4, 4))], ValueError, r"got \(1, 4, 4\) and \(3, 4, 4\)"),
        ([torch.zeros(1, 4, 4).byte(), torch.zeros(1, 4, 4)], TypeError, "got torch.uint8 and torch.float32: give all"),
        ([Image.new("L", (4, 4)), Image.new("L", (4, 5))], ValueError, r"got \(1, 4, 4\) and \(1, 5, 4\): resize"),
    ],
)
def test_refusals(images: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        as_pixels(images, "predictions")
    assert str(caught.value).startswith("predictions: ")


def test_pil_images_are_upright() -> None:
    array = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    expected = torch.from_numpy(np.rot90(array, -1).copy()).permute(2, 0, 1)
    assert torch.equal(as_pixels([image], "x")[0], expected)
