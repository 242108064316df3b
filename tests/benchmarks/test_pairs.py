"""Systems beside those that they are an answer to: differences and courses, of made-up records with round figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pairs(load_script):
    return load_script("pairs")


def run(seed, mse, perplexity, bits=None, lpips=None, left=(0.5, 0.25)):
    test = {"mse": mse, "perplexity": perplexity, "residual_energy": list(left), "latent_energy": [2.0, 2.0]}
    record = {"seed": seed, "test": test, "codebook_sizes": [8, 8], "history": [{"mse": 2 * mse}, {"mse": mse}]}
    record |= {} if bits is None else {"under_prior": {"bits_per_image": bits}}
    return record | ({} if lpips is None else {"lpips": lpips})


def test_differences_of_means_over_common_seeds(pairs):
    finished = {
        "ours": [run(0, 0.01, [8.0, 4.0], 110.0, 0.2), run(1, 0.02, [8.0, 6.0], 110.0, 0.2), run(2, 9.0, [1.0, 1.0])],
        "theirs": [run(1, 0.03, [2.0, 8.0], 100.0, 0.4), run(0, 0.03, [4.0, 8.0], 100.0, 0.4)],
    }
    *_, row = pairs.pairs_table({"ours": ["theirs"]}, finished).splitlines()
    # 0.015 to 0.03; usages (4/8 + 6/8) / 2 and (2/8 + 4/8) / 2.
    assert row == "| ours | theirs | 2 | -50.0% | -50.0% | +10.0% | 62% | 38% |"


def test_what_a_run_lacks_is_left_out(pairs):
    finished = {"a": [run(0, 0.01, [8.0, 8.0], lpips=0.1)], "b": [run(0, 0.02, [8.0, 8.0])]}
    *_, row = pairs.pairs_table({"a": ["b", "missing"], "missing": ["a"]}, finished).splitlines()
    assert row.split("|")[4:7] == [" -50.0% ", " – ", " – "]
    other_seed = {"a": finished["a"], "b": [run(1, 0.02, [8.0, 8.0])]}
    assert pairs.section({"a": ["b"]}, other_seed, 0) == ""


def test_courses(pairs):
    finished = {"a": [run(0, 0.01, [8.0, 8.0]), run(1, 1.0, [8.0, 8.0])], "vae": [run(0, 0.5, [])]}
    finished["vae"][0]["codebook_sizes"] = []
    *_, row = pairs.course_table(finished, 0).splitlines()
    assert row == "| a | 20.00, 10.00 | 25.0% / 12.5% |"
    assert pairs.course_table(finished, 3) == ""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/*.yaml")), ids=lambda path: path.stem)
def test_published_pairs_are_of_systems(pairs, path):
    options = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert pairs.unknown_names(options.get("pairs", {}), options.get("systems", {})) == []
