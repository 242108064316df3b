"""Code counts and perplexity against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from hq_tokenizers.quantization.usage import code_counts, perplexity


def test_counts() -> None:
    indices = torch.randint(9, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    assert code_counts(indices, 12).tolist() == np.bincount(indices.flatten().numpy(), minlength=12).tolist()


def test_perplexity() -> None:
    counts = torch.tensor([5.0, 0.0, 1.0, 3.0])
    assert float(perplexity(counts)) == pytest.approx(np.exp(stats.entropy(counts.numpy())), rel=1e-5)


def test_bounds() -> None:
    assert float(perplexity(torch.ones(17))) == pytest.approx(17, rel=1e-5)
    assert float(perplexity(torch.tensor([0.0, 4.0, 0.0]))) == 1.0
