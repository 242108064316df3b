"""The von Mises–Fisher normaliser against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

from hq_tokenizers.losses.bessel import log_bessel, log_vmf_normalizer

CONCENTRATIONS = torch.tensor([1e-2, 0.1, 1.0, 5.0, 30.0, 100.0, 1000.0, 1e5], dtype=torch.float64)


@pytest.mark.parametrize("order", [0, 1, 2, 9, 40])
def test_value_and_derivative(order: int) -> None:
    kappa = CONCENTRATIONS.clone().requires_grad_()
    value = log_bessel(order, kappa)
    x = CONCENTRATIONS.numpy()
    # Away from underflow of scipy's own scaled function.
    normal = special.ive(order, x) > 1e-280
    assert normal.sum() >= 6
    expected_value = (np.log(special.ive(order, x)) + x)[normal]
    np.testing.assert_allclose(value.detach().numpy()[normal], expected_value, rtol=1e-10, atol=1e-6)
    (derivative,) = torch.autograd.grad(value.sum(), kappa)
    expected = special.ive(order + 1, x) / special.ive(order, x) + order / x
    np.testing.assert_allclose(derivative.numpy()[normal], expected[normal], rtol=1e-6)


@pytest.mark.parametrize("dimension", [2, 4, 20])
def test_normalizer_is_that_of_scipy(dimension: int) -> None:
    axis = np.eye(dimension)[0]
    for kappa in (0.5, 10.0, 200.0):
        # At its mean direction the density is C_F(κ) exp(κ).
        expected = float(stats.vonmises_fisher(axis, kappa).logpdf(axis)) - kappa
        actual = log_vmf_normalizer(dimension, torch.tensor(kappa))
        assert float(actual) == pytest.approx(expected, rel=1e-6)
