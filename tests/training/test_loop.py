from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig

from hq_tokenizers.data.encoded import CodeRows
from hq_tokenizers.files import DiskFullError
from hq_tokenizers.options.training import LoopConfig
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.tracking import HISTORY, read_history
from hq_tokenizers.training.checkpoints import list_checkpoints, read_state
from hq_tokenizers.training.loop import BEST_WEIGHTS, TrainingLoop
from hq_tokenizers.training.stage import Stage

ROWS = CodeRows(torch.arange(44).reshape(22, 2))


class InterruptionError(Exception):
    pass


class Network(nn.Module):
    """Has what a resumed run can lose: noise, batch statistics, a counter of steps."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.config = PreTrainedConfig()

    def forward(self, inputs):
        return self.layers(inputs / 44)


def _loop(folder: Path, seen: list | None = None, stop_at: int | None = None, **options) -> TrainingLoop:
    config = LoopConfig(
        **{"output_dir": str(folder), "batch_size": 4, "epochs": 4, "learning_rate": 0.01, "log_steps": 3, **options}
    )
    torch.manual_seed(7)
    model = Network()

    class TestStage(Stage):
        title = "test"

        def step(self, wrapped, batch):
            if seen is not None:
                seen.append(batch["codes"][:, 0].tolist())
            loss = (wrapped(batch["codes"].float()) - 1).square().mean()
            return loss, {"batch_mean": batch["codes"].float().mean(), "levels": torch.tensor([1.0, 3.0])}

        def validate(self, model):
            assert not model.training
            return {"loss": (model(ROWS.codes.float()) - 1).square().mean().item()}

        def after_step(self):
            self.model.steps += 1
            if self.model.steps == stop_at:
                raise InterruptionError

    return TrainingLoop(config, create_accelerator(), ROWS, TestStage(model))


def _checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(folder)[-1]
    return {f"{path.name}/{k}": v for path in newest.glob("*.safetensors") for k, v in load_file(path).items()}


def _assert_equal_runs(one: Path, other: Path) -> None:
    """Bit-equal: weights, statistics, average, optimiser, noise; and the schedule."""
    first, second = _checkpoint(one), _checkpoint(other)
    assert first.keys() == second.keys()
    assert any("exp_avg_sq" in name for name in first)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    states = [read_state(list_checkpoints(folder)[-1]) for folder in (one, other)]
    for key in ("step", "schedule", "best_loss", "optimizer_groups", "gradient_scaler"):
        assert states[0][key] == states[1][key]


OPTIONS = [
    {"ema_decay": 0.9},
    {"mixed_precision": "fp16", "max_grad_norm": 0.1},
    {"schedule": "constant", "warmup_steps": 7, "max_grad_norm": 0.1},
    {"gradient_accumulation": 2, "plateau_patience": 0, "keep_best": True, "optimizer": "adamw", "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_two_epochs_and_two_more_are_four(tmp_path, options):
    whole: list = []
    parts: list = []
    _loop(tmp_path / "whole", whole, **options).run()
    _loop(tmp_path / "parts", parts, **options, epochs=2).run()
    _loop(tmp_path / "parts", parts, **options, epochs=4).run()
    assert parts == whole
    _assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("options", [{**OPTIONS[0], "schedule": "cosine"}, *OPTIONS[1:]])
def test_an_interruption_within_an_epoch_changes_nothing(tmp_path, options):
    options = {**options, "checkpoint_steps": 3}
    _loop(tmp_path / "whole", **options).run()
    with pytest.raises(InterruptionError):
        _loop(tmp_path / "parts", stop_at=8, **options).run()
    assert read_state(list_checkpoints(tmp_path / "parts")[-1])["step"] == 6
    _loop(tmp_path / "parts", **options).run()
    _assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    validations = [
        [r["loss"] for r in read_history(tmp_path / name) if r["split"] == "validation"] for name in ("whole", "parts")
    ]
    assert validations[0] == validations[1]


def test_options_that_a_checkpoint_does_not_know_have_their_defaults(tmp_path):
    _loop(tmp_path, max_steps=3, checkpoint_steps=3).run()
    path = list_checkpoints(tmp_path)[-1] / "state.json"
    state = json.loads(path.read_text())
    del state["options"]["adam_betas"], state["options"]["mixed_precision"]
    path.write_text(json.dumps(state))
    assert _loop(tmp_path, max_steps=4, checkpoint_steps=3).run() is not None
    with pytest.raises(ValueError, match=r"adam_betas was \[0.9, 0.999\], is \[0.8, 0.9\]"):
        _loop(tmp_path, max_steps=5, adam_betas=[0.8, 0.9]).run()


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = _loop(tmp_path).run().state_dict()
    seen: list = []
    again = _loop(tmp_path, seen).run().state_dict()
    assert seen == []
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_accumulation_gives_the_gradients_of_the_whole_batch(tmp_path):
    """Without noise and batch statistics, parts of a batch are as good as the batch."""

    def train(name, **options):
        loop = _loop(tmp_path / name, max_steps=4, **options)
        loop.model.layers[1] = nn.Identity()
        loop.model.layers[2] = nn.Identity()
        return loop.run().state_dict()

    whole, parts = train("whole"), train("parts", gradient_accumulation=4)
    for name in ("layers.0.weight", "layers.3.bias"):
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=1e-6)


def test_one_adam_step_by_hand(tmp_path):
    loop = _loop(tmp_path, max_steps=1, ema_decay=None)
    before = loop.model.layers[3].bias.detach().clone()
    after = loop.run().layers[3].bias.detach()
    # Adam's first step is the learning rate times the sign of the gradient.
    torch.testing.assert_close((after - before).abs(), torch.tensor([0.01]), rtol=1e-3, atol=0)


def test_records_average_the_window(tmp_path):
    seen: list = []
    _loop(tmp_path, seen, max_steps=6).run()
    first, second = (r for r in read_history(tmp_path) if r["split"] == "train")
    means = [sum(a + 0.5 for a in batch) / len(batch) for batch in seen]
    assert first["batch_mean"] == pytest.approx(sum(means[:3]) / 3)
    assert second["batch_mean"] == pytest.approx(sum(means[3:]) / 3)
    assert (first["step"], second["step"], first["levels"]) == (3, 6, [1.0, 3.0])
    assert second["epoch"] == pytest.approx(6 / 5)
    assert second["images_per_second"] > 0


def test_the_best_weights_are_kept(tmp_path):
    loop = _loop(tmp_path, keep_best=True, epochs=6, schedule="constant")
    down = loop.stage.step

    def down_then_up(wrapped, batch):
        loss, figures = down(wrapped, batch)
        return (loss if loop.model.steps < 10 else -loss), figures

    loop.stage.step = down_then_up
    model = loop.run()
    losses = [r["loss"] for r in read_history(tmp_path) if r["split"] == "validation"]
    assert losses[-1] != min(losses)
    assert (model(ROWS.codes.float()) - 1).square().mean().item() == pytest.approx(min(losses))
    assert (tmp_path / BEST_WEIGHTS).is_file()


def test_old_checkpoints_are_deleted_and_no_halves_are_left(tmp_path):
    _loop(tmp_path, checkpoint_steps=4, keep_checkpoints=3).run()
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"step-{n:08d}" for n in (12, 16, 20)]
    assert sorted((tmp_path / "checkpoints").iterdir()) == list_checkpoints(tmp_path)


def test_losing_finiteness_is_an_error_that_spares_the_checkpoints(tmp_path):
    _loop(tmp_path, max_steps=3).run()
    loop = _loop(tmp_path, max_steps=9, checkpoint_steps=1)
    broken = loop.stage.step
    loop.stage.step = lambda m, b: (broken(m, b)[0] * math.nan, {})
    with pytest.raises(FloatingPointError, match="learning_rate"):
        loop.run()
    for value in _checkpoint(tmp_path).values():
        assert not value.is_floating_point() or value.isfinite().all()
    assert read_state(list_checkpoints(tmp_path)[-1])["step"] == 3


def test_other_options_are_not_mixed_into_a_run(tmp_path):
    _loop(tmp_path, max_steps=2).run()
    with pytest.raises(ValueError, match=r"learning_rate was 0\.01, is 0\.02.*choose another output_dir"):
        _loop(tmp_path, max_steps=4, learning_rate=0.02).run()
    _loop(tmp_path, max_steps=4, log_steps=1).run()


def test_bfloat16_autocast_reaches_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    loop = _loop(tmp_path, max_steps=1, mixed_precision="bf16")
    dtypes = []
    loop.model.layers[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    loop.run()
    assert dtypes[0] == torch.bfloat16
    # Validation is always in float32.
    assert dtypes[-1] == torch.float32
    assert "warning: this processor has no instructions for mixed_precision bf16" in capsys.readouterr().out


def test_an_overflow_in_fp16_costs_one_step_and_halves_the_scale(tmp_path):
    """The first scale, 65536, is beyond fp16 itself."""
    loop = _loop(tmp_path, max_steps=4, checkpoint_steps=1, keep_checkpoints=4, mixed_precision="fp16")
    dtypes, step = [], loop.stage.step
    loop.model.layers[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))

    def overflowing(model, batch):
        loss, figures = step(model, batch)
        # Its gradient is beyond float32 once it is scaled.
        return loss * (1e38 if loop.step == 2 else 1.0), {**figures, "loss": loss}

    loop.stage.step = overflowing
    loop.run()
    assert dtypes[0] == torch.float16
    assert dtypes[-1] == torch.float32
    checkpoints = list_checkpoints(tmp_path)
    scales = [read_state(checkpoint)["gradient_scaler"]["scale"] for checkpoint in checkpoints]
    assert scales == [32768, 32768, 16384, 16384]
    weights = [load_file(checkpoint / "model.safetensors")["layers.0.weight"] for checkpoint in checkpoints]
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(weights)]
    assert moved == [True, False, True]


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.1}])
def test_scaled_steps_are_those_of_the_loss(tmp_path, monkeypatch, options):
    """With autocast left out, fp16 differs by the scale of the loss only."""
    monkeypatch.setattr("hq_tokenizers.training.optimization.Precision.autocast", lambda self: nullcontext())
    plain = _loop(tmp_path / "plain", max_steps=4, **options).run().state_dict()
    scaled = _loop(tmp_path / "scaled", max_steps=4, mixed_precision="fp16", **options).run().state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-4, atol=1e-5)


def test_the_training_step_is_compiled(tmp_path, monkeypatch, capsys):
    """And trains as it does otherwise, but for rounding; what is validated and saved is the model itself."""
    compiled = []

    def compile_eagerly(model):
        compiled.append(model)
        return original(model, backend="eager")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    plain = _loop(tmp_path / "plain", max_steps=4).run().state_dict()
    assert compiled == []
    assert "Compiling" not in capsys.readouterr().out
    loop = _loop(tmp_path / "compiled", max_steps=4, compile=True)
    found = loop.run().state_dict()
    assert compiled == [loop.model]
    assert "Compiling the model with the first step, which may take minutes." in capsys.readouterr().out
    assert found.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


class Against(nn.Module):
    """A discriminator of numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs):
        return self.layer(inputs)


