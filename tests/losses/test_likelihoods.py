"""Likelihoods of images and label maps against torch.distributions and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from hq_tokenizers.losses.likelihoods import (
    CategoricalLabels,
    GaussianImages,
    SquaredErrorImages,
    VonMisesFisherLabels,
    label_channels,
)

LABELS = torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(1))
DECODED = 2 * torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(2))
IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def test_gaussian_images() -> None:
    decoded = torch.randn(2, 3, 4, 4)
    likelihood = GaussianImages(learned=True)
    torch.nn.init.constant_(likelihood.log_variance, -0.7)
    mean = 1 / (1 + (-decoded.double()).exp())
    expected = -torch.distributions.Normal(mean, np.exp(-0.35)).log_prob(IMAGES.double()).sum() / 2
    assert float(likelihood.nll(decoded, IMAGES).detach()) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(likelihood.outputs(decoded).double(), mean, rtol=1e-5, atol=1e-6)
    assert not list(GaussianImages(learned=False).parameters())


def test_squared_error_images() -> None:
    decoded = torch.randn(2, 3, 4, 4)
    expected = np.mean((torch.special.expit(decoded.double()).numpy() - IMAGES.double().numpy()) ** 2) / 0.06
    assert float(SquaredErrorImages(0.06).nll(decoded, IMAGES)) == pytest.approx(float(expected), rel=1e-5)


def test_categorical_labels() -> None:
    likelihood = CategoricalLabels(5)
    # The sixth channel only makes the number even: it is no class.
    distribution = torch.distributions.Categorical(logits=DECODED[:, :5].double().movedim(1, -1))
    assert float(likelihood.nll(DECODED, LABELS)) == pytest.approx(
        float(-distribution.log_prob(LABELS).sum() / 2), rel=1e-5
    )
    assert torch.equal(likelihood.outputs(DECODED), distribution.probs.argmax(-1))
    inputs = likelihood.inputs(LABELS)
    assert inputs.shape == (2, 6, 3, 4)
    assert torch.equal(inputs.argmax(1), LABELS)
    assert torch.equal(inputs.sum(1), torch.ones(2, 3, 4))


@pytest.mark.parametrize("softplus", [False, True])
def test_von_mises_fisher_labels(softplus: bool) -> None:
    likelihood = VonMisesFisherLabels(5, softplus)
    torch.nn.init.constant_(likelihood.log_inverse_concentration, -np.log(30.0))
    total = 0.0
    for b in range(2):
        for i in range(3):
            for j in range(4):
                direction = DECODED[b, :, i, j].double().numpy()
                direction = np.log1p(np.exp(direction)) if softplus else direction
                density = stats.vonmises_fisher(direction / np.linalg.norm(direction), 30.0)
                total -= float(density.logpdf(np.eye(6)[LABELS[b, i, j]])) / 2
    assert float(likelihood.nll(DECODED, LABELS).detach()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("classes", "channels"), [(2, 2), (3, 4), (19, 20), (20, 20)])
def test_channels_are_even(classes: int, channels: int) -> None:
    assert label_channels(classes) == channels


@pytest.mark.parametrize("decoder_variance", ["batch", "learned"])
@pytest.mark.parametrize("min_variance", [0.0, 2.0])
@pytest.mark.parametrize("size", [4, 9])
def test_the_error_weight_is_the_slope_of_the_loss_over_the_error(decoder_variance, size, min_variance):
    likelihood = GaussianImages(learned=decoder_variance == "learned", min_variance=min_variance)
    if likelihood.log_variance is not None:
        torch.nn.init.constant_(likelihood.log_variance, -1.3)
    images, decoded = torch.rand(3, 2, size, size), torch.randn(3, 2, size, size)

    def loss_and_error(shift):
        moved = decoded + shift
        error = (likelihood.outputs(moved) - images).square().mean()
        return likelihood.nll(moved, images).item(), error.item()

    (low, less), (high, more) = loss_and_error(-1e-2), loss_and_error(1e-2)
    middle = torch.tensor((less + more) / 2)
    weight = likelihood.error_weight(middle, 2 * size**2)
    assert weight.item() == pytest.approx((high - low) / (more - less), rel=1e-2)


def test_the_error_weight_of_the_vq_objective():
    assert SquaredErrorImages(0.05).error_weight(torch.tensor(0.3), 100).item() == pytest.approx(20)
