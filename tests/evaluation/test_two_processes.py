"""What torchrun starts on a machine without a GPU gives the reports of one process."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hq_tokenizers.reporting.tracking import read_history

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_dir, generator_dir):
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(tokenizer_dir, folder / "tokenizer")
    shutil.copytree(generator_dir, folder / "generator")
    path = os.pathsep.join([str(SCRIPT.parents[2]), str(SCRIPT.parent)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def alone(folder, monkeypatch):
    """The same in this process; the script finds the feature network beside it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    monkeypatch.setattr("hq_tokenizers.evaluation.networks.inception_network", None)
    runpy.run_path(str(SCRIPT))["run"](folder, "one")
    return folder


def test_the_reports_are_those_of_one_process(alone):
    for subject in ("tokenizer", "generator", "images"):
        one, two = (json.loads((alone / f"{n}-{subject}" / "report.json").read_text("utf-8")) for n in ("one", "two"))
        assert one["results"].keys() == two["results"].keys()
        assert one["results"]
        for metric, figures in one["results"].items():
            for name, value in figures.items():
                if name not in ("provenance",):
                    # The PSNR of equal images is infinite, which is text in a report.
                    expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-6, abs=1e-8)
                    assert two["results"][metric][name] == expected, name
            if "provenance" in figures and subject != "images":
                assert two["results"][metric]["provenance"] == figures["provenance"]


def test_the_kept_samples_are_those_of_one_process(alone):
    names = [sorted(path.name for path in (alone / f"{name}-kept").glob("*.png")) for name in ("one", "two")]
    assert names[0] == names[1]
    assert len(names[0]) == 21
    for name in names[0]:
        assert (alone / "one-kept" / name).read_bytes() == (alone / "two-kept" / name).read_bytes()


def test_evaluation_does_not_change_what_two_processes_learn(folder):
    weights = [load_file(folder / name / "model.safetensors") for name in ("judged", "unjudged")]
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []
    judged = [record for record in read_history(folder / "judged") if record["split"] == "evaluation"]
    assert [record["step"] for record in judged] == [3, 6, 9, 12]
    assert "frechet_distance" in judged[0]
