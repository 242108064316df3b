from __future__ import annotations

import pytest
import torch

from hq_tokenizers.data.batches import BatchPlan, validation_batches


def _epoch(plan: BatchPlan, epoch: int) -> list[list[int]]:
    return [part.tolist() for part in plan.rest_of_epoch(epoch * plan.steps_per_epoch)]


def _order(plan: BatchPlan, epoch: int) -> list[int]:
    return [row for part in _epoch(plan, epoch) for row in part]


def test_an_epoch_visits_rows_once_and_epochs_differ():
    plan = BatchPlan(num_rows=23, batch_size=4, seed=3)
    first, second = (_order(plan, epoch) for epoch in (0, 1))
    assert plan.steps_per_epoch == 5
    assert len(first) == len(set(first)) == 20
    assert set(first) <= set(range(23))
    assert first != second
    assert first == _order(BatchPlan(num_rows=23, batch_size=4, seed=3), 0)
    assert first != _order(BatchPlan(num_rows=23, batch_size=4, seed=4), 0)


def test_the_rest_of_an_epoch_is_its_tail():
    plan = BatchPlan(num_rows=23, batch_size=4, seed=0, num_parts=2)
    whole = _epoch(plan, 1)
    assert [part.tolist() for part in plan.rest_of_epoch(5 + 3)] == whole[3 * 2 :]


@pytest.mark.parametrize(("parts", "processes"), [(1, 2), (3, 1), (2, 3)])
def test_splitting_does_not_change_what_is_in_a_batch(parts, processes):
    whole = _epoch(BatchPlan(num_rows=40, batch_size=12, seed=1), 2)
    shares = [_epoch(BatchPlan(40, 12, 1, parts, processes, index), 2) for index in range(processes)]
    assert {len(part) for share in shares for part in share} == {12 // parts // processes}
    for step, batch in enumerate(whole):
        together = [row for share in shares for part in share[step * parts : (step + 1) * parts] for row in part]
        assert sorted(together) == sorted(batch)


@pytest.mark.parametrize(("rows", "processes"), [(10, 1), (10, 3), (12, 4), (1, 2)])
def test_validation_counts_every_row_once_for_any_number_of_processes(rows, processes):
    shares = [validation_batches(rows, 4, processes, index) for index in range(processes)]
    dealt = [batch for share in shares for batch in share]
    assert sorted(torch.cat(dealt).tolist()) == list(range(rows))
    alone = {tuple(batch.tolist()) for batch in validation_batches(rows, 4)}
    assert {tuple(batch.tolist()) for batch in dealt} == alone


def test_errors():
    with pytest.raises(ValueError, match="3 rows, fewer than batch_size 4"):
        BatchPlan(num_rows=3, batch_size=4, seed=0)
    with pytest.raises(ValueError, match="use a multiple of 6"):
        BatchPlan(num_rows=30, batch_size=4, seed=0, num_parts=2, num_processes=3)
