from __future__ import annotations

import json
import math

import pytest
import torch
from matplotlib.colors import to_rgb
from transformers import AutoModel

from hq_tokenizers import __version__
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.options.data import DataConfig

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
    assert {record["versions"]["hq_tokenizers"] for record in records.values()} == {__version__}
    lines = (tmp_path / "report" / "small.md").read_text().splitlines()
    _, _, *rows = (line for line in lines if line.startswith("|"))
    # Of the table, and of the errors after every epoch, in which the VAE has no codes.
    assert [row.split(" | ")[0] for row in rows] == [
        "| RSQ-VAE L=3",
        "| VAE",
        "| system",
        "|---|---|---|",
        "| RSQ-VAE L=3",
    ]
    errors = [1e3 * records[f"vae-seed{seed}.json"]["test"]["mse"] for seed in (0, 1)]
    assert f"| {sum(errors) / 2:.2f} ({errors[0]:.2f}, {errors[1]:.2f}) |" in rows[1]
    assert errors[0] != errors[1]
    for plot in ("rate_distortion", "usage", "training"):
        assert (tmp_path / "report" / f"small_{plot}.png").stat().st_size > 5000
        assert any(line.endswith(f"(small_{plot}.png)") for line in lines)


RECORDS = {
    "stochastic": {
        "num_parameters": 1234,
        "bits_per_image": 48.0,
        "images_per_second": 10.0,
        "codebook_sizes": [8, 16],
        "partial_mse": [0.03, 0.02],
        "test": {
            **{"mse": 0.02, "psnr": 17.0, "discrete": 24 * math.log(2), "perplexity": [4.0, 12.0]},
            **{"batch_perplexity": [1.0, 1.0], "entropy": [1.0, 2.0]},
        },
        "history": [{"epoch": 1.0, "mse": 0.05, "entropy": [1.5, 2.5]}, {"epoch": 2.0, "mse": 0.02, "entropy": [1, 2]}],
    },
    "vae": {
        **{"num_parameters": 99, "bits_per_image": None, "images_per_second": 10.0, "codebook_sizes": []},
        **{"partial_mse": [], "test": {"mse": 0.01, "psnr": 20.0, "kl": 5 * math.log(2), "perplexity": []}},
        "history": [{"epoch": 1.0, "mse": 0.01}],
    },
    "deterministic": {
        **{"num_parameters": 99, "bits_per_image": 24.0, "images_per_second": 10.0, "codebook_sizes": [8]},
        **{"partial_mse": [0.04], "test": {"mse": 0.04, "psnr": 14.0, "perplexity": [2.0], "entropy": [0.0]}},
        "history": [{"epoch": 1.0, "mse": 0.04, "entropy": [0.0]}],
    },
}
FINISHED = {name: [run] for name, run in RECORDS.items()}


def test_rows_of_the_table(script):
    other = RECORDS["stochastic"] | {"test": RECORDS["stochastic"]["test"] | {"mse": 0.03, "perplexity": [2.0, 4.0]}}
    _, _, *rows = script.markdown_table(FINISHED | {"stochastic": [RECORDS["stochastic"], other]}).splitlines()
    assert rows == [
        "| stochastic | 1,234 | 48 | 24 | 25.00 (20.00, 30.00) | 17.00 | 3 / 8 | 38% / 50% | 30.00 → 20.00 | 10 |",
        "| vae | 99 | – | 5 | 10.00 (10.00) | 20.00 | – | – | – | 10 |",
        "| deterministic | 99 | 24 | – | 40.00 (40.00) | 14.00 | 2 | 25% | – | 10 |",
    ]


@pytest.fixture
def axes(script, monkeypatch):
    """The axes of the plots that are made, in their order."""
    made, create = [], script.new_figure

    def remember(*arguments, **options):
        figure, axes = create(*arguments, **options)
        made.extend(figure.axes)
        return figure, axes

    monkeypatch.setattr(script, "new_figure", remember)
    return made


