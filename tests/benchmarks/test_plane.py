"""Tokenizers on the plane of a two-stage model: priors on their codes, the table with its winners, and the plot."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork
from hq_tokenizers.options.reading import load_options
from hq_tokenizers.training.model_options import settings_of

FOLDER = Path(__file__).parents[2] / "benchmarks"

SMALL = {"network": "digits", "hidden_size": 8}
SYSTEMS = {
    "FSQ": {"preset": "fsq_vae", **SMALL, "fsq_levels": [4, 2]},
    "RQ-VAE L=2": {"preset": "rq_vae", **SMALL, "codebook_dim": 4, "codebook_size": 8, "num_levels": 2},
    "VAE": {"preset": "vae", **SMALL},
}
PRIOR = {
    **{"max_steps": 3, "warmup_steps": 0, "samples": 0, "conditional": False},
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_depth_layers": 1, "num_attention_heads": 2},
}


class FourPixels(torch.nn.Module):
    def forward(self, images):
        return images[:, 0, 2:4, 3:5].flatten(1).float()


@pytest.fixture
def script(load_script):
    """The script that compares tokenizers."""
    return load_script("compare_tokenizers")


@pytest.fixture
def compare(script, run_script, tmp_path):
    """Runs it on a small comparison in `tmp_path`."""

    def run(*words, **changes):
        options = {
            "name": "small",
            "output_dir": str(tmp_path / "runs"),
            "report_dir": str(tmp_path / "report"),
            "epochs": 1,
            "seeds": [0],
            "data": {"train_split": "train[:128]", "validation_split": "test[:50]"},
            "systems": SYSTEMS,
            "prior": PRIOR,
        }
        run_script(script, options | changes, *words)

    return run


def record(tmp_path, name):
    return json.loads((tmp_path / "report" / "small" / f"{name}-seed0.json").read_text())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*_plane.yaml")), ids=lambda path: path.stem)
def test_the_published_comparisons_are_valid(script, path):
    config = load_options(script.Comparison, path, ["--data.path", "somewhere"])
    assert (config.name, config.epochs, config.seeds) == (path.stem, 5, [0, 1])
    script._check_judges(config, rows=None)
    settings = [settings_of(script._tokenizer_config(model)) for model in config.systems.values()]
    assert len(settings) >= 15
    # Of one code at a position; the others have theirs in code_groups.
    for name, each in zip(config.systems, settings, strict=True):
        said = re.search(r"K=(\d+)", name)
        assert each.get("codebook_size", 512) == (int(said[1]) if said else 512)


@pytest.mark.slow
def test_bits_under_the_prior_are_those_of_the_saved_prior(compare, tmp_path, monkeypatch):
    network = FeatureNetwork.from_module(FourPixels(), name="four pixels", resize_filter="none")
    monkeypatch.setattr("hq_tokenizers.evaluation.networks.squeezenet_network", lambda weights: network)
    words = ("--metrics.features", "squeezenet", "--num_samples", "20", "--metrics.allow_few_images", "true")
    compare(*words)
    for name, num_levels in (("fsq", 1), ("rq_vae_l_2", 2)):
        found, folder = record(tmp_path, name), tmp_path / "runs" / name / "seed0"
        prior = AutoModel.from_pretrained(folder / "prior").eval()
        encoded = EncodedImages.load(folder / "codes")
        codes = encoded.layout.unflatten(encoded.splits["validation"].codes.long())
        assert len(codes) == 50
        with torch.no_grad():
            bits = -prior.log_prob(codes).double().sum() / 50 / math.log(2)
        assert found["under_prior"]["bits_per_image"] == pytest.approx(float(bits), rel=1e-5)
        assert found["under_prior"]["steps"] == 3
        grid = encoded.splits["train"].codes.reshape(-1, num_levels).numpy()
        shares = [np.bincount(level, minlength=8) / len(level) for level in grid.T]
        entropies = [-sum(p * math.log2(p) for p in share if p) for share in shares]
        assert found["under_prior"]["histogram_bits_per_image"] == pytest.approx(16 * sum(entropies), rel=1e-6)
        assert found["samples"]["frechet_distance"] > 0
        assert found["samples"]["provenance"]["num_images"] == 20
        assert found["prior_precision"] == "no"
    # What it computes in is the machine's affair: nothing is trained again.
    before = record(tmp_path, "fsq")
    compare(*words, "--prior.mixed_precision", "bf16")
    assert record(tmp_path, "fsq") == before
    assert "under_prior" not in record(tmp_path, "vae")
    page = (tmp_path / "report" / "small.md").read_text()
    assert "| RQ-VAE L=2 | 96 | " in page
    assert "(not FID)" in page
    assert "![Error over bits under the prior](small_plane.png)" in page
    assert (tmp_path / "report" / "small_plane.png").stat().st_size > 5000


@pytest.mark.slow
def test_what_is_half_finished_goes_on_and_what_has_a_record_is_not_done_again(compare, script, tmp_path, monkeypatch):
    import second_stage

    def interrupt(config):
        raise KeyboardInterrupt

    train_prior = second_stage.train_prior_and_save_generator
    monkeypatch.setattr(second_stage, "train_prior_and_save_generator", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compare("--only", "FSQ")
    weights = tmp_path / "runs" / "fsq" / "seed0" / "model.safetensors"
    before = weights.read_bytes()
    monkeypatch.setattr(second_stage, "train_prior_and_save_generator", train_prior)
    compare("--only", "FSQ")
    assert weights.read_bytes() == before
    first = record(tmp_path, "fsq")

    monkeypatch.setattr(script, "train_tokenizer", interrupt)
    compare("--only", "FSQ")
    compare("--report_only", "true")
    assert record(tmp_path, "fsq") == first
    for changes, message in (
        ({"prior": PRIOR | {"max_steps": 4}}, "is of a run with prior "),
        ({"systems": {"FSQ": SYSTEMS["FSQ"] | {"fsq_levels": [4, 3]}}}, "is of a run with model "),
    ):
        with pytest.raises(SystemExit, match=message):
            compare("--only", "FSQ", **changes)
    path = tmp_path / "report" / "small" / "fsq-seed0.json"
    path.write_text(json.dumps(first | {"settings": first["settings"] | {"data_variance": 0.5}}))
    with pytest.raises(SystemExit, match=r"of 'FSQ' before its preset changed: data_variance was 0\.5, is None\."):
        compare("--only", "FSQ")
    # A field that did not exist yet was as it is by default.
    older = {name: value for name, value in first["settings"].items() if name not in ("fsq_levels", "data_variance")}
    path.write_text(json.dumps(first | {"settings": older}))
    levels = SYSTEMS["FSQ"]["fsq_levels"]
    with pytest.raises(SystemExit, match=re.escape(f"fsq_levels was [8, 5, 5, 5], is {levels}.")):
        compare("--only", "FSQ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": {"learnin_rate": 1}}, "Unknown option 'prior.learnin_rate'"),
        ({"prior": {"model": {"hiden_size": 8}}}, "Unknown option 'model.hiden_size'"),
        ({"prior": {}, "metrics": {"features": "squeezenet"}}, "metrics.features judges samples of a prior"),
        ({"metrics": {"lpips": "squeeze", "lpips_weights": "/nowhere"}}, "error: .*/nowhere"),
    ],
)
def test_what_is_refused_before_anything_is_trained(compare, script, monkeypatch, changes, message):
    def train(config):
        raise AssertionError("trained")

    monkeypatch.setattr(script, "train_tokenizer", train)
    with pytest.raises(SystemExit, match=message):
        compare(**changes)


def run(stored, bits, mse, perplexity=(4.0,), test=(), **more):
    return {
        "bits_per_image": stored,
        "codebook_sizes": [8] * len(perplexity),
        "images_per_second": 10.0,
        "test": {"mse": mse, "psnr": -10 * math.log10(mse), "perplexity": list(perplexity), **dict(test)},
        "under_prior": {
            "bits_per_image": bits,
            "histogram_bits_per_image": bits + 10,
            "bits_per_code_by_level": [bits / 4],
        },
        "code_layout": "2×2×1 of 8",
        "partial_mse": [mse],
        **more,
    }


def test_the_winner_is_bold_whoever_it_is(load_script):
    table = load_script("plane").plane_table(
        {
            "first": [run(48.0, 30, 0.01, lpips=0.3), run(48.0, 20, 0.03, lpips=0.1)],
            "second": [run(48.2, 24, 0.04, [6.0], lpips=0.3)],
            "alone": [run(96.0, 90, 0.005, [8.0, 2.0])],
        }
    )
    head, _, *rows = table.splitlines()
    assert head == (
        "| system | bits stored | under histograms | under the prior (each seed) | MSE ×10³ (each seed) | "
        "PSNR (dB) | LPIPS | usage per level | images/s |"
    )
    assert rows == [
        "| first | 48 | 35 | 25 (30, 20) | **20.00 (10.00, 30.00)** | **17.61** | **0.2000** | 50% | 10 |",
        "| second | 48 | 34 | **24 (24)** | 40.00 (40.00) | 13.98 | 0.3000 | **75%** | 10 |",
        "| alone | 96 | 100 | 90 (90) | 5.00 (5.00) | 23.01 | – | 100% / 25% | 10 |",
    ]


def test_curves_and_panels_of_the_plot(load_script, tmp_path, monkeypatch):
    plane = load_script("plane")
    figures, create = [], plane.new_figure
    monkeypatch.setattr(plane, "new_figure", lambda *a, **k: figures.append(create(*a, **k)) or figures[-1])
    finished = {f"system {index}": [run(48.0, 20 + index, 0.01)] for index in range(8)}
    finished |= {"RQ-VAE L=4": [run(192.0, 150, 0.001)], "RQ-VAE L=2": [run(96.0, 80, 0.002), run(96.0, 84, 0.004)]}
    plane.plot_plane(finished, tmp_path / "plane.png")
    axes = list(figures[0][0].axes)
    curves = [[line for line in axis.lines if not line.get_label().startswith("_")] for axis in axes]
    assert [len(panel) for panel in curves] == [5, 4]
    last = curves[1][-1]
    assert last.get_label() == "RQ-VAE"
    np.testing.assert_allclose(last.get_xydata(), [[82, 3], [150, 1]])
    assert [text.get_text() for text in axes[1].texts][-2:] == ["L=2", "L=4"]


def test_first_levels_of_one_grid_are_points_of_the_plot(load_script):
    partial_points = load_script("plane").partial_points
    levels = {"bits_per_image": 24.0, "bits_per_code_by_level": [1.0, 2.0, 3.0]}
    record = run(36.0, 24, 0.01, under_prior=levels, partial_mse=[0.04, 0.02, 0.01])
    # Four positions: 4 bits for the first level, 8 and 12 for the others.
    np.testing.assert_allclose(partial_points(record), [(4, 40), (12, 20), (24, 10)])
    assert partial_points({**record, "code_layout": "1×1×1 of 8 + 2×2×2 of 8"}) == []
    assert partial_points(run(12.0, 8, 0.01)) == []