def test_one_step_of_both_by_hand(tmp_path):
    """The model's loss leaves no gradient in the discriminator, nor the discriminator's in the model."""
    loop = _loop(tmp_path, max_steps=1)
    loop.stage.discriminator = against = Against()
    kept = []
    step, groups = loop.stage.step, loop.stage.parameter_groups()
    loop.stage.step = lambda wrapped, batch: (step(wrapped, batch)[0], {})
    loop.stage.discriminator_step = lambda: (
        kept.append(1) or (against(torch.ones(1, 1)).sum(), {"judged": torch.ones(())})
    )
    loop.stage.parameter_groups = lambda: [*groups, {"params": list(against.parameters()), "lr": 0.5}]
    loop = TrainingLoop(loop.config, loop.accelerator, ROWS, loop.stage)
    before = {name: value.clone() for name, value in against.state_dict().items()}
    bias = loop.model.layers[3].bias.detach().clone()
    loop.run()
    # Adam's first step is the learning rate times the sign of the gradient.
    for name, value in against.state_dict().items():
        torch.testing.assert_close(before[name] - value, torch.full_like(value, 0.5), rtol=1e-3, atol=0)
    torch.testing.assert_close((loop.model.layers[3].bias - bias).abs(), torch.tensor([0.01]), rtol=1e-3, atol=0)
    assert kept == [1]
    saved = load_file(list_checkpoints(tmp_path)[-1] / "discriminator.safetensors")
    assert all(torch.equal(value, against.state_dict()[name]) for name, value in saved.items())