def test_what_the_plots_show(script, axes, tmp_path):
    for plot in (script.plot_rate_distortion, script.plot_usage, script.plot_histories):
        plot(FINISHED, tmp_path / "plot.png")
    rates, usage, errors, entropies = axes
    points = [(line.get_label(), *line.get_xydata()[0].round(6)) for line in rates.lines if len(line.get_xdata()) == 1]
    named = [point for point in points if not point[0].startswith("_")]
    assert named == [("stochastic", 48.0, 20.0), ("vae", 5.0, 10.0), ("deterministic", 24.0, 40.0)]
    assert [point[1:] for point in points if point not in named] == [(24.0, 20.0)]
    assert [bar.get_height() for bar in usage.patches] == [0.5, 0.75, 0.25]
    assert [label.get_text() for label in usage.get_xticklabels()] == ["stochastic", "deterministic"]
    assert [line.get_ydata().tolist() for line in errors.lines] == [[50.0, 20.0], [10.0], [40.0]]
    assert [line.get_linestyle() for line in errors.lines] == ["-", "-", "--"]
    assert [line.get_ydata().tolist() for line in entropies.lines] == [[2.0, 1.5]]
    # One colour per system in all plots, whichever systems a plot leaves out.
    colors = {line.get_label(): to_rgb(line.get_color()) for line in errors.lines}
    assert {line.get_label(): to_rgb(line.get_color()) for line in rates.lines if line.get_label() in colors} == colors
    assert to_rgb(usage.patches[-1].get_facecolor()) == colors["deterministic"]


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


def test_a_longer_run_in_the_folder_is_no_run_of_this_budget(compare, tmp_path):
    compare("--only", "VAE", "--seeds", "[0]", "--epochs", "2")
    with pytest.raises(SystemExit, match="vae/seed0 holds a run of 2 epochs: give another output_dir"):
        compare("--only", "VAE", "--seeds", "[0]", "--name", "other")
    assert not (tmp_path / "report" / "other" / "vae-seed0.json").exists()


def test_another_run_in_the_folder_is_refused_before_others_are_trained(compare, tmp_path, request):
    compare("--only", "VAE", "--seeds", "[0]")
    request.getfixturevalue("no_training")
    message = r"^error: system 'VAE': .*vae/seed0' holds a run of another call \(batch_size was 32, is 16\)"
    with pytest.raises(SystemExit, match=message):
        compare("--seeds", "[0]", "--name", "other", "--batch_size", "16")


def test_foreign_records_are_refused_before_others_are_trained(compare, no_training, tmp_path):
    path = tmp_path / "report" / "small" / "vae-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"model": {"preset": "sq_vae"}}))
    with pytest.raises(SystemExit, match=r"vae-seed0\.json is of a run with model"):
        compare("--only", "RSQ-VAE L=3")


def test_a_damaged_record_is_named(compare, no_training, tmp_path):
    path = tmp_path / "report" / "small" / "vae-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(SystemExit, match=r"vae-seed0\.json is no record .*: delete it to train anew"):
        compare("--only", "VAE")


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
        ([], {"systems": SYSTEMS | {"typo": {"preset": "vae", "num_level": 2}}}, "system 'typo': Unknown option"),
        (["--schedule", "often"], {}, "schedule must be .*'often'"),
        (["--learning_rate", "-1"], {}, "system 'RSQ-VAE L=3': learning_rate must be a number above 0 .*, got -1"),
        ([], {"systems": SYSTEMS | {"none": None}}, "system 'none': "),
        ([], {"systems": SYSTEMS | {"text": {"preset": "vae", "hidden_size": 8.5}}}, "system 'text': "),
        (
            [],
            {"systems": SYSTEMS | {"long": {"preset": "robust_vq_vae", "network": "digits"}}},
            "system 'long': epochs is 1, but the model quantises nothing in its first 2 epochs",
        ),
        ([], {"data": {"name": "parquet", "path": "/nowhere", "files": {"train": "a"}}}, "system 'RSQ-VAE L=3': "),
        ([], {"systems": {"VAE, small": SYSTEMS["VAE"]}}, "the name 'VAE, small' has a comma"),
        ([], {"pairs": {"VAE": ["VQ"]}}, r"pairs has \['VQ'\]; the systems are RSQ-VAE L=3, VAE"),
    ],
)
def test_what_is_refused(compare, no_training, words, changes, message):
    with pytest.raises(SystemExit, match=message):
        compare(*words, **changes)
