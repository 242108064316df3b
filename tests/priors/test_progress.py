from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.priors import PartialCodes
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel

Make = Callable[..., CodePriorModel]


def record(model: CodePriorModel, **kwargs: object) -> tuple[torch.Tensor, list[tuple[int, int, PartialCodes]]]:
    calls: list[tuple[int, int, PartialCodes]] = []
    codes = model.generate([0, 1], generator=0, callback_on_step_end=lambda *call: calls.append(call), **kwargs)
    return codes.flatten(), calls


def test_previews(make_any: Make, layout: CodeLayout) -> None:
    model = make_any(layout)
    result, calls = record(model)
    total = model.num_sampling_steps(model.generation_config)
    assert [(done, of) for done, of, _ in calls] == [(step + 1, total) for step in range(total)]
    levels, before = layout.level_of_code(), torch.zeros(2, layout.num_codes, dtype=torch.bool)
    for _, _, partial in calls:
        final = torch.cat([mask.flatten(1) for mask in partial.final], dim=1)
        assert (final & before).sum() == before.sum()
        # Of what is going to be revised nothing is final.
        assert (final.sum(1) > before.sum(1)).all() or model.config.model_type == "contextual_prior"
        # What is final is what comes out in the end.
        assert torch.equal(partial.codes.flatten()[final], result[final])
        finished = [bool(final[:, levels == level].all()) for level in range(layout.num_levels)]
        assert partial.num_finished_levels == [*finished, False].index(False)
        # A masked prior guesses a level, a contextual one a group.
        finished = partial.num_finished_levels
        group = [*layout.levels(), (0, 0)][finished][0]
        guessed = layout.groups[group].depth if model.config.model_type == "contextual_prior" else 1
        assert partial.num_preview_levels in (finished, finished + guessed)
        partial.codes.validate()
        before = final
    last = calls[-1][2]
    assert last.num_finished_levels == last.num_preview_levels == layout.num_levels
    assert torch.equal(last.codes.flatten(), result)


def test_a_masked_prior_guesses_the_whole_level_at_every_step(
    make_masked_prior: Make, mixed_layout: CodeLayout
) -> None:
    _, calls = record(make_masked_prior(mixed_layout), num_steps=[1, 2, 3, 2, 2, 2])
    expected = [1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6]
    assert [partial.num_preview_levels for _, _, partial in calls] == expected
    finished = [1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert [partial.num_finished_levels for _, _, partial in calls] == finished


def test_watching_changes_nothing(make_any: Make, mixed_layout: CodeLayout) -> None:
    model = make_any(mixed_layout)

    def meddle(done: int, total: int, partial: PartialCodes) -> None:
        for group, final in zip(partial.codes.groups, partial.final, strict=True):
            group.zero_()
            final.fill_(True)

    watched = model.generate([0, 1], generator=0, callback_on_step_end=meddle)
    assert watched == model.generate([0, 1], generator=0)


def test_bar_and_callback_together(
    make_any: Make, mixed_layout: CodeLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    model, calls = make_any(mixed_layout), []
    total = model.num_sampling_steps(model.generation_config)
    model.generate(progress=True, callback_on_step_end=lambda *call: calls.append(call))
    assert len(calls) == total
    assert f"{total}/{total}" in capsys.readouterr().err


def test_codes_and_previews_can_be_trained_on_and_changed(make_any: Make, layout: CodeLayout) -> None:
    flat, calls = record(make_any(layout))
    embedding = torch.nn.Embedding(max(layout.codebook_sizes), 3)
    for tensor in (flat, *calls[0][2].codes.groups, *calls[0][2].final):
        assert not tensor.is_inference()
        embedding(tensor.long()).sum().backward()
        tensor.zero_()


def test_callbacks_run_without_gradients_but_outside_of_inference_mode(make_any: Make, layout: CodeLayout) -> None:
    seen: set[tuple[bool, bool]] = set()

    def watch(*args: object) -> None:
        seen.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    make_any(layout).generate([0, 1], generator=0, callback_on_step_end=watch, progress=watch)
    assert seen == {(False, False)}