def test_a_figure_that_begins_in_a_window_is_averaged_over_its_steps(tmp_path):
    options = {"log_steps": 4, "checkpoint_steps": 3}

    def run(folder, stop_at=None, **more):
        loop = _loop(folder, stop_at=stop_at, **options, **more)
        step = loop.stage.step

        def with_more(model, batch):
            loss, figures = step(model, batch)
            return loss, figures | ({"late": torch.tensor(float(loop.step))} if loop.step >= 2 else {})

        loop.stage.step = with_more
        loop.run()

    run(tmp_path / "whole", max_steps=8)
    with pytest.raises(InterruptionError):
        run(tmp_path / "parts", stop_at=4, max_steps=8)
    run(tmp_path / "parts", max_steps=8)
    for name in ("whole", "parts"):
        late = [r["late"] for r in read_history(tmp_path / name) if r["split"] == "train"]
        assert late == [2.5, 5.5]


def test_models_that_are_split_over_devices_are_refused(tmp_path, monkeypatch):
    from accelerate import Accelerator, DistributedType

    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match=r"accelerate is configured for FSDP, .*Start it with torchrun"):
        _loop(tmp_path)


def test_a_cosine_schedule_is_not_stretched(tmp_path):
    """Its first half in a run of 10 steps has other learning rates than in one of 20."""
    _loop(tmp_path, schedule="cosine", epochs=2).run()
    for longer in ({"epochs": 4}, {"max_steps": 11}):
        with pytest.raises(ValueError, match=r"a run of 10 steps with schedule cosine.*Choose the steps before a run"):
            _loop(tmp_path, schedule="cosine", **longer).run()
    # Ten steps said in another way.
    _loop(tmp_path, schedule="cosine", max_steps=10).run()


