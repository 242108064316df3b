from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.distributions import Normal

from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.priors import bits_per_dimension
from hq_tokenizers.priors.likelihood import code_cross_entropy
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel


def test_rate_of_the_codes_alone() -> None:
    # 16 codes of 8 bits each over 64 pixels are 2 bits per dimension.
    log_prob = torch.tensor([-16 * math.log(256.0), 0.0])
    assert bits_per_dimension(log_prob, 64).tolist() == pytest.approx([2, 0])


def test_a_uniform_density_over_grey_levels_has_eight_bits() -> None:
    # Density 1 over [0, 1]: nothing is known, each of the 256 levels has probability 1/256.
    assert bits_per_dimension(torch.zeros(1), 48, decoder_nll=0.0, pixel_levels=256).item() == pytest.approx(8)


def test_the_bound_of_a_tiny_model_and_its_tightness() -> None:
    """x | k ~ Normal(μ_k, σ), k of 3 codes: with q the exact posterior the bound is −log p(x), else it is above."""
    prior, means, sigma = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.1, 0.5, 0.8]).double(), 0.2
    x = torch.tensor(0.37).double()
    joint = prior.log() + Normal(means, sigma).log_prob(x)
    exact = -joint.logsumexp(0) / math.log(2)

    def bound(q: torch.Tensor) -> torch.Tensor:
        nll, log_prob = -(q * Normal(means, sigma).log_prob(x)).sum(), (q * prior.log()).sum()
        return bits_per_dimension(log_prob, 1, nll, torch.special.entr(q).sum())

    assert bound(joint.softmax(0)).item() == pytest.approx(exact.item(), abs=1e-12)
    for q in ([1.0, 0, 0], [0, 1.0, 0], [0.2, 0.5, 0.3]):
        assert bound(torch.tensor(q).double()) > exact


def test_units_of_a_prior(make_either: Callable[..., CodePriorModel], random_codes: Callable) -> None:
    layout = CodeLayout((CodeGroup(1, 1, (4,)), CodeGroup(2, 2, (3,))))
    model, codes = make_either(layout), random_codes(layout, 3)
    log_prob = model.log_prob(codes).detach()
    expected = -log_prob.double() / math.log(2) / 64 + 0.5 / math.log(2)
    torch.testing.assert_close(bits_per_dimension(log_prob, 64, decoder_nll=torch.full((3,), 32.0)).double(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_dimensions": 0}, "num_dimensions must be at least 1, the number of pixel values, got 0"),
        ({"num_dimensions": 4, "pixel_levels": 1}, r"pixel_levels must be at least 2 \(256 for 8 bits\), got 1"),
    ],
)
def test_bad_counts(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bits_per_dimension(torch.zeros(1), **arguments)


def test_cross_entropy_works_in_float32_and_more() -> None:
    logits, codes = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    expected = -logits.double().log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(code_cross_entropy(logits.double(), codes), expected)
    assert code_cross_entropy(logits.bfloat16(), codes).dtype == torch.float32
