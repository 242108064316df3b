from __future__ import annotations

import math

import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hq_tokenizers.priors.sampling import LevelSampling, apply_guidance, filter_logits, guidance_scales, sample_codes
from hq_tokenizers.randomness import sample_gumbel

LOGITS = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [0, 1, 5, 100])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_filters_agree_with_the_warpers_of_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    expected = TemperatureLogitsWarper(temperature)(None, LOGITS)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    actual = filter_logits(LOGITS, LevelSampling(temperature, top_k, top_p, min_p))
    torch.testing.assert_close(actual, expected)


def test_filters_work_in_float32_whatever_comes_in() -> None:
    assert filter_logits(LOGITS.bfloat16(), LevelSampling(top_p=0.9)).dtype == torch.float32


def test_race_samples_the_softmax() -> None:
    logits = LOGITS[0, :5]
    gumbel = sample_gumbel((20_000, 5), [torch.Generator().manual_seed(1)])[0]
    counts = torch.bincount(sample_codes(logits.expand(20_000, 5), gumbel, LevelSampling()), minlength=5)
    expected = logits.double().softmax(-1) * 20_000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 99.9 % quantile with 4 degrees of freedom


def test_temperature_zero_takes_the_likeliest_code_whatever_the_noise() -> None:
    gumbel = 1e3 * torch.randn(6, 40)
    assert torch.equal(sample_codes(LOGITS, gumbel, LevelSampling(temperature=0)), LOGITS.argmax(-1))


def test_guidance_is_u_plus_s_times_c_minus_u() -> None:
    conditional, unconditional = torch.randn(2, 3, 5)
    both = torch.cat([conditional, unconditional])
    torch.testing.assert_close(apply_guidance(both, 2.5), unconditional + 2.5 * (conditional - unconditional))
    assert torch.equal(apply_guidance(both, 1.0), conditional)
    assert torch.equal(apply_guidance(both, 0.0), unconditional)


def test_guidance_schedules() -> None:
    assert guidance_scales("constant", 3.0, 4) == (3.0,) * 4
    assert guidance_scales("linear", 3.0, 5) == (1.0, 1.5, 2.0, 2.5, 3.0)
    assert guidance_scales("interval", 3.0, 5, interval=(0.25, 0.5)) == (1.0, 3.0, 3.0, 1.0, 1.0)
    cosine = guidance_scales("power-cosine", 3.0, 5, power=2.0)
    assert cosine == pytest.approx([1 + 2 * (1 - math.cos(math.pi * (i / 4) ** 2)) / 2 for i in range(5)])
    assert cosine[0] == 1
    assert cosine[-1] == pytest.approx(3)
    assert guidance_scales("linear", 3.0, 1) == (1.0,)
    with pytest.raises(ValueError, match=r"'cosine'.*constant, linear, power-cosine, interval"):
        guidance_scales("cosine", 3.0, 4)
