"""The mergeable pieces: any partition of the data gives one result."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hq_tokenizers.metrics.running.hash_sample import HashSample
from hq_tokenizers.metrics.running.running_gaussian import RunningGaussian
from hq_tokenizers.metrics.running.running_inception_score import RunningInceptionScore
from hq_tokenizers.metrics.running.set_identity import SetIdentity

partitions = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def split(values: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    return list(values[: sum(sizes)].split(sizes))


def digests_of(values: torch.Tensor) -> list[bytes]:
    return [hashlib.sha256(row.numpy().tobytes()).digest() for row in values]


@settings(max_examples=25, deadline=None)
@given(partitions, st.sampled_from([0.0, 1e4]))
def test_gaussian_is_numpys_mean_and_covariance(sizes: list[int], offset: float) -> None:
    features = torch.randn(42, 3, generator=torch.Generator().manual_seed(0)) + offset
    running, merged = RunningGaussian(), RunningGaussian()
    for part in split(features, sizes):
        running.update(part)
        one = RunningGaussian()
        one.update(part)
        merged.merge(one)
        merged.merge(RunningGaussian())
    seen = features[: sum(sizes)].double().numpy()
    for gaussian in (running, merged):
        assert gaussian.count == len(seen)
        np.testing.assert_allclose(gaussian.mean, seen.mean(0), rtol=1e-12)
        if len(seen) > 1:
            np.testing.assert_allclose(gaussian.covariance, np.cov(seen, rowvar=False), rtol=1e-7, atol=1e-12)


def test_merging_into_an_empty_gaussian_copies() -> None:
    first, empty = RunningGaussian(), RunningGaussian()
    first.update(torch.ones(2, 2))
    empty.merge(first)
    empty.update(torch.zeros(2, 2))
    assert torch.equal(first.mean, torch.ones(2).double())


@settings(max_examples=25, deadline=None)
@given(partitions, st.integers(1, 20), st.randoms(use_true_random=False))
def test_sample_does_not_depend_on_order_or_parts(sizes: list[int], capacity: int, random: object) -> None:
    features = torch.arange(84.0).view(42, 2)[: sum(sizes)]
    whole = HashSample(capacity)
    whole.update(digests_of(features), features)
    order = list(range(len(features)))
    random.shuffle(order)  # type: ignore[attr-defined]
    merged = HashSample(capacity)
    for part in split(features[order], sizes):
        one = HashSample(capacity)
        one.update(digests_of(part), part)
        merged.merge(one)
        merged.merge(HashSample(capacity))
        assert merged._held <= 2 * capacity + len(part)
    for ours, theirs in zip(whole.sorted(), merged.sorted(), strict=True):
        assert torch.equal(ours, theirs)
    assert len(whole.sorted()[0]) == min(capacity, len(features))


def test_sample_is_uniform() -> None:
    # Each of 10,000 features is kept with probability 1/10: the kept ones' mean rank is 5000 ± 5 standard errors.
    features = torch.arange(10_000.0)[:, None]
    sample = HashSample(1000)
    sample.update(digests_of(features), features)
    assert abs(float(sample.sorted()[1].mean()) - 5000) < 5 * 10_000 / 12**0.5 / 1000**0.5


def test_inception_score_of_known_distributions() -> None:
    # Every image sure of its own class of 4: KL = log 4. Every image undecided: KL = 0.
    sure, undecided = RunningInceptionScore(1), RunningInceptionScore(1)
    digests = digests_of(torch.arange(8))
    sure.update(digests, 1e3 * torch.eye(4).repeat(2, 1))
    undecided.update(digests, torch.zeros(8, 4))
    assert sure.compute() == (pytest.approx(4.0), 0.0)
    assert undecided.compute() == (pytest.approx(1.0), 0.0)


def test_inception_score_merges() -> None:
    logits = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    whole, parts = RunningInceptionScore(3), RunningInceptionScore(3)
    whole.update(digests_of(logits), logits)
    for part in logits.split(17):
        one = RunningInceptionScore(3)
        one.update(digests_of(part), part)
        parts.merge(one)
        parts.merge(RunningInceptionScore(3))
    assert parts.compute() == pytest.approx(whole.compute(), rel=1e-12)
    assert whole.compute()[0] > 1.01


class TestIdentity:
    def test_is_a_hash_of_the_set_and_its_multiplicities(self, images: torch.Tensor) -> None:
        whole, parts, other, twice = (SetIdentity() for _ in range(4))
        whole.update(images, "references")
        for part in images.flip(0).split(9):
            one = SetIdentity()
            one.update(part, "references")
            parts.merge(one, "references")
        assert parts == whole
        assert len(whole.sha256) == 64
        assert whole.image_size == [8, 8]

        changed = images.clone()
        changed[3, 0, 0, 0] ^= 1
        other.update(changed, "references")
        assert other.sha256 != whole.sha256
        twice.update(images[:1], "references")
        single = twice.sha256
        twice.update(images[:1], "references")
        assert twice.sha256 != single

    def test_is_the_sum_of_sha256(self, images: torch.Tensor) -> None:
        identity = SetIdentity()
        identity.update(images[:2], "references")
        digests = [hashlib.sha256(b"(3, 8, 8)" + image.numpy().tobytes()).hexdigest() for image in images[:2]]
        assert int(identity.sha256, 16) == sum(int(digest, 16) for digest in digests) % 2**256

    def test_depends_on_the_shape(self) -> None:
        wide, tall = SetIdentity(), SetIdentity()
        wide.update(torch.zeros(1, 3, 2, 8, dtype=torch.uint8), "references")
        tall.update(torch.zeros(1, 3, 8, 2, dtype=torch.uint8), "references")
        assert wide.sha256 != tall.sha256
        with pytest.raises(ValueError, match=r"\(3, 2, 8\), now \(3, 8, 2\)"):
            wide.merge(tall, "references")
