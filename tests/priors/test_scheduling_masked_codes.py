from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from diffusers import ConfigMixin, SchedulerMixin

from hq_tokenizers.priors import MaskedCodeScheduler
from hq_tokenizers.priors.sampling import LevelSampling

NUM_SAMPLES, NUM_POSITIONS, NUM_CODES = 3, 12, 5
LOGITS = torch.randn(NUM_SAMPLES, NUM_POSITIONS, NUM_CODES, generator=torch.Generator().manual_seed(0)) * 2
GREEDY = LevelSampling(temperature=0)


def generators(seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + index) for index in range(NUM_SAMPLES)]


def run(scheduler: MaskedCodeScheduler, sample: torch.Tensor, num_steps: int) -> list[torch.Tensor]:
    scheduler.set_timesteps(num_steps)
    unknown, noise, history = (sample == -1).sum(1), generators(), [sample]
    for timestep in scheduler.timesteps:
        history.append(scheduler.step(LOGITS, timestep, history[-1], unknown, LevelSampling(), noise).prev_sample)
    return history


def test_is_a_scheduler_of_diffusers_and_round_trips(tmp_path: Path) -> None:
    scheduler = MaskedCodeScheduler(num_steps=[4, 2], masking_schedule="linear", choice_temperature=1.5)
    assert isinstance(scheduler, SchedulerMixin)
    assert isinstance(scheduler, ConfigMixin)
    scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["masking_schedule"] == "linear"
    loaded = MaskedCodeScheduler.from_pretrained(tmp_path)
    for name in ("num_steps", "masking_schedule", "decoding_order", "choice_temperature"):
        assert loaded.config[name] == scheduler.config[name]
    changed = MaskedCodeScheduler.from_config(scheduler.config, decoding_order="random")
    assert (changed.config.decoding_order, changed.config.num_steps) == ("random", [4, 2])


def test_timesteps_count_what_remains() -> None:
    scheduler = MaskedCodeScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("order", ["confidence", "random"])
def test_codes_are_revealed_as_scheduled_and_stay(order: str) -> None:
    sample = torch.full((NUM_SAMPLES, NUM_POSITIONS), -1)
    sample[1, :4] = 3  # given codes; 8 are left to reveal
    history = run(MaskedCodeScheduler(masking_schedule="linear", decoding_order=order), sample, 4)
    hidden = torch.stack([(state == -1).sum(1) for state in history])
    assert hidden.T.tolist() == [[12, 9, 6, 3, 0], [8, 6, 4, 2, 0], [12, 9, 6, 3, 0]]
    for before, after in itertools.pairwise(history):
        assert torch.equal(after[before != -1], before[before != -1])


def test_the_most_confident_codes_come_first() -> None:
    scheduler = MaskedCodeScheduler(masking_schedule="linear", choice_temperature=0)
    scheduler.set_timesteps(4)
    sample = torch.full((NUM_SAMPLES, NUM_POSITIONS), -1)
    output = scheduler.step(LOGITS, 3, sample, torch.full((NUM_SAMPLES,), 12), GREEDY, generators())
    assert torch.equal(output.pred_original_sample, LOGITS.argmax(-1))
    surest = LOGITS.double().softmax(-1).amax(-1).topk(3, dim=1).indices
    expected = torch.full_like(sample, -1).scatter(1, surest, LOGITS.argmax(-1).gather(1, surest))
    assert torch.equal(output.prev_sample, expected)


def test_choice_temperature_blurs_the_order_less_and_less() -> None:
    def changes(timestep: int, temperature: float) -> bool:
        scheduler = MaskedCodeScheduler(masking_schedule="linear", choice_temperature=temperature)
        scheduler.set_timesteps(4)
        sample = torch.full((NUM_SAMPLES, NUM_POSITIONS), -1)
        unknown = torch.full((NUM_SAMPLES,), NUM_POSITIONS)
        outputs = [scheduler.step(LOGITS, timestep, sample, unknown, GREEDY, generators(seed)) for seed in (0, 50)]
        return not torch.equal(outputs[0].prev_sample, outputs[1].prev_sample)

    assert changes(3, 5.0)
    assert not changes(3, 0.0)
    assert not changes(0, 5.0)


def test_random_order_is_even() -> None:
    scheduler = MaskedCodeScheduler(masking_schedule="linear", decoding_order="random")
    scheduler.set_timesteps(3)
    logits, number = torch.tensor([[[9.0, 0.0], [0.0, 0.0], [0.0, 0.1]]]), 6000
    noise = [torch.Generator().manual_seed(seed) for seed in range(number)]
    sample, unknown = torch.full((number, 3), -1), torch.full((number,), 3)
    output = scheduler.step(logits.expand(number, 3, 2), 2, sample, unknown, LevelSampling(), noise)
    counts = (output.prev_sample != -1).sum(0).double()
    assert counts.sum() == number
    assert ((counts - number / 3) ** 2 / (number / 3)).sum() < 13.8  # 99.9 % quantile with 2 degrees of freedom


def test_a_sample_depends_on_its_own_generator_only() -> None:
    scheduler = MaskedCodeScheduler()
    scheduler.set_timesteps(4)
    sample, unknown = torch.full((NUM_SAMPLES, NUM_POSITIONS), -1), torch.full((NUM_SAMPLES,), NUM_POSITIONS)
    whole = scheduler.step(LOGITS, 3, sample, unknown, LevelSampling(), generators()).prev_sample
    for row in range(NUM_SAMPLES):
        part = slice(row, row + 1)
        alone = scheduler.step(LOGITS[part], 3, sample[part], unknown[part], LevelSampling(), generators()[part])
        assert torch.equal(alone.prev_sample, whole[part])


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="masking_schedule must be one of"):
        MaskedCodeScheduler(masking_schedule="sine")
