from __future__ import annotations

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.diagnostics import Finding
from hq_tokenizers.models import presets
from hq_tokenizers.models.checkpointed_layers import enable_gradient_checkpointing
from hq_tokenizers.models.presets import vq_vae
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import MetricConfig
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.checkpoints import list_checkpoints
from hq_tokenizers.training.loop import TrainingLoop
from hq_tokenizers.training.model_options import build_tokenizer_config
from hq_tokenizers.training.tokenizer import EARLY_STEPS, TokenizerStage, _panels, train_tokenizer

MODEL = {"preset": "sq_vae", "network": "digits", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}


def _config(folder, **options):
    data = options.pop("data", DataConfig(train_split="train[:200]", validation_split="test[:50]"))
    options = {"output_dir": str(folder), "batch_size": 20, "epochs": 2, "log_steps": 5, "model": MODEL, **options}
    return TokenizerTrainingConfig(data=data, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, train_tokenizer(_config(folder, epochs=4))


def test_the_folder_loads_and_does_what_the_report_says(trained):
    folder, report = trained
    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    assert model.config.codebook_size == 8
    assert report["num_parameters"] == sum(p.numel() for p in model.parameters())
    assert report["bits_per_image"] == 16 * 3
    from sklearn.datasets import load_digits

    digits = torch.from_numpy(load_digits().images[1500:1550] / 16).float()[:, None]
    output = model(processor(list(digits[:, 0].numpy()))["pixel_values"])
    error = (output.reconstruction - digits).square()
    assert report["test"]["mse"] == pytest.approx(error.mean().item(), rel=1e-4)
    counts = torch.bincount(output.codes.flatten().flatten(), minlength=8) / 800
    assert report["test"]["perplexity"][0] == pytest.approx(math.exp(torch.special.entr(counts).sum()), rel=1e-4)


def test_pictures_history_and_report(trained):
    folder, report = trained
    for name in ("reconstructions.png", "curves.png"):
        with Image.open(folder / name) as picture:
            assert picture.width > 100
    on_disk = json.loads((folder / "report.json").read_text())
    assert on_disk["test"] == report["test"]
    assert on_disk["options"]["model"] == MODEL
    history = read_history(folder)
    assert [r["step"] for r in history if r["split"] == "train"] == list(range(5, 41, 5))
    assert [r["step"] for r in history if r["split"] == "validation"] == [10, 20, 30, 40]
    assert {"loss", "mse", "batch_perplexity", "entropy", "variance", "images_per_second"} <= history[0].keys()
    assert list((folder / "tensorboard").iterdir())


def test_a_vae_is_as_good_in_evaluation_as_in_training(tmp_path):
    model = {"preset": "vae", "network": "digits", "hidden_size": 16, "codebook_dim": 16}
    train_tokenizer(_config(tmp_path, model=model, epochs=4, learning_rate=2e-3, data=DataConfig()))
    history = read_history(tmp_path)
    errors = {split: [r["mse"] for r in history if r["split"] == split][-1] for split in ("train", "validation")}
    # Its decoder's batch norms describe noisy latents: decoded from the means the error is nearly twice as large.
    assert errors["validation"] < 1.1 * errors["train"]


def test_every_figure_of_a_validation_is_plotted(trained):
    folder, _ = trained
    (record,) = [r for r in read_history(folder) if (r["split"], r["step"]) == ("validation", 40)]
    elsewhere = {"step", "epoch", "split", "num_images", "mse_per_image", "psnr"}
    plotted = {name for names in _panels(AutoModel.from_pretrained(folder)).values() for name in names}
    assert record.keys() - elsewhere <= plotted
    deterministic = _panels(AutoModel.from_config(vq_vae("digits")))
    assert plotted - {name for names in deterministic.values() for name in names} == {"entropy", "variance"}


def test_it_learns_and_the_schedule_of_the_temperature_advances(trained):
    folder, _ = trained
    losses = [r["loss"] for r in read_history(folder) if r["split"] == "validation"]
    assert losses[-1] < losses[0] - 2
    assert AutoModel.from_pretrained(folder).temperature.step.item() == 40


@pytest.mark.parametrize(
    "options",
    [{"ema_decay": 0.9}, {"data": DataConfig(horizontal_flip=True, color_jitter=[0.2, 0.2, 0, 0], num_workers=0)}],
)
def test_two_epochs_and_two_more_are_four_with_the_real_model(tmp_path, options, monkeypatch):
    data = options.get("data", DataConfig())
    data.train_split, data.validation_split = "train[:100]", "test[:20]"
    options = {**options, "data": data}
    train_tokenizer(_config(tmp_path / "whole", **options, epochs=4))
    train_tokenizer(_config(tmp_path / "parts", **options, epochs=2))
    train_tokenizer(_config(tmp_path / "parts", **options, epochs=4))
    checkpoints = [list_checkpoints(tmp_path / name)[-1] for name in ("whole", "parts")]
    for file in sorted(path.name for path in checkpoints[0].glob("*.safetensors")):
        first, second = (load_file(checkpoint / file) for checkpoint in checkpoints)
        assert [name for name in first if not torch.equal(first[name], second[name])] == [], file
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_data_read_as_they_are_needed_give_the_run_of_data_in_memory(tmp_path, monkeypatch, workers):
    """Also when that run is cut in the middle of an epoch."""
    data = DataConfig(train_split="train[:100]", validation_split="test[:20]", num_workers=workers)
    options = {"data": data, "log_steps": 4, "checkpoint_steps": 3}
    train_tokenizer(_config(tmp_path / "memory", **options))
    lazy = partial(load_image_splits, memory_limit=0)
    monkeypatch.setattr("hq_tokenizers.training.tokenizer_setup.load_image_splits", lazy)
    train_tokenizer(_config(tmp_path / "lazy", **options))
    advance = TokenizerStage.after_step

    def cut(stage):
        advance(stage)
        if stage.model.temperature.step == 8:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerStage, "after_step", cut)
        with pytest.raises(InterruptedError):
            train_tokenizer(_config(tmp_path / "cut", **options))
    train_tokenizer(_config(tmp_path / "cut", **options))
    whole = _checkpoint_and_history(tmp_path / "memory")
    assert _checkpoint_and_history(tmp_path / "lazy") == whole
    assert _checkpoint_and_history(tmp_path / "cut") == whole


