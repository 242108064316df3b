"""Finite scalar quantisation against a float64 transcription of the authors' published snippet, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hq_tokenizers.quantization.finite_scalar import FiniteScalarQuantizer

LEVELS = [(8, 5, 5, 5), (3,), (2, 4, 7)]


def latents(levels: tuple[int, ...], batch: int = 3) -> torch.Tensor:
    return 2 * torch.randn(batch, 4, 5, len(levels), generator=torch.Generator().manual_seed(len(levels)))


def reference(z: np.ndarray, levels: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Code vectors (…, d) and codes (…,)."""
    sizes = np.array(levels)
    half = (sizes - 1) * (1 - 1e-3) / 2
    offset = np.where(sizes % 2 == 1, 0.0, 0.5)
    rounded = np.round(np.tanh(z + np.tan(offset / half)) * half - offset).astype(int)
    digits = rounded + sizes // 2
    # NumPy's last index runs fastest, the paper's first.
    index = np.ravel_multi_index(tuple(np.moveaxis(digits[..., ::-1], -1, 0)), levels[::-1])
    return rounded / (sizes // 2), index


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_vectors(levels: tuple[int, ...]) -> None:
    module, z = FiniteScalarQuantizer(levels), latents(levels)
    output = module(z, None)
    vectors, indices = reference(z.double().numpy(), levels)
    assert np.array_equal(output.indices[..., 0].numpy(), indices)
    np.testing.assert_allclose(output.quantized.numpy(), vectors, atol=1e-6)
    assert torch.equal(module.embed(output.indices)[0], output.quantized)
    assert torch.equal(module.codes[output.indices[..., 0]], output.quantized)
    assert (output.terms, list(module.state_dict())) == ({}, [])


@pytest.mark.parametrize("levels", LEVELS)
def test_the_gradient_is_that_of_the_bounded_values(levels: tuple[int, ...]) -> None:
    z, cotangent = latents(levels).requires_grad_(), torch.randn(3, 4, 5, len(levels))
    (gradient,) = torch.autograd.grad(FiniteScalarQuantizer(levels)(z, torch.tensor(1.0)).quantized, z, cotangent)
    for channel, size in enumerate(levels):
        half = (size - 1) * 0.999 / 2
        shift = 0.0 if size % 2 else math.tan(0.5 / half)
        slope = half / np.cosh(z[..., channel].detach().double().numpy() + shift) ** 2 / (size // 2)
        np.testing.assert_allclose(
            gradient[..., channel], slope * cotangent[..., channel].numpy(), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_the_code_of_some_latent(levels: tuple[int, ...]) -> None:
    module = FiniteScalarQuantizer(levels)
    assert len(module.codes.unique(dim=0)) == module.num_codes == math.prod(levels)
    assert float(module.codes.abs().max()) <= 1
    assert len(module(latents(levels, batch=5000), None).indices.unique()) == module.num_codes


def test_extreme_latents_and_autocast() -> None:
    module = FiniteScalarQuantizer((8, 5))
    extremes = torch.tensor([[-1e30, 1e30], [1e30, -1e30]]).reshape(1, 1, 2, 2)
    assert module(extremes, None).indices.flatten().tolist() == [0 + 8 * 4, 7 + 8 * 0]
    z = latents((8, 5))
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(z, None)
    assert torch.equal(inside.quantized, module(z, None).quantized)
