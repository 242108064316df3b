from __future__ import annotations

import pytest
import torch

from hq_tokenizers.evaluation.nearest_images import nearest_difference


def test_is_the_mean_of_the_smallest_differences():
    references = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]])
    # From the first 0.1 in every value; from the second √((0.3² + 0.1²) / 2).
    images = torch.tensor([[[0.1, 0.1]], [[0.7, 0.9]]])
    assert nearest_difference(images, references) == pytest.approx((0.1 + 0.05**0.5) / 2)


def test_many_images_are_compared_as_few_are_and_copies_differ_by_nothing():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(600, 1, 4, 4, generator=generator)
    references = torch.rand(50, 1, 4, 4, generator=generator)
    expected = sum(min(float((i - r).square().mean().sqrt()) for r in references) for i in images[:300]) / 300
    assert nearest_difference(images[:300], references) == pytest.approx(expected, abs=1e-6)
    both = nearest_difference(torch.cat([images[:300], references[:20]]), references)
    assert both == pytest.approx(expected * 300 / 320, abs=1e-4)
