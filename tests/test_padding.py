"""Lengths by codes, and masks by lengths; that padding changes nothing is tests/models/test_sound_models.py's."""

from __future__ import annotations

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.padding import code_lengths, frame_mask, padding_of_codes

LAYOUTS = {
    "one code per column": CodeLayout((CodeGroup(1, 6, (9,)),)),
    "residual": CodeLayout((CodeGroup(3, 6, (9, 9)),)),
    "two groups": CodeLayout((CodeGroup(2, 6, (9,)), CodeGroup(4, 12, (9, 9)))),
}


def filled(layout: CodeLayout, lengths: list[int]) -> torch.Tensor:
    """Codes above 0 before the end of each sound, 0 after it, place by place."""
    torch.manual_seed(0)
    codes = layout.unflatten(torch.randint(1, 9, (len(lengths), layout.num_codes)))
    for item, length in enumerate(lengths):
        for group, grid in zip(layout.groups, codes.groups, strict=True):
            for column in range(group.width):
                if column >= length * group.width // 6:
                    grid[item, :, column] = 0
    return codes


@pytest.mark.parametrize("name", LAYOUTS)
def test_lengths_are_read_off_the_codes(name: str) -> None:
    lengths, layout = [6, 4, 1], LAYOUTS[name]
    codes = filled(layout, lengths)
    assert code_lengths(codes).tolist() == lengths
    padding = padding_of_codes(layout, torch.tensor(lengths))
    for grid, padded in zip(codes.groups, padding, strict=True):
        assert torch.equal(padded, grid == 0)
    # Nothing but zeros is a sound of one column, which a mask needs.
    nothing = layout.unflatten(torch.zeros(1, layout.num_codes).long())
    assert code_lengths(nothing).tolist() == [1]


def test_a_few_mistakes_of_a_prior_do_not_matter() -> None:
    codes = filled(LAYOUTS["residual"], [3])
    codes.groups[0][0, 1, 5, 0] = 4
    codes.groups[0][0, :, 1, 0] = 0
    assert code_lengths(codes).tolist() == [3]
    codes.groups[0][0, :, 4] = 4
    assert code_lengths(codes).tolist() == [5]


def test_masks_count_frames() -> None:
    assert frame_mask(torch.tensor([2, 1]), 3, 2).tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
