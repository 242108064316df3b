"""Rejection sampling: of several candidates for an image, the best-scored one is kept.

Shape legend: B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hq_tokenizers.codes import Codes
from hq_tokenizers.randomness import sample_generators

ScoreFunction = Callable[[Codes, torch.Tensor], torch.Tensor]


def best_of(
    draw: Callable[[Sequence[torch.Generator], int], Codes],
    score: Callable[[Codes], torch.Tensor],
    generators: Sequence[torch.Generator],
    num_candidates: int,
) -> Codes:
    """Draws candidates one after the other, which needs no more memory than one, and keeps each sample's best.

    With n candidates this accepts a share of 1/n, the n-th part with the highest scores *of each sample's own*
    candidates, so that a sample depends on its own generator only.

    Args:
        draw: Called with one generator per sample and the index of the candidate; gives codes of B images.
        score: Gives (B,) numbers, higher is better. Of equal scores the first candidate wins.
        generators: One per sample; each is asked for one seed per candidate.
        num_candidates: Candidates per sample, at least 1.

    Raises:
        ValueError: If the scores are not one number per sample, or one of them is NaN, which cannot be compared.
    """

    def fresh() -> list[torch.Generator]:
        # One after the other: of a million candidates the generators alone would take gigabytes.
        return [sample_generators(generator, 1)[0] for generator in generators]

    best = draw(fresh(), 0)
    best_scores = _checked(score(best), best.batch_size)
    for index in range(1, num_candidates):
        codes = draw(fresh(), index)
        scores = _checked(score(codes), codes.batch_size)
        better = (scores > best_scores).to(codes.device)
        pairs = zip(codes.groups, best.groups, strict=True)
        best = Codes(tuple(torch.where(better[:, None, None, None], new, old) for new, old in pairs), best.layout)
        best_scores = torch.maximum(scores, best_scores)
    return best


def _checked(scores: torch.Tensor, num_samples: int) -> torch.Tensor:
    if not isinstance(scores, torch.Tensor) or scores.shape != (num_samples,):
        given = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"A score function returns one number per image, a tensor ({num_samples},), got {given}.")
    wrong = scores.isnan().nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"The score of sample {wrong[0]} is NaN, which cannot be compared (NaN for {len(wrong)} of {num_samples} "
            "samples): give -inf to a candidate that is never to be kept; where it is the prior's own log_prob, look "
            "at its weights and type."
        )
    return scores
