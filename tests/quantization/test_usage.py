"""Code counts and what follows from them against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from hq_tokenizers.quantization.usage import code_counts, usage_figures


def test_counts() -> None:
    indices = torch.randint(9, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    assert code_counts(indices, 12).tolist() == np.bincount(indices.flatten().numpy(), minlength=12).tolist()


def test_figures_of_levels_with_codebooks_of_different_sizes() -> None:
    counts = [torch.tensor([5.0, 0.0, 1.0, 3.0]), torch.tensor([2.0, 2.0, 0.0])]
    figures = usage_figures([count.double() for count in counts])
    entropies = [stats.entropy(count.double().numpy()) for count in counts]
    assert figures["entropy"].tolist() == pytest.approx(entropies, rel=1e-12)
    assert figures["perplexity"].tolist() == pytest.approx(np.exp(entropies), rel=1e-12)
    assert figures["usage"].tolist() == pytest.approx(np.exp(entropies) / [4, 3], rel=1e-12)
    assert figures["active_codes"].tolist() == [3, 2]
    assert figures["dead_rate"].tolist() == pytest.approx([1 / 4, 1 / 3], rel=1e-12)


def test_bounds() -> None:
    figures = usage_figures([torch.ones(17), torch.tensor([0.0, 4.0, 0.0])])
    assert figures["perplexity"].tolist() == pytest.approx([17, 1], rel=1e-5)
    assert figures["usage"].tolist() == pytest.approx([1, 1 / 3], rel=1e-5)
