"""The mergeable pieces: any partition of the data gives one result."""

from __future__ import annotations

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hq_tokenizers.metrics.running.content_counts import ContentCounts, exponential
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


def digest_of(content: int) -> bytes:
    return hashlib.sha256(str(content).encode()).digest()


def add(state: object, contents: list[int]) -> None:
    """Adds occurrences of contents, whose vectors are (content, 1)."""
    vectors = torch.tensor([[float(content), 1.0] for content in contents])
    state.update([digest_of(content) for content in contents], vectors)  # type: ignore[attr-defined]


multisets = st.lists(st.integers(0, 30) | st.sampled_from([0, 1]), min_size=1, max_size=120)


@settings(max_examples=200, deadline=None)
@given(multisets, st.integers(1, 40), st.randoms(use_true_random=False))
def test_occurrences_are_those_of_the_multiset_for_any_order_batches_and_merges(
    contents: list[int], room: int, random: object
) -> None:
    # All keys, of the whole multiset at once, below t(n); nothing is forgotten on the way.
    n = len(contents)
    limit = math.inf if n <= room else -math.log(1 - room / n)
    expected = []
    for content, m in Counter(contents).items():
        key = 0.0
        for j in range(m):
            key += exponential(digest_of(content), j) / (m - j)
            expected += [(key, digest_of(content), j)] * (key < limit)
    states = []
    random.shuffle(contents)  # type: ignore[attr-defined]
    while contents:
        size = random.randint(1, len(contents))  # type: ignore[attr-defined]
        states.append(ContentCounts(room))
        for _ in range(2):
            # Some in one batch, some in the next.
            batch, contents = contents[: size // 2 + 1], contents[size // 2 + 1 :]
            if batch:
                add(states[-1], batch)
    while len(states) > 1:
        random.shuffle(states)  # type: ignore[attr-defined]
        states[0].merge(states.pop())
        states[0].merge(ContentCounts(room))
        assert len(states[0]._vectors) <= 2 * room
    found = states[0].occurrences()
    assert [item[1:] for item in found] == [item[1:] for item in sorted(expected)]
    assert [item[0] for item in found] == pytest.approx([item[0] for item in sorted(expected)], rel=1e-9)
    for _, content, _ in found:
        assert digest_of(int(states[0].vector(content)[0])) == content
    assert states[0].total == n


def test_what_no_part_keeps_the_whole_does_not_need() -> None:
    # 1/t is superadditive, on which merging rests: also where one part, or neither, is larger than the room.
    def inverse(n: int) -> float:
        return 0 if n <= 50 else -1 / math.log1p(-50 / n)

    sizes = sorted({int(1.2**power) for power in range(80)})
    for n in sizes:
        for m in sizes:
            assert inverse(n) + inverse(m) <= inverse(n + m) * (1 + 1e-9), (n, m)


def test_keys_of_copies_are_independent_exponentials() -> None:
    import scipy.stats

    counts = ContentCounts(100_000)
    add(counts, [7] * 5000 + list(range(100, 5100)))
    occurrences = counts.occurrences()
    copies = [key for key, content, _ in occurrences if content == digest_of(7)]
    singles = [key for key, content, _ in occurrences if content != digest_of(7)]
    assert (len(copies), len(singles)) == (5000, 5000)
    for keys in (copies, singles):
        assert scipy.stats.kstest(keys, "expon").pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(partitions, st.integers(1, 20), st.randoms(use_true_random=False))
def test_sample_does_not_depend_on_order_or_parts(sizes: list[int], capacity: int, random: object) -> None:
    features = torch.arange(84.0).view(42, 2)[: sum(sizes)]
    features[::3] = features[0].clone()
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
    assert torch.equal(whole.features(), merged.features())
    assert len(whole.features()) == min(capacity, len(features))


@pytest.mark.parametrize("capacity", [1, 30, 1000])
@pytest.mark.parametrize("parts", [1, 7])
def test_sample_is_uniform_over_occurrences(capacity: int, parts: int) -> None:
    # Of 20,000 features 15,000 are copies of one. The number of copies in a sample without replacement is
    # hypergeometric; the mean rank of the others is that of a uniform sample.
    features = torch.arange(20_000.0)[:, None]
    features[::4], features[1::4], features[2::4] = -1, -1, -1
    sample = HashSample(capacity)
    for part in features.split(-(-20_000 // parts)):
        one = HashSample(capacity)
        one.update(digests_of(part), part)
        sample.merge(one)
    taken = sample.features().flatten()
    assert len(taken) == capacity
    copies = int((taken == -1).sum())
    assert abs(copies - 0.75 * capacity) <= 5 * (capacity * 0.75 * 0.25) ** 0.5
    others = taken[taken != -1]
    if len(others) > 5:
        assert abs(float(others.mean()) - 10_000) < 5 * 20_000 / 12**0.5 / len(others) ** 0.5
    assert len(others.unique()) == len(others)


def test_a_sample_without_copies_is_that_of_the_smallest_hashes() -> None:
    # As before copies were numbered, so that files of reference statistics stay comparable.
    features = torch.arange(3000.0)[:, None]
    sample = HashSample(100)
    sample.update(digests_of(features), features)
    keys = [int.from_bytes(digest[:8], "big", signed=True) for digest in digests_of(features)]
    assert torch.equal(sample.features(), features[np.argsort(keys)[:100]])


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


def test_inception_score_spreads_copies_over_the_splits() -> None:
    # Five images, a thousand copies of each, one image and one class each: every split holds all five, so its score
    # is 5 but for the number of copies it has of each.
    from torch_fidelity.metric_isc import isc_features_to_metric

    kinds = 50 * torch.eye(5)
    score, parts = RunningInceptionScore(10), RunningInceptionScore(10)
    images = kinds.repeat_interleave(1000, dim=0)
    score.update(digests_of(images), images)
    for part in images[torch.randperm(5000, generator=torch.Generator().manual_seed(0))].split(617):
        one = RunningInceptionScore(10)
        one.update(digests_of(part), part)
        parts.merge(one)
    assert parts.compute() == pytest.approx(score.compute(), rel=1e-9)
    shuffled = images[torch.randperm(5000, generator=torch.Generator().manual_seed(1))]
    theirs = isc_features_to_metric(shuffled, splits=10, shuffle=False)
    assert score.compute()[0] == pytest.approx(theirs["inception_score_mean"], rel=0.01)
    assert 4.9 < score.compute()[0] <= 5


def test_inception_score_takes_the_copies_from_the_split_that_had_them() -> None:
    # The sums per split, worked out occurrence by occurrence.
    logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(2))
    images = logits[torch.tensor([0] * 40 + [1] * 7 + list(range(30)))]
    score = RunningInceptionScore(3)
    score.update(digests_of(images), images)
    seen: Counter[bytes] = Counter()
    members: list[list[torch.Tensor]] = [[], [], []]
    for digest, image in zip(digests_of(images), images, strict=True):
        members[score.split_of(digest, seen[digest])].append(image.double().softmax(0))
        seen[digest] += 1
    expected = []
    for split_members in members:
        p = torch.stack(split_members)
        expected.append((p * (p / p.mean(0)).log()).sum(1).mean().exp())
    assert score.compute()[0] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-9)


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
