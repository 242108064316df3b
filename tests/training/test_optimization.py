from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from hq_tokenizers.options.training import LoopConfig
from hq_tokenizers.quantization.reestimation import Reservoir
from hq_tokenizers.training.optimization import (
    MovingAverage,
    Schedule,
    build_optimizer,
    decay_groups,
    precision_warning,
)


def _optimizer(config: LoopConfig):
    return build_optimizer(config, [{"params": [nn.Parameter(torch.ones(2))]}])


def _rates(schedule: Schedule, optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.after_step()
    return rates


def test_cosine_with_warm_up_in_closed_form():
    config = LoopConfig(schedule="cosine", warmup_steps=4, learning_rate=0.1)
    optimizer = _optimizer(config)
    rates = _rates(Schedule(config, optimizer, 20), optimizer, 20)
    expected = [0.1 * t / 4 for t in range(4)]
    expected += [0.05 * (1 + math.cos(math.pi * (t - 4) / 16)) for t in range(4, 20)]
    assert rates == pytest.approx(expected)


def test_plateau_halves_after_four_bad_validations_also_for_negative_losses():
    config = LoopConfig(schedule="plateau", plateau_patience=3, plateau_factor=0.5, learning_rate=0.1)
    optimizer = _optimizer(config)
    schedule = Schedule(config, optimizer, 1)
    rates = []
    for loss in [-10.0, -11.0, -11.0, -10.9, -11.0, -10.0, -11.0, -12.0]:
        schedule.after_validation(loss)
        schedule.after_step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1] * 5 + [0.05] * 3)


@pytest.mark.parametrize("kind", ["plateau", "constant", "cosine"])
def test_schedule_state_survives_json(kind):
    config = LoopConfig(schedule=kind, warmup_steps=0 if kind == "plateau" else 3, plateau_patience=1)

    def run(state=None, optimizer_state=None, losses=()):
        optimizer = _optimizer(config)
        schedule = Schedule(config, optimizer, 12)
        if state is not None:
            optimizer.load_state_dict(optimizer_state)
            schedule.load_state_dict(json.loads(json.dumps(state)))
        rates = []
        for loss in losses:
            rates += _rates(schedule, optimizer, 1)
            schedule.after_validation(loss)
        return rates, schedule.state_dict(), optimizer.state_dict()

    losses = [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0]
    whole, *_ = run(losses=losses)
    first, state, optimizer_state = run(losses=losses[:4])
    second, *_ = run(state, optimizer_state, losses[4:])
    assert first + second == whole
    assert kind == "constant" or len(set(whole)) > 1


def test_moving_average_in_closed_form():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = MovingAverage(model, decay=0.4)
    floats = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    expected = {name: value.double().clone() for name, value in floats.items()}
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model[1].running_mean += 1
        model[1].num_batches_tracked += 2
        decay = min(0.4, (1 + step) / (10 + step))
        for name, value in floats.items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
        average.update(model, step)
    average.copy_rest(model)
    averaged = average.model.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name].double(), value, rtol=0, atol=1e-5)
    assert averaged["1.num_batches_tracked"] == 10
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    assert not average.model.training


def test_average_takes_over_what_was_replaced_and_leaves_reservoirs_out():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.BatchNorm1d(2), "reservoir": Reservoir(5, 2)})
    average = MovingAverage(model, 0.99)
    with torch.no_grad():
        for tensor in (*model["a"].parameters(), model["b"].running_mean, model["reservoir"].vectors):
            tensor.normal_()
    average.take_over(model, [model["a"].weight, model["b"].running_mean])
    assert torch.equal(average.model["a"].weight, model["a"].weight)
    assert torch.equal(average.model["b"].running_mean, model["b"].running_mean)
    assert not torch.equal(average.model["a"].bias, model["a"].bias)
    average.update(model, 1000)
    assert not average.model["reservoir"].vectors.any()
    average.copy_rest(model)
    assert torch.equal(average.model["reservoir"].vectors, model["reservoir"].vectors)
    assert not torch.equal(average.model["a"].bias, model["a"].bias)


def test_weight_decay_spares_vectors_and_embeddings():
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3)})
    decayed, plain = decay_groups(model)
    assert [p.shape for p in decayed["params"]] == [(3, 2)]
    assert decayed["params"][0] is model["linear"].weight
    assert len(plain["params"]) == 4
    assert plain["weight_decay"] == 0
    optimizer = build_optimizer(LoopConfig(optimizer="adamw", weight_decay=0.3), [decayed, plain])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_f": False, "avx512_fp16": False}


@pytest.mark.parametrize(
    ("mixed_precision", "device", "found", "warned"),
    [
        ("bf16", "cpu", AVX2, True),
        ("fp16", "cpu", AVX2, True),
        ("no", "cpu", AVX2, False),
        ("bf16", "cuda", AVX2, False),
        ("bf16", "cpu", {**AVX2, "avx512_f": True}, False),
        ("fp16", "cpu", {**AVX2, "avx512_f": True}, True),
        ("fp16", "cpu", {**AVX2, "avx512_fp16": True}, False),
        ("bf16", "cpu", {"architecture": "arm64", "bf16": True}, False),
        ("bf16", "cpu", {}, False),
    ],
)
def test_a_processor_without_instructions_for_16_bits_is_named(monkeypatch, mixed_precision, device, found, warned):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    warning = precision_warning(mixed_precision, torch.device(device))
    assert (warning is not None) == warned
    assert warning is None or f"instructions for mixed_precision {mixed_precision}" in warning