def _checkpoint_and_history(folder):
    history = [{k: v for k, v in record.items() if k != "images_per_second"} for record in read_history(folder)]
    return history, [path.read_bytes() for path in sorted(list_checkpoints(folder)[-1].glob("*.safetensors"))]


def test_gradient_checkpointing_saves_memory_only_and_may_change_within_a_run(tmp_path, monkeypatch):
    enabled = []

    def enable(model):
        enabled.append(model)
        enable_gradient_checkpointing(model)

    monkeypatch.setattr("hq_tokenizers.training.loop.enable_gradient_checkpointing", enable)
    data = DataConfig(train_split="train[:100]", validation_split="test[:20]")
    train_tokenizer(_config(tmp_path / "plain", data=data, epochs=2))
    train_tokenizer(_config(tmp_path / "other", data=data, epochs=1))
    train_tokenizer(_config(tmp_path / "other", data=data, epochs=2, gradient_checkpointing=True))
    assert len(enabled) == 1
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("plain", "other")]
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []


def test_initial_weights_follow_the_seed_only(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingLoop, "run", lambda loop: loop.model.eval())
    heads = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(1)
        train_tokenizer(_config(tmp_path / name, seed=seed))
        heads.append(load_file(tmp_path / name / "model.safetensors"))
    codebook = next(name for name in heads[0] if name.endswith("codebook.weight"))
    assert torch.equal(heads[0][codebook], heads[1][codebook])
    assert not torch.equal(heads[0][codebook], heads[2][codebook])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {**MODEL, "image_size": 28}}, "model.image_size is 28, but the data say 8"),
        ({"model": {**MODEL, "num_downsampling": 4}}, "stride 16"),
        ({"batch_size": 500}, "fewer than batch_size 500"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(_config(tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {**MODEL, "codebok_size": 3}}, "Did you mean model.codebook_size"),
        ({"model": {"preset": "sq_vae", "netwrok": "mnist"}}, "Did you mean model.network"),
        ({"model": {"from_autoencodr": "folder"}}, "Did you mean model.from_autoencoder"),
        ({"model": {"preset": "sq_vea"}}, "model.preset 'sq_vea' is unknown. Did you mean sq_vae"),
        (
            {"model": {"preset": "sq_vae", "num_levels": 4}},
            "num_levels is for the presets rsq_vae, rq_vae; sq_vae has no",
        ),
        ({"model": {"preset": "sq_vae", "network": "mnits"}}, "Did you mean mnist"),
        ({"model": {"model_type": "bert"}}, "model.model_type 'bert' is unknown. Accepted: .*sq_vae"),
        ({"model": {**MODEL, "model_type": "sq_vae"}}, "give one of them"),
        ({"metrics": MetricConfig(lpips=None)}, "Only evaluations need metrics.lpips"),
        ({"evaluation_steps": 5, "data": DataConfig(label_map_classes=3)}, "evaluation_steps is for images"),
    ],
)
def test_options_that_contradict_each_other_are_named_before_data_are_read(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(
        "hq_tokenizers.training.tokenizer_setup.load_image_splits", lambda *arguments: pytest.fail("data read")
    )
    with pytest.raises(ValueError, match=message):
        train_tokenizer(_config(tmp_path / "run", **options))


def test_plain_model_types_and_numbers_in_text(tmp_path):
    section = {"model_type": "sq_vae", "gumbel_decay": "1e-4", "num_downsampling": 1}
    config = build_tokenizer_config(section, {"image_size": 8, "num_channels": 1})
    assert (config.model_type, config.gumbel_decay, config.image_size, config.num_channels) == ("sq_vae", 1e-4, 8, 1)
    # Also where the default is an integer, in a list, or the field is an argument of a preset.
    section = {"preset": "rsq_vae", "num_levels": "1e1", "hidden_size": "32", "log_variance_range": ["-1e1", "1e1"]}
    section |= {"initial_log_variance": "1e0"}
    config = build_tokenizer_config(section, {"image_size": 32, "num_channels": 3})
    assert (len(config.groups[0].codebook_sizes), config.hidden_size, config.initial_log_variance) == (10, 32, 1.0)
    assert list(config.log_variance_range) == [-10.0, 10.0]
    with pytest.raises(ValueError, match=r"hidden_size must be an integer from 2 .*, got 'wide'"):
        build_tokenizer_config({"model_type": "sq_vae", "hidden_size": "wide"}, {})


def test_a_recipe_for_a_preset_without_recipes_is_refused():
    with pytest.raises(ValueError, match=r"recipe is for the presets sq_vae, .*rsq_vae.*; vq_vae has one way"):
        build_tokenizer_config({"preset": "vq_vae", "network": "digits", "recipe": "paper"}, {})


def test_splits_of_different_sizes_are_refused(tmp_path):
    for split, size in (("train", 8), ("test", 12)):
        for index in range(2):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.new("L", (size, size)).save(tmp_path / split / f"{index}.png")
    data = DataConfig(name="imagefolder", path=str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.validation_split has images of 12×12×1.*set data\.image_size"):
        train_tokenizer(_config(tmp_path / "run", data=data))


@pytest.mark.parametrize(
    ("validation_steps", "early_steps", "warned"), [(4, 0, False), (10, 0, True), (10, EARLY_STEPS, False)]
)
def test_no_codebook_is_called_broken_in_its_first_epoch(
    tmp_path, monkeypatch, capsys, validation_steps, early_steps, warned
):
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.EARLY_STEPS", early_steps)
    finding = Finding((0,), "collapsed", "perplexity 1.0", "youth", {})
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.diagnose", lambda *arguments: [finding])
    train_tokenizer(_config(tmp_path, validation_steps=validation_steps, max_steps=max(8, validation_steps)))
    printed = capsys.readouterr().out
    assert ("warning: Level 1: collapsed" in printed) == warned
    # A run that ends before is told what there is so far.
    assert ("it is too early to judge the codes" in printed) != warned
    assert "Level 1: collapsed (perplexity 1.0)" in printed


def test_codes_that_are_well_are_called_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.diagnose", lambda *arguments: [])
    train_tokenizer(_config(tmp_path, max_steps=1))
    assert "After 1 steps, which is early: nothing is wrong with the codes of any level." in capsys.readouterr().out
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.EARLY_STEPS", 2)
    train_tokenizer(_config(tmp_path, max_steps=50))
    assert "\nNothing is wrong with the codes of any level." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("preset", "recipe", "told"), [("sq_vae", "paper", True), ("sq_vae", "tuned", False), ("vq_vae", None, False)]
)
def test_findings_of_a_papers_recipe_come_with_the_way_without_it(tmp_path, monkeypatch, capsys, preset, recipe, told):
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.EARLY_STEPS", 2)
    finding = Finding((0,), "collapsed", "perplexity 1.0", "youth", {})
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.diagnose", lambda *arguments: [finding])
    model = {"preset": preset, "network": "digits", "hidden_size": 8} | ({"recipe": recipe} if recipe else {})
    train_tokenizer(_config(tmp_path, validation_steps=15, max_steps=30, model=model))
    # Once, as the finding, although two validations find it.
    assert capsys.readouterr().out.count("Or train without --model.recipe paper, in another output_dir") == int(told)


def _write_images(folder, seed):
    from datasets import Array2D, Dataset, Features

    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for split, number in (("train", 40), ("test", 20)):
        images = list(rng.integers(0, 256, (number, 8, 8), dtype=np.uint8))
        rows = Dataset.from_dict({"image": images}, features=Features({"image": Array2D((8, 8), "uint8")}))
        rows.to_parquet(folder / f"{split}.parquet")


def _data(path, **options):
    files = {"train": "train.parquet", "test": "test.parquet"}
    return DataConfig(name="parquet", path=str(path), files=files, **options)


def test_a_run_is_not_continued_with_a_preset_that_means_something_else_today(tmp_path, monkeypatch):
    def train(steps):
        model = {"preset": "rsq_vae", "network": "digits", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}
        config = _config(tmp_path / "run", max_steps=steps, schedule="constant", model=model)
        return train_tokenizer(config)["steps"]

    assert train(1) == 1
    with monkeypatch.context() as patched:
        patched.setattr(presets, "SHARP", 0.25)
        message = r"of another call \(variance_factor was 0\.3, is 0\.25\): choose another output_dir"
        with pytest.raises(ValueError, match=message):
            train(2)
    state = list_checkpoints(tmp_path / "run")[-1] / "state.json"
    stored = json.loads(state.read_text())
    # A field that did not exist yet was as it is by default; nor did older versions store any.
    del stored["settings"]["beam_width"]
    state.write_text(json.dumps(stored))
    assert train(2) == 2
    (state,) = [path / "state.json" for path in list_checkpoints(tmp_path / "run") if path.name.endswith("2")]
    stored = json.loads(state.read_text())
    del stored["settings"]
    state.write_text(json.dumps(stored))
    assert train(3) == 3


def test_a_run_is_not_continued_on_other_images(tmp_path):
    """Under the same path; the same ones may lie elsewhere."""

    def train(steps, path="images", **options):
        config = _config(tmp_path / "run", max_steps=steps, schedule="constant", data=_data(tmp_path / path, **options))
        return train_tokenizer(config)["steps"]

    _write_images(tmp_path / "images", 0)
    assert train(1) == 1
    (tmp_path / "images").rename(tmp_path / "kept")
    _write_images(tmp_path / "images", 1)
    message = r"holds a run of another call \(made from other data: training_images_sha256 was '\w+', is '\w+'; val"
    with pytest.raises(ValueError, match=message):
        train(2)
    shutil.copy(tmp_path / "kept" / "train.parquet", tmp_path / "images")
    with pytest.raises(ValueError, match=r"\(made from other data: validation_images_sha256 was"):
        train(2)
    assert train(2, "kept") == 2


def test_options_that_decide_nothing_may_change_within_a_run(tmp_path):
    _write_images(tmp_path / "images", 0)

    def train(steps, path, **options):
        config = _config(tmp_path / "run", max_steps=steps, schedule="constant", data=_data(path, **options))
        return train_tokenizer(config)["steps"]

    assert train(1, tmp_path / "images") == 1
    assert train(2, f"{tmp_path}/images/", num_workers=0, test_split="test[:10]") == 2
    with pytest.raises(ValueError, match=r"another call \(data.horizontal_flip was False, is True\)"):
        train(3, tmp_path / "images", horizontal_flip=True)
    options = {"schedule": "constant", "data": _data(tmp_path / "images")}
    with pytest.raises(ValueError, match=r"another call \(model.codebook_size was 8, is 4\)"):
        train_tokenizer(_config(tmp_path / "run", model=MODEL | {"codebook_size": 4}, **options))