def test_a_finished_run_says_so(tmp_path, capsys):
    _loop(tmp_path, max_steps=2).run()
    assert "nothing is trained" not in capsys.readouterr().out
    _loop(tmp_path, max_steps=2).run()
    assert "holds a finished run of 2 steps: nothing is trained. For a longer" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_run_that_is_longer_already_says_so(tmp_path, capsys):
    _loop(tmp_path, max_steps=6).run()
    capsys.readouterr()
    loop = _loop(tmp_path, max_steps=2)
    loop.run()
    said = " ".join(capsys.readouterr().out.split())
    assert "a run of 6 steps, longer than the 2 asked for: nothing is trained, and the report is of the 6 steps" in said
    assert loop.step == 6


def test_a_line_cut_off_by_an_interruption_does_not_block_the_run(tmp_path):
    _loop(tmp_path, max_steps=3).run()
    whole = read_history(tmp_path)
    with (tmp_path / HISTORY).open("a") as file:
        file.write('{"step": 3, "epo')
    assert read_history(tmp_path) == whole
    _loop(tmp_path, max_steps=6).run()
    history = read_history(tmp_path)
    assert history[: len(whole)] == whole
    assert history[-1]["step"] == 6


def test_an_interrupted_rewrite_keeps_the_history(tmp_path, monkeypatch):
    _loop(tmp_path, max_steps=3).run()
    whole = read_history(tmp_path)

    def interrupt(*arguments):
        raise InterruptionError

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(InterruptionError):
        _loop(tmp_path, max_steps=6).run()
    assert read_history(tmp_path) == whole


