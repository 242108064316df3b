from __future__ import annotations

import multiprocessing
import time

import pytest
import torch

from hq_tokenizers.data.workers import decoded_batches
from hq_tokenizers.image_decoding import UnreadableImageError


class Rows(torch.utils.data.Dataset):
    """Row i is i; row 3 is broken, and row 5 takes a minute."""

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            raise UnreadableImageError("row 3 is broken")
        if index == 5:
            time.sleep(60)
        return torch.tensor(index)


def batches(*indices: int):
    return decoded_batches(Rows(), [torch.tensor([index]) for index in indices], num_workers=1)


def test_a_broken_row_is_said_in_its_own_words_and_leaves_no_process() -> None:
    with pytest.raises(UnreadableImageError, match=r"^row 3 is broken$") as kept:
        list(batches(0, 3, 1, 2))
    assert kept.traceback
    assert not multiprocessing.active_children()


def test_a_pass_leaves_no_process_when_it_ends_or_is_given_up(monkeypatch) -> None:
    # How long torch waits for a worker before it sends a SIGTERM: 5 seconds.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)
    assert [int(batch) for batch in batches(0, 1, 2)] == [0, 1, 2]
    assert not multiprocessing.active_children()
    started = time.monotonic()
    given_up = batches(0, 5)
    assert int(next(given_up)) == 0
    given_up.close()
    # The worker is in the midst of row 5 and heeds no SIGTERM.
    assert not multiprocessing.active_children()
    assert time.monotonic() - started < 50
