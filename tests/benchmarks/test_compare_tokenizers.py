from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModel

from hq_tokenizers.data.config import DataConfig
from hq_tokenizers.data.loading import load_image_splits

SMALL = {"network": "digits", "hidden_size": 8, "codebook_dim": 4, "codebook_size": 8}
SYSTEMS = {
    "RSQ-VAE L=3": {"preset": "rsq_vae", "num_levels": 3, **SMALL},
    "VAE": {"preset": "vae", "network": "digits", "hidden_size": 8},
}
DATA = {"train_split": "train[:128]", "validation_split": "test[:50]"}


@pytest.fixture
def script(load_script):
    """The script as a module."""
    return load_script("compare_tokenizers")


@pytest.fixture
def compare(script, run_script, tmp_path):
    """Runs the script on a small comparison in `tmp_path`."""

    def run(*words, **changes):
        options = {
            "name": "small",
            "output_dir": str(tmp_path / "runs"),
            "report_dir": str(tmp_path / "report"),
            "epochs": 1,
            "seeds": [0, 1],
            "data": DATA,
            "systems": SYSTEMS,
        }
        run_script(script, options | changes, *words)

    return run


@pytest.fixture
def no_training(script, monkeypatch):
    def train(config):
        raise AssertionError("trained again")

    monkeypatch.setattr(script, "train_tokenizer", train)


def test_records_table_and_plots(compare, tmp_path):
    compare("--only", "VAE")
    compare()
    names = [f"{name}-seed{seed}.json" for name in ("rsq_vae_l_3", "vae") for seed in (0, 1)]
    records = {name: json.loads((tmp_path / "report" / "small" / name).read_text()) for name in names}
    assert sorted(path.name for path in (tmp_path / "report" / "small").iterdir()) == names
    _, _, *rows = (tmp_path / "report" / "small.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| RSQ-VAE L=3", "| VAE"]
    errors = [1e3 * records[f"vae-seed{seed}.json"]["test"]["mse"] for seed in (0, 1)]
    assert f"| {sum(errors) / 2:.2f} ({errors[0]:.2f}, {errors[1]:.2f}) |" in rows[1]
    assert errors[0] != errors[1]
    for plot in ("rate_distortion", "usage", "training"):
        assert (tmp_path / "report" / f"small_{plot}.png").stat().st_size > 5000


def test_partial_errors_are_those_of_the_saved_tokenizer(compare, tmp_path):
    compare("--only", "RSQ-VAE L=3", "--seeds", "[1]")
    record = json.loads((tmp_path / "report" / "small" / "rsq_vae_l_3-seed1.json").read_text())
    model = AutoModel.from_pretrained(tmp_path / "runs" / "rsq_vae_l_3" / "seed1").eval()
    (rows,) = load_image_splits(DataConfig(**DATA), "validation_split")
    pixel_values = next(iter(rows.batches([torch.arange(50)], torch.device("cpu"))))["pixel_values"]
    with torch.no_grad():
        codes = model.encode(pixel_values)
        expected = [(model.decode(codes, n) - pixel_values).square().mean().item() for n in (1, 2, 3)]
    assert record["partial_mse"] == pytest.approx(expected, rel=1e-5)
    assert record["partial_mse"][-1] == pytest.approx(record["test"]["mse"], rel=1e-5)


def test_what_has_a_record_is_not_trained_again(compare, tmp_path, request):
    compare("--seeds", "[0]")
    table = (tmp_path / "report" / "small.md").read_text()

    request.getfixturevalue("no_training")
    compare("--seeds", "[0]")
    compare("--report_only", "true")
    assert (tmp_path / "report" / "small.md").read_text() == table
    with pytest.raises(AssertionError, match="trained again"):
        compare()


def test_a_record_of_another_budget_is_refused(compare, no_training, tmp_path):
    path = tmp_path / "report" / "small" / "vae-seed0.json"
    path.parent.mkdir(parents=True)
    path.with_suffix(".partial").write_text("{")
    budget = {"epochs": 7.0, "batch_size": 32, "schedule": "constant", "learning_rate": 1e-3, "ema_decay": None}
    path.write_text(json.dumps({"model": SYSTEMS["VAE"], "budget": budget, "data": DATA}))
    with pytest.raises(SystemExit, match=r"vae-seed0.json is of a run with budget .*'epochs': 7.0"):
        compare("--only", "VAE")
    with pytest.raises(SystemExit, match="is of a run with data"):
        compare("--only", "VAE", "--epochs", "7", data=DATA | {"train_split": "train[:64]"})


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["--only", "VAE,VQ"], {}, r"--only names \['VQ'\]; the systems are RSQ-VAE L=3, VAE"),
        ([], {"systems": {}}, "there are no systems to compare"),
        ([], {"data": DATA | {"label_map_classes": 4}}, "data.label_map_classes has to be null"),
    ],
)
def test_what_is_refused(compare, no_training, words, changes, message):
    with pytest.raises(SystemExit, match=message):
        compare(*words, **changes)