def test_another_number_of_processes_is_refused(tmp_path):
    _loop(tmp_path, max_steps=2).run()
    own = list_checkpoints(tmp_path)[-1] / "process-0.safetensors"
    own.with_name("process-1.safetensors").write_bytes(own.read_bytes())
    with pytest.raises(ValueError, match="was written by 2 processes, not 1: continue the run with 2"):
        _loop(tmp_path, max_steps=4).run()


def _figures(folder: Path) -> list[dict]:
    """The history without what depends on the machine."""
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in read_history(folder)]


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation": 2}, {"validation_steps": 4}])
def test_records_after_an_interruption_are_those_of_the_whole_run(tmp_path, options):
    """Checkpoints at 3, 6, 9, … lie within the windows of the records at 4, 8, 12, …"""
    options = {"log_steps": 4, "checkpoint_steps": 3, **options}
    _loop(tmp_path / "whole", **options).run()
    with pytest.raises(InterruptionError):
        _loop(tmp_path / "parts", stop_at=8, **options).run()
    _loop(tmp_path / "parts", **options).run()
    assert _figures(tmp_path / "parts") == _figures(tmp_path / "whole")


def test_the_speed_after_an_interruption_counts_the_time_before(tmp_path, monkeypatch):
    """One second a step: as many images per second, wherever the window was cut."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def run(**options):
        loop = _loop(tmp_path, log_steps=4, checkpoint_steps=3, **options)
        optimize = loop._optimize

        def slow(*arguments):
            now[0] += 1.0
            optimize(*arguments)

        loop._optimize = slow
        loop.run()

    with pytest.raises(InterruptionError):
        run(max_steps=12, stop_at=8)
    now[0] = 500.0
    run(max_steps=12)
    speeds = {r["step"]: r["images_per_second"] for r in read_history(tmp_path) if r["split"] == "train"}
    assert speeds == pytest.approx({4: 4.0, 8: 4.0, 12: 4.0})


def _signal_after(loop: TrainingLoop, step: int, *numbers: signal.Signals) -> TrainingLoop:
    """Sends signals to this process while the loop makes a step."""
    optimize = loop._optimize

    def interrupted(*arguments):
        optimize(*arguments)
        for number in numbers if loop.step + 1 == step else ():
            signal.raise_signal(number)

    loop._optimize = interrupted
    return loop


STOPS = [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]


@pytest.mark.parametrize(("number", "error"), STOPS)
@pytest.mark.parametrize("step", [7, 10])
def test_a_run_that_is_told_to_stop_goes_on_as_if_it_had_not_been(tmp_path, capsys, number, error, step):
    """Within an epoch and at its end, with records that span the stop."""
    options = {"ema_decay": 0.9, "log_steps": 4, "checkpoint_steps": 3, "schedule": "cosine"}
    _loop(tmp_path / "whole", **options).run()
    handlers = [signal.getsignal(each) for each, _ in STOPS]
    capsys.readouterr()
    with pytest.raises(error) as caught:
        _signal_after(_loop(tmp_path / "parts", **options), step, number).run()
    assert f"Stopped at step {step} of 20: run the same command to continue." in capsys.readouterr().out
    assert read_state(list_checkpoints(tmp_path / "parts")[-1])["step"] == step
    assert error is KeyboardInterrupt or caught.value.code == 143
    assert [signal.getsignal(each) for each, _ in STOPS] == handlers
    _loop(tmp_path / "parts", **options).run()
    _assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    assert _figures(tmp_path / "parts") == _figures(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    loop = _signal_after(_loop(tmp_path, checkpoint_steps=3), 5, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert read_state(list_checkpoints(tmp_path)[-1])["step"] == 3


def test_a_second_sigterm_changes_nothing(tmp_path):
    """`timeout` sends one to the process and one to its group."""
    with pytest.raises(SystemExit):
        _signal_after(_loop(tmp_path, checkpoint_steps=3), 5, signal.SIGTERM, signal.SIGTERM).run()
    assert read_state(list_checkpoints(tmp_path)[-1])["step"] == 5


def test_an_ignored_signal_stays_ignored(tmp_path):
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _signal_after(_loop(tmp_path, max_steps=6), 2, signal.SIGINT).run()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_a_run_in_a_thread_leaves_signals_alone(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(_loop(tmp_path, max_steps=2).run).result() is not None


def test_an_evaluation_waits_for_the_next_start(tmp_path):
    """What is told to stop does not begin what may take an hour."""
    options = {"evaluation_steps": 5, "checkpoint_steps": 3, "log_steps": 4}
    evaluated: list = []

    def loop(folder):
        made = _loop(folder, **options)
        made.stage.evaluate = lambda model: evaluated.append(made.step) or {"fid": float(made.step)}
        return made

    loop(tmp_path / "whole").run()
    assert evaluated == [5, 10, 15, 20]
    evaluated.clear()
    with pytest.raises(SystemExit):
        _signal_after(loop(tmp_path / "parts"), 10, signal.SIGTERM).run()
    assert evaluated == [5]
    loop(tmp_path / "parts").run()
    assert evaluated == [5, 10, 15, 20]
    assert _figures(tmp_path / "parts") == _figures(tmp_path / "whole")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "half of the weights": lambda newest: _cut(newest / "model.safetensors"),
    "empty optimiser": lambda newest: (newest / "optimizer.safetensors").write_bytes(b""),
    "no noise": lambda newest: (newest / "process-0.safetensors").unlink(),
    "half of the state": lambda newest: _cut(newest / "state.json"),
    "zeros for a state": lambda newest: (newest / "state.json").write_bytes(bytes(99)),
    "no state": lambda newest: (newest / "state.json").unlink(),
    "another state": lambda newest: (newest / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys, damage, keep):
    options = {"checkpoint_steps": 3, "log_steps": 4, "ema_decay": 0.9}
    _loop(tmp_path / "whole", **options).run()
    with pytest.raises(SystemExit):
        _signal_after(_loop(tmp_path / "parts", **options), 13, signal.SIGTERM).run()
    older, newest = list_checkpoints(tmp_path / "parts")
    damage(newest)
    capsys.readouterr()
    # With one checkpoint to keep, the damaged one must not be the one.
    with pytest.raises(InterruptionError):
        _loop(tmp_path / "parts", stop_at=13, **options, keep_checkpoints=keep).run()
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: " in said
    assert newest.name in said
    assert f"The run continues from the older {older.name}." in said
    assert [path.name for path in list_checkpoints(tmp_path / "parts")] == [older.name, newest.name]
    _loop(tmp_path / "parts", **options).run()
    _assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    assert _figures(tmp_path / "parts") == _figures(tmp_path / "whole")
    assert all(path.name.startswith("step-000000") for path in list_checkpoints(tmp_path / "parts"))


def test_a_damaged_checkpoint_does_not_count_as_one_that_is_kept(tmp_path):
    options = {"checkpoint_steps": 3, "keep_checkpoints": 2}
    _loop(tmp_path, max_steps=9, **options).run()
    _cut(list_checkpoints(tmp_path)[-1] / "model.safetensors")
    _loop(tmp_path, max_steps=8, **{**options, "keep_checkpoints": 1}).run()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000008"]


def test_a_run_without_a_whole_checkpoint_is_refused(tmp_path):
    _loop(tmp_path, max_steps=6, checkpoint_steps=3).run()
    for checkpoint in list_checkpoints(tmp_path):
        _cut(checkpoint / "model.safetensors")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ValueError, match=r"checkpoints are all damaged \(.*step-00000006/model.*; .*step-00000003/model"
    ):
        _loop(tmp_path, max_steps=9).run()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_is_on_the_disk_before_older_ones_go(tmp_path, monkeypatch):
    _loop(tmp_path, max_steps=3, checkpoint_steps=3).run()
    events = []
    fsync, rename, rmtree = os.fsync, os.rename, shutil.rmtree

    def recorded_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", lambda *a: (events.append(f"{a[0].name} → {a[1].name}"), rename(*a)))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **o: (events.append(f"delete {path.name}"), rmtree(path, **o)))
    _loop(tmp_path, max_steps=6, checkpoint_steps=3, keep_checkpoints=1).run()
    name = "step-00000006"
    renamed = events.index(f"{name}.partial → {name}")
    files = {path.name.replace("state.json", "state.json.partial") for path in list_checkpoints(tmp_path)[0].iterdir()}
    assert files <= set(events[:renamed])
    assert events[renamed - 1 : renamed + 2] == [f"{name}.partial", f"{name}.partial → {name}", "checkpoints"]
    assert events.index("step-00000003 → step-00000003.old.partial") > renamed
    assert events[-1] == "delete step-00000003.old.partial"


def test_what_a_kill_leaves_is_cleared_away(tmp_path):
    _loop(tmp_path, max_steps=3, checkpoint_steps=3).run()
    for name in ("step-00000001.old.partial", "step-00000005.partial"):
        (tmp_path / "checkpoints" / name).mkdir()
    _loop(tmp_path, max_steps=6, checkpoint_steps=3).run()
    assert sorted((tmp_path / "checkpoints").iterdir()) == list_checkpoints(tmp_path)


def test_a_full_disk_spares_the_checkpoints(tmp_path, monkeypatch):
    options = {"checkpoint_steps": 3, "log_steps": 4}
    _loop(tmp_path / "whole", **options).run()
    _loop(tmp_path / "parts", max_steps=3, **options).run()
    intact = _checkpoint(tmp_path / "parts")

    def full(tensors, path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("hq_tokenizers.training.checkpoints.save_file", full)
        with pytest.raises(DiskFullError, match=r"no space to write .*step-00000006.*optimizer\.safetensors"):
            _loop(tmp_path / "parts", **options).run()
    assert [path.name for path in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-00000003"]
    assert all(torch.equal(value, intact[name]) for name, value in _checkpoint(tmp_path / "parts").items())
    _loop(tmp_path / "parts", **options).run()
    _assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("damage", [_cut, Path.unlink], ids=["cut", "missing"])
def test_lost_best_weights_are_said_and_replaced(tmp_path, capsys, damage):
    options = {"keep_best": True, "learning_rate": 0.5, "schedule": "constant"}
    _loop(tmp_path, epochs=2, **options).run()
    damage(tmp_path / BEST_WEIGHTS)
    capsys.readouterr()
    # Nothing is left to train: the last weights are what there is.
    model = _loop(tmp_path, epochs=2, **options).run()
    said = " ".join(capsys.readouterr().out.split())
    assert f"{BEST_WEIGHTS} is missing or damaged" in said
    assert "The run ends with the best weights of later validations; without any, with the last ones." in said
    last = load_file(list_checkpoints(tmp_path)[-1] / "model.safetensors")
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())
    model = _loop(tmp_path, epochs=4, **options).run()
    later = [r["loss"] for r in read_history(tmp_path) if r["split"] == "validation" and r["step"] > 10]
    assert (model(ROWS.codes.float()) - 1).square().mean().item() == pytest.approx(min(later))


@pytest.mark.parametrize("damage", ['{"step": 3, "epo\n', "\x00\x00\x00\n", "7\n", "\n"])
def test_a_damaged_line_of_the_history_costs_that_line_only(tmp_path, capsys, damage):
    _loop(tmp_path, max_steps=6, log_steps=2).run()
    whole = read_history(tmp_path)
    lines = (tmp_path / HISTORY).read_text().splitlines(keepends=True)
    (tmp_path / HISTORY).write_text("".join([lines[0], damage, *lines[2:]]))
    assert read_history(tmp_path) == [whole[0], *whole[2:]]
    capsys.readouterr()
    _loop(tmp_path, max_steps=8, log_steps=2).run()
    assert f"{HISTORY} has 1 damaged line(s), which are left out" in " ".join(capsys.readouterr().out.split())
    assert read_history(tmp_path)[:-2] == [whole[0], *whole[2:]]
