from __future__ import annotations

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.priors.code_embeddings import CodeVectorEmbedding, rotary_angles, rotate

RESIDUAL = CodeLayout((CodeGroup(2, 3, (50, 50, 50)),))


def test_code_vectors_keep_their_ratio_and_have_sums_of_unit_mean_square() -> None:
    codebooks = [torch.randn(50, 8) * scale for scale in (30.0, 10.0, 3.0)]
    embedding = CodeVectorEmbedding(RESIDUAL, 16, [8])
    embedding.set_vectors(codebooks)
    for level, codebook in enumerate(codebooks):
        ratio = embedding.vectors(level) / codebook
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    # The mean square of a sum of independent codes: the means' products vanish only on average over zero-mean ones.
    squares = sum(embedding.vectors(level).square().mean() for level in range(3))
    assert squares.item() == pytest.approx(1, rel=1e-5)
    again = CodeVectorEmbedding(RESIDUAL, 16, [8])
    again.set_vectors([1000 * codebook for codebook in codebooks])
    torch.testing.assert_close(again.vectors(1), embedding.vectors(1))


def test_groups_are_scaled_on_their_own_and_may_have_different_widths() -> None:
    layout = CodeLayout((CodeGroup(1, 1, (9,)), CodeGroup(2, 2, (9,))))
    embedding = CodeVectorEmbedding(layout, 16, [8, 4])
    embedding.set_vectors([torch.randn(9, 8) * 7, torch.zeros(9, 4)])
    assert embedding.vectors(0).square().mean().item() == pytest.approx(1, rel=1e-5)
    assert not embedding.vectors(1).any()
    assert embedding.project(0, torch.randn(2, 3, 8)).shape == embedding.project(1, torch.randn(2, 3, 4)).shape


def test_rotation_is_multiplication_by_a_unit_complex_number() -> None:
    states, angles = torch.randn(2, 3, 6, 8, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    turned = torch.complex(*states.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotate(states, angles), torch.cat([turned.real, turned.imag], dim=-1))
    assert rotate(states.bfloat16(), angles).dtype == torch.bfloat16


def test_rotary_scores_depend_on_the_offset_of_two_positions_only() -> None:
    layout = CodeLayout((CodeGroup(4, 5, (3,)),))
    angles = rotary_angles(layout, 8).double()
    query, key = torch.randn(2, 8, dtype=torch.float64)
    scores = rotate(query.expand(20, 8), angles) @ rotate(key.expand(20, 8), angles).T
    by_offset: dict[tuple[int, int], list[float]] = {}
    for first in range(20):
        for second in range(20):
            offset = (second // 5 - first // 5, second % 5 - first % 5)
            by_offset.setdefault(offset, []).append(scores[first, second].item())
    assert len(by_offset) == 7 * 9
    for values in by_offset.values():
        assert values == pytest.approx([values[0]] * len(values), abs=1e-5)
    assert len({round(values[0], 6) for values in by_offset.values()}) == 7 * 9


def test_rotary_positions_of_two_groups_are_aligned() -> None:
    layout = CodeLayout((CodeGroup(2, 2, (3,)), CodeGroup(4, 4, (3,))))
    coarse, fine = rotary_angles(layout, 16).split([4, 16])
    # A coarse cell's centre is the mean of the centres of the 2×2 fine cells that it covers.
    cells = fine.view(2, 2, 2, 2, 8).mean(dim=(1, 3)).view(4, 8)
    torch.testing.assert_close(coarse, cells)
