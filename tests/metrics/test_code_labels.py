from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from hq_tokenizers.metrics.code_labels import code_label_counts, normalized_mutual_information


def test_counts_of_batches_add_up_to_the_information_of_all() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400)
    codes = np.where(generator.random(400) < 0.6, labels * 2, generator.integers(0, 8, 400))
    halves = zip(torch.from_numpy(codes).split(150), torch.from_numpy(labels).split(150), strict=True)
    counts = sum(code_label_counts(code, label, 8, 3) for code, label in halves)
    assert counts.sum() == 400
    assert counts[:, 1].sum() == (labels == 1).sum()
    expected = normalized_mutual_info_score(labels, codes)
    assert 0.1 < expected < 0.9
    assert normalized_mutual_information(counts) == pytest.approx(expected)


def test_codes_that_are_labels_say_everything_and_a_constant_code_nothing() -> None:
    labels = torch.arange(12).reshape(3, 4) % 4
    assert normalized_mutual_information(code_label_counts(labels, labels, 4, 4)) == pytest.approx(1)
    assert normalized_mutual_information(code_label_counts(0 * labels, labels, 4, 4)) == pytest.approx(0)
