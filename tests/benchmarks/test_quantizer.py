"""The benchmark of the quantiser alone: what it times is right, and the memory that it counts is that of slices."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from hq_tokenizers.quantization import relaxed_sample


@pytest.fixture
def script(load_script):
    return load_script("quantizer")


def test_ours_is_the_textbook_up_to_rounding(script):
    assert script.difference(20, 7, 3) < 1e-5


@pytest.mark.parametrize("name", ["ours", "entropy_of_drawn"])
def test_a_wrong_quantiser_is_noticed(script, monkeypatch, name):
    right = getattr(script, name)
    monkeypatch.setattr(script, name, lambda z, codes, precision: right(z, codes, 2 * precision))
    assert script.difference(20, 7, 3) > 0.1


def test_memory_is_counted(script, monkeypatch, capsys):
    def share(vectors, num_codes):
        monkeypatch.setattr("sys.argv", ["quantizer.py", "--memory", "--sizes", f"{vectors}x{num_codes}x2"])
        script.main()
        return float(re.search(r"([\d.]+)% of a matrix", capsys.readouterr().out).group(1)) / 100

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    # Two matrices kept and three to work in; what is as large as the latents and the codes is small beside them.
    assert share(256, 256) == pytest.approx(5, abs=0.5)
    monkeypatch.setattr(relaxed_sample, "KEPT_ELEMENTS", 0)
    monkeypatch.setattr(relaxed_sample, "CPU_SLICE", 8 * 256)
    monkeypatch.setattr(relaxed_sample, "SMALLEST_ROWS", 1)
    assert share(1024, 256) < 0.15


def test_what_is_not_installed_is_said(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    monkeypatch.setattr(torch, "compile", lambda function: function)
    runs = script.contestants([4, 3, 2], torch.device("cpu"))
    assert runs["vector-quantize-pytorch"] == "not installed: pip install vector-quantize-pytorch"
