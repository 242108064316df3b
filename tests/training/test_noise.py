from __future__ import annotations

import pytest
import torch

from hq_tokenizers.training.noise import keep_noise


def test_what_is_drawn_inside_leaves_no_trace_even_after_an_error():
    state = torch.get_rng_state()
    expected = torch.rand(3).tolist()
    torch.set_rng_state(state)
    with keep_noise():
        assert torch.rand(3).tolist() == expected
    with pytest.raises(ZeroDivisionError), keep_noise():
        torch.rand(3).sum().item() / 0
    assert torch.rand(3).tolist() == expected
