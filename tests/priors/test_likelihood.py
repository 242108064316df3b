from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.distributions import Normal

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors import bits_per_dimension
from hq_tokenizers.priors.likelihood import code_cross_entropy, dense_soft_targets
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


def test_units_of_a_prior(make_any: Callable[..., CodePriorModel], random_codes: Callable) -> None:
    layout = CodeLayout((CodeGroup(1, 1, (4,)), CodeGroup(2, 2, (3,))))
    model, codes = make_any(layout), random_codes(layout, 3)
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


def test_dense_soft_targets_by_a_loop(layout: CodeLayout, random_codes: Callable[..., Codes]) -> None:
    kept = torch.stack([random_codes(layout, 3, seed=seed).flatten() for seed in range(4)], dim=-1)
    weights = torch.rand(kept.shape)
    dense, place, first = dense_soft_targets(layout, kept, weights), 0, 0
    for group in layout.groups:
        for position in range(group.num_positions):
            for depth, size in enumerate(group.codebook_sizes):
                expected = torch.zeros(3, size, dtype=torch.float64)
                for image in range(3):
                    for code, weight in zip(kept[image, place].tolist(), weights[image, place].tolist(), strict=True):
                        expected[image, code] += weight / weights[image, place].double().sum()
                torch.testing.assert_close(dense[first + depth][:, position].double(), expected, atol=1e-6, rtol=0)
                place += 1
        first += group.depth


def test_loss_of_truncated_soft_targets_in_float64(
    make_any: Callable[..., CodePriorModel], layout: CodeLayout, random_codes: Callable[..., Codes]
) -> None:
    """The whole way from k likeliest codes to the loss, against a loop over codes in float64."""
    model, codes = make_any(layout), random_codes(layout, 6)
    other = random_codes(layout, 6, seed=1).flatten()
    kept = torch.stack([codes.flatten(), other], dim=-1)
    weights = torch.rand(kept.shape).softmax(-1)
    torch.manual_seed(0)
    output = model(codes, soft_targets=dense_soft_targets(layout, kept, weights))
    asked = getattr(output, "predicted", None) or [torch.ones(p.shape[:2], dtype=torch.bool) for p in output.logits]
    total, count, place, first = torch.zeros(6).double(), torch.zeros(6).double(), 0, 0
    for group in layout.groups:
        for position in range(group.num_positions):
            for level in range(first, first + group.depth):
                log_p = output.logits[level][:, position].detach().double().log_softmax(-1)
                q = weights[:, place].double() / weights[:, place].double().sum(-1, keepdim=True)
                entropy = -(q * log_p.gather(1, kept[:, place])).sum(-1)
                total += entropy * asked[level][:, position]
                count += asked[level][:, position]
                place += 1
        first += group.depth
    torch.testing.assert_close(output.loss.detach().double(), (total / count).mean(), rtol=1e-6, atol=0)


def test_certain_soft_targets_are_the_codes(
    make_any: Callable[..., CodePriorModel], layout: CodeLayout, random_codes: Callable[..., Codes]
) -> None:
    model, codes = make_any(layout, label_smoothing=0.1, label_dropout=0.0).train(), random_codes(layout, 6)
    kept = codes.flatten()[:, :, None].expand(-1, -1, 2) * torch.tensor([1, 0])
    certain = dense_soft_targets(layout, kept, torch.tensor([1.0, 0.0]).expand(kept.shape))
    losses = []
    for soft_targets in (None, certain):
        torch.manual_seed(0)
        losses.append(model(codes, soft_targets=soft_targets).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    torch.manual_seed(0)
    model.eval()
    hard = model(codes).loss
    torch.manual_seed(0)
    assert torch.equal(model(codes, soft_targets=certain).loss, hard)
