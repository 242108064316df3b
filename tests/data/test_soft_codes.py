"""The likeliest codes of a posterior, against numbers by hand."""

from __future__ import annotations

import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.data.soft_codes import soft_codes


def test_soft_codes_by_hand():
    layout = CodeLayout((CodeGroup(1, 2, (3, 2)),))
    coarse = torch.tensor([[[0.5, 0.1, 0.4], [0.2, 0.2, 0.6]]]).log()
    fine = torch.tensor([[[0.25, 0.75], [1.0, 0.0]]]).log()
    soft = soft_codes(layout, (coarse[:, None], fine[:, None]), 2)
    assert soft.codes.tolist() == [[[0, 2], [1, 0], [2, 0], [0, 1]]]
    expected = torch.tensor([[[5 / 9, 4 / 9], [0.75, 0.25], [0.75, 0.25], [1.0, 0.0]]])
    torch.testing.assert_close(soft.probabilities.float(), expected, atol=1e-3, rtol=0)
    # More than there are: as many as the largest codebook has, the smaller one filled up.
    wide = soft_codes(layout, (coarse[:, None], fine[:, None]), 100)
    assert wide.codes.shape == (1, 4, 3)
    assert wide.probabilities[0, 1].tolist() == [0.75, 0.25, 0.0]
