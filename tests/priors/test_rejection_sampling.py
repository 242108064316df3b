from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel
from hq_tokenizers.priors.rejection_sampling import best_of
from hq_tokenizers.randomness import sample_generators

Make = Callable[..., CodePriorModel]

LAYOUT = CodeLayout((CodeGroup(1, 2, (50,)),))


def draw_uniform(generators: list[torch.Generator], candidate: int) -> Codes:
    return LAYOUT.unflatten(torch.stack([torch.randint(50, (2,), generator=g) for g in generators]))


def test_the_best_candidate_of_each_sample_is_kept() -> None:
    seen: list[torch.Tensor] = []

    def score(codes: Codes) -> torch.Tensor:
        seen.append(codes.flatten())
        return codes.flatten().sum(1).float()

    best = best_of(draw_uniform, score, sample_generators(3, 20), 6).flatten()
    candidates = torch.stack(seen)
    assert candidates.shape == (6, 20, 2)
    assert len({tuple(row.flatten().tolist()) for row in candidates}) == 6
    assert torch.equal(best.sum(1), candidates.sum(2).amax(0))
    chosen = candidates.sum(2).argmax(0)
    assert torch.equal(best, candidates[chosen, torch.arange(20)])
    # A sample's candidates are its own.
    alone = [best_of(draw_uniform, score, sample_generators(3 + i, 1), 6).flatten() for i in range(20)]
    assert torch.equal(torch.cat(alone), best)


def test_of_equal_scores_the_first_wins() -> None:
    first = draw_uniform([row[0] for row in (sample_generators(g, 4) for g in sample_generators(0, 5))], 0)
    assert best_of(draw_uniform, lambda codes: torch.zeros(5), sample_generators(0, 5), 4) == first


@pytest.mark.parametrize("result", [torch.zeros(3), torch.zeros(2, 1), 1.0])
def test_scores_of_a_wrong_shape(result: object) -> None:
    with pytest.raises(ValueError, match=r"A score function returns one number per image, a tensor \(2,\), got"):
        best_of(draw_uniform, lambda codes: result, sample_generators(0, 2), 2)


@pytest.mark.parametrize("candidate", [0, 1])
def test_a_score_that_is_nan_is_refused(candidate: int) -> None:
    scores = [torch.zeros(3), torch.zeros(3)]
    scores[candidate][1] = torch.nan
    rest = iter(scores)
    with pytest.raises(ValueError, match="The score of sample 1 is NaN, which cannot be compared"):
        best_of(draw_uniform, lambda codes: next(rest), sample_generators(0, 3), 2)
    # Infinite scores can be compared: -inf is never kept.
    rest = iter([torch.full((3,), -torch.inf), torch.zeros(3)])
    seeds = [sample_generators(g, 2)[1] for g in sample_generators(0, 3)]
    assert best_of(draw_uniform, lambda codes: next(rest), sample_generators(0, 3), 2) == draw_uniform(seeds, 1)


def test_by_prior_likelihood(make_any: Make, mixed_layout: CodeLayout) -> None:
    model, labels = make_any(mixed_layout), torch.tensor([0, 1, 2, -1] * 2)
    plain = model.generate(labels, generator=0)
    chosen = model.generate(labels, generator=0, num_candidates=4)
    assert (model.log_prob(chosen, labels) - model.log_prob(plain, labels)).mean() > 0
    # The same by hand: the candidates are what the sample's generator seeds.
    same = labels[[5] * 4]
    candidates = model.generate(same, generator=sample_generators(torch.Generator().manual_seed(5), 4))
    assert candidates[int(model.log_prob(candidates, same).argmax())] == chosen[5]
    parts = [model.generate(labels[i : i + 2], generator=i, num_candidates=4) for i in range(0, 8, 2)]
    assert Codes.cat(parts) == chosen


def test_by_a_users_classifier(make_any: Make, mixed_layout: CodeLayout) -> None:
    model, calls = make_any(mixed_layout), []

    def few_zeros(codes: Codes, labels: torch.Tensor) -> torch.Tensor:
        calls.append(labels.tolist())
        return (codes.flatten() != 0).sum(1)

    settings = {"num_images": 2, "generator": 0, "num_candidates": 4}
    chosen = model.generate([2, -1], score_function=few_zeros, **settings)
    assert calls == [[2, 2, -1, -1]] * 4
    plain = model.generate([2, -1], **settings | {"num_candidates": 1})
    assert (chosen.flatten() != 0).sum() > (plain.flatten() != 0).sum()
    with pytest.raises(ValueError, match="score_function chooses between candidates: set num_candidates to 2 or more"):
        model.generate([0], score_function=few_zeros)
    with pytest.raises(ValueError, match=r"num_candidates must be an integer from 1 .*got 0"):
        model.generate([0], num_candidates=0)


def test_progress_counts_all_candidates(make_any: Make, mixed_layout: CodeLayout) -> None:
    calls: list[tuple[int, int]] = []
    model = make_any(mixed_layout)
    model.generate(num_candidates=3, progress=lambda done, total: calls.append((done, total)))
    total = 3 * model.num_sampling_steps(model.generation_config)
    assert calls == [(done + 1, total) for done in range(total)]
