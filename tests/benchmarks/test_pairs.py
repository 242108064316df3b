"""Systems beside those that they are an answer to, and how each got there: of made-up records with round figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pairs(load_script):
    return load_script("pairs")


def run(seed, mse, perplexity, **figures):
    sizes = [8] * len(perplexity)
    record = {"seed": seed, "test": {"mse": mse, "perplexity": perplexity}, "codebook_sizes": sizes}
    if "bits" in figures:
        figures["under_prior"] = {"bits_per_image": figures.pop("bits")}
    return record | figures


def test_differences_of_means_over_common_seeds(pairs):
    finished = {
        "ours": [run(0, 0.01, [8.0, 4.0]), run(1, 0.02, [8.0, 6.0]), run(2, 9.0, [1.0, 1.0])],
        "theirs": [run(1, 0.04, [4.0, 8.0]), run(0, 0.02, [2.0, 8.0])],
    }
    for each in finished["ours"]:
        each |= {"lpips": 0.2, "under_prior": {"bits_per_image": 110.0}}
    for each in finished["theirs"]:
        each |= {"lpips": 0.1, "under_prior": {"bits_per_image": 100.0}}
    *_, row = pairs.pairs_table({"ours": ["theirs"]}, finished).splitlines()
    # 0.015 to 0.03; usages (4/8 + 6/8) / 2 and (4/8 + 2/8) / 2.
    assert row == (
        "| ours | theirs | −50.0% (−50.0%, −50.0%) | +100.0% (+100.0%, +100.0%) | +10.0% (+10.0%, +10.0%) | 62% | 38% |"
    )


def test_what_a_run_lacks_is_left_out(pairs):
    finished = {"a": [run(0, 0.01, [8.0, 8.0], lpips=0.1)], "vae": [run(0, 0.02, [])]}
    *_, row = pairs.pairs_table({"a": ["vae", "missing"], "missing": ["a"]}, finished).splitlines()
    assert row == "| a | vae | −50.0% | – | – | 100% | – |"
    assert pairs.pairs_table({"a": ["vae"]}, {"a": finished["a"], "vae": [run(1, 0.02, [])]}) == ""


def test_priors_of_two_precisions_are_marked(pairs):
    finished = {
        name: [run(0, 1.0, [8.0], bits=100.0, prior_precision=precision)]
        for name, precision in (("a", "no"), ("b", "bf16"), ("c", "no"))
    }
    *_, other, same = pairs.pairs_table({"a": ["b", "c"]}, finished).splitlines()
    assert other.split("|")[5] == " +0.0% * "
    assert same.split("|")[5] == " +0.0% "


def test_courses(load_script):
    courses = load_script("courses")
    energies = {"residual_energy": [0.5, 0.25], "latent_energy": [2.0, 2.0]}
    history = [{"mse": 0.02}, {"mse": 0.01}]
    finished = {
        "a": [run(1, 1.0, [8.0, 8.0], history=[]), run(0, 0.01, [8.0, 8.0], history=history)],
        "older": [run(0, 0.01, [8.0], history=history)],
        "vae": [run(0, 0.5, [], history=history)],
    }
    finished["a"][1]["test"] |= energies
    _, _, *rows = courses.course_table(finished, 0).splitlines()
    assert rows == ["| a | 20.00, 10.00 | 25.0% / 12.5% |", "| older | 20.00, 10.00 | – |"]
    assert courses.course_table(finished, 3) == ""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_published_pairs_are_of_systems(pairs, path):
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert pairs.unknown_names(options.get("pairs", {}), options.get("systems", {})) == []
