"""Codebook usage against entropies computed by hand and by scipy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.metrics.codebook_usage import CodebookUsage

LAYOUT = CodeLayout((CodeGroup(2, 2, (8,)), CodeGroup(4, 4, (16, 4))))


def random_codes(batch_size: int, seed: int = 0) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    groups = [
        torch.stack(
            [torch.randint(0, size // 2, (batch_size, g.height, g.width), generator=generator) for size in sizes], -1
        )
        for g, sizes in zip(LAYOUT.groups, [(8,), (16, 4)], strict=True)
    ]
    return Codes(tuple(groups), LAYOUT)


def test_per_level_values_equal_scipy_over_the_whole_set() -> None:
    codes = random_codes(9)
    metric = CodebookUsage()
    for first in range(0, 9, 4):
        metric.add_batch(codes=codes[first : first + 4])
    assert len(metric) == 9
    result = metric.compute()
    for level, (values, size) in enumerate(zip(codes.levels(), LAYOUT.codebook_sizes, strict=True)):
        counts = np.bincount(values.flatten().numpy(), minlength=size)
        entropy = scipy.stats.entropy(counts)
        assert result["entropy"][level] == pytest.approx(entropy, rel=1e-12)
        assert result["perplexity"][level] == pytest.approx(math.exp(entropy), rel=1e-12)
        assert result["active_codes"][level] == (counts > 0).sum()
        assert result["num_codes"][level] == counts.sum()
    assert result["codebook_size"] == [8, 16, 4]


def test_uniform_and_collapsed_codebooks() -> None:
    layout = CodeLayout((CodeGroup(2, 2, (4,)),))
    uniform = Codes((torch.arange(4).view(1, 2, 2, 1),), layout)
    collapsed = Codes((torch.full((1, 2, 2, 1), 3),), layout)
    assert CodebookUsage().compute(codes=uniform)["perplexity"] == [pytest.approx(4)]
    result = CodebookUsage().compute(codes=collapsed)
    assert (result["perplexity"], result["entropy"], result["active_codes"]) == ([1.0], [0.0], [1])


def test_usage_is_that_of_the_set_not_the_mean_over_batches() -> None:
    # Each image uses one code, the set all four: a mean over batches would say 1.
    layout = CodeLayout((CodeGroup(2, 2, (4,)),))
    metric = CodebookUsage()
    for code in range(4):
        metric.add(codes=Codes((torch.full((1, 2, 2, 1), code),), layout))
    assert metric.compute()["perplexity"] == [pytest.approx(4)]


def test_provenance() -> None:
    provenance = CodebookUsage(reference_name="digits").compute(codes=random_codes(2))["provenance"]
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["code_layout"] == str(LAYOUT)
    assert provenance["num_images"] == 2
    assert provenance["reference"]["name"] == "digits"


def test_refusals() -> None:
    metric = CodebookUsage()
    codes = random_codes(2)
    with pytest.raises(TypeError, match=r"codes must be hq_tokenizers.codes.Codes.*got Tensor; CodeLayout.unflatten"):
        metric.add_batch(codes=codes.flatten())
    with pytest.raises(ValueError, match=r"level 1 must lie in \[0, 8\).*found 8"):
        metric.add_batch(codes=Codes((codes.groups[0] * 0 + 8, codes.groups[1]), LAYOUT))
    metric.add_batch(codes=codes)
    with pytest.raises(ValueError, match=r"so far 2×2×1 of 8 \+ .*, now 2×2×1 of 8\. Use a metric for each"):
        metric.add_batch(codes=codes.truncate(1))
    with pytest.raises(ValueError, match="takes codes; got predictions"):
        metric.add_batch(predictions=codes)
    assert len(metric) == 2
