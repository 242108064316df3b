from __future__ import annotations

import math

import pytest
import torch

from hq_tokenizers.evaluation.diagnostics import diagnose, usage_table
from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig


def figures(perplexity, active, entropy, variance, sizes=(512,) * 4):
    """Figures of a split with these codebook sizes."""
    levels = list(zip(perplexity, active, sizes, strict=False))
    return {
        "perplexity": perplexity,
        "usage": [exp_entropy / size for exp_entropy, _, size in levels],
        "active_codes": active,
        "dead_rate": [1 - used / size for _, used, size in levels],
        "entropy": entropy,
        "variance": variance,
    }


def test_a_healthy_tokenizer_has_no_findings():
    healthy = figures([400.0], [510], [2.0], [0.5])
    assert diagnose(SQVAEConfig(), [512], healthy) == []


def test_a_vae_has_nothing_to_diagnose():
    assert diagnose(SQVAEConfig(quantizer="none"), [], {"loss": 1.0}) == []


@pytest.mark.parametrize(
    ("perplexity", "active", "symptom"), [(20.0, 30, "collapsed"), (200.0, 210, "dead codes"), (400.0, 480, None)]
)
def test_unused_codes_of_a_vq_vae_are_named_with_a_remedy_it_does_not_have_yet(perplexity, active, symptom):
    found = diagnose(SQVAEConfig(quantizer="vq"), [512], figures([perplexity], [active], [0.0], [0.0]))
    assert [finding.symptom for finding in found] == ([symptom] if symptom else [])
    for finding in found:
        assert "restart_threshold" in finding.remedy
        assert f"{active:.0f} active of 512" in str(finding)
    assert (
        "smaller fsq_levels"
        in diagnose(SQVAEConfig(quantizer="fsq"), [1000], figures([9], [9], [0.0], [0.0]))[0].remedy
    )
    restarting = SQVAEConfig(quantizer="vq", codebook_update="ema", restart_threshold=1.0)
    for finding in diagnose(restarting, [512], figures([perplexity], [active], [0.0], [0.0])):
        assert "restart_threshold" not in finding.remedy


def test_the_inflated_level_of_a_hierarchy_is_named_and_not_called_collapsed():
    config = HQVAEConfig(code_groups=["stride 4: 512 x 2"])
    found = diagnose(config, [512, 512], figures([300.0, 20.0], [512, 30], [1.0, math.log(512)], [0.1, 90.0]))
    assert [(finding.level, finding.symptom) for finding in found] == [(1, "inflated")]
    assert "progressive: true" in found[0].remedy


def test_only_levels_of_coarser_groups_are_blamed_on_finer_ones():
    config = HQVAEConfig(code_groups=["stride 8: 512 x 2", "stride 4: 512"])
    found = diagnose(config, [512] * 3, figures([5.0] * 3, [9] * 3, [0.5] * 3, [0.1] * 3))
    assert ["finer groups" in finding.cause for finding in found] == [True, True, False]


def test_a_variance_at_the_end_of_its_range_is_reported():
    config = HQVAEConfig(code_groups=["stride 4: 512"], log_variance_range=[-2.0, 3.0], initial_log_variance=1.0)
    found = diagnose(config, [512], figures([300.0], [512], [2.0], [math.exp(3.0)]))
    assert [finding.symptom for finding in found] == ["variance at its bound"]
    assert diagnose(config, [512], figures([300.0], [512], [2.0], [math.exp(2.9)])) == []


@pytest.mark.parametrize(("low", "high"), [(-14.0, 8.0), (-6.0, 6.0), (-13.0, 1.0)])
def test_the_two_ends_of_the_range_have_different_causes(low, high):
    config = HQVAEConfig(code_groups=["stride 4: 512"], log_variance_range=[low, high], initial_log_variance=0.0)
    for end, cause in ((low, "deterministic"), (high, "inflates")):
        variance = torch.tensor(end).exp().item()
        (finding,) = diagnose(config, [512], figures([300.0], [512], [2.0], [variance]))
        assert cause in finding.cause


def test_a_level_that_needs_few_codes_of_a_shared_codebook_is_not_called_untrained():
    levels = figures([40.0, 400.0], [45, 500], [0.0, 0.0], [0.0, 0.0])
    for shared, cause in ((True, "share one codebook"), (False, "never nearest")):
        config = HQVAEConfig(code_groups=["stride 4: 512 x 2"], quantizer="vq", shared_codebook=shared)
        (finding,) = diagnose(config, [512, 512], levels)
        assert (finding.level, finding.symptom) == (0, "collapsed")
        assert cause in finding.cause
    # Where no level uses it, it is untrained, shared or not.
    config = HQVAEConfig(code_groups=["stride 4: 512 x 2"], quantizer="vq", shared_codebook=True)
    found = diagnose(config, [512, 512], figures([4.0, 5.0], [9, 9], [0.0, 0.0], [0.0, 0.0]))
    assert all("never nearest" in finding.cause for finding in found)
    assert all("warmup_epochs" in finding.remedy for finding in found)


def test_a_codebook_is_shared_within_its_group_only():
    config = HQVAEConfig(code_groups=["stride 8: 512 x 2", "stride 4: 512 x 2"], quantizer="vq", shared_codebook=True)
    found = diagnose(config, [512] * 4, figures([5.0, 5.0, 400.0, 400.0], [9, 9, 500, 500], [0.0] * 4, [0.0] * 4))
    assert [finding.level for finding in found] == [0, 1]
    assert all("never nearest" in finding.cause for finding in found)


def test_usage_is_relative_to_each_levels_codebook():
    table = usage_table([4, 100], figures([2.0, 50.0], [3, 80], [0.1, 0.2], [1.0, 2.0], [4, 100]))
    assert [row["usage"] for row in table] == [0.5, 0.5]
    assert [row["dead_rate"] for row in table] == pytest.approx([0.25, 0.2])
