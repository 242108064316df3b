from __future__ import annotations

import math
from pathlib import Path

import psutil
import pytest
import torch

from hq_tokenizers import memory


def test_memory_is_that_of_the_machine_or_its_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = psutil.virtual_memory().total
    for content, expected in (("max\n", total), ("1000\n", 1000), (f"{10 * total}\n", total)):
        (tmp_path / "memory.max").write_text(content)
        monkeypatch.setattr(memory, "_CONTAINER_LIMIT", tmp_path / "memory.max")
        assert memory.machine_memory() == expected
    monkeypatch.setattr(memory, "_CONTAINER_LIMIT", tmp_path / "none")
    assert memory.machine_memory() == total


def test_both_sizes_and_the_remedy_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 2**30)
    monkeypatch.setattr(memory, "accelerator_memory", lambda: 2**29)
    memory.check_memory("Apples", 3 * 2**29, "eat some")
    with pytest.raises(ValueError, match=r"^Apples take 4\.0 GiB, this machine has 1\.5 GiB: eat some\.$"):
        memory.check_memory("Apples", 2**32, "eat some")


def test_a_model_is_its_parameters_and_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.BatchNorm1d(1000, device="meta")  # weight, bias, mean, variance; a counter of 8 bytes
    monkeypatch.setattr(memory, "accelerator_memory", lambda: 0)
    for limit in (16_008, 16_007):
        monkeypatch.setattr(memory, "machine_memory", lambda limit=limit: limit)
        if limit == 16_008:
            memory.check_model_memory(model, "it")
        else:
            with pytest.raises(ValueError, match="The 4,001 numbers of it take"):
                memory.check_model_memory(model, "it")


def test_a_sample_takes_its_codes_and_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.Generator().get_state().numel() <= memory._GENERATOR_BYTES
    monkeypatch.setattr(memory, "accelerator_memory", lambda: 0)
    memory.check_samples_memory(1000, 64)
    with pytest.raises(ValueError, match=r"2,147,483,647 samples take .* GiB, this machine has"):
        memory.check_samples_memory(2**31 - 1, 64)
    assert math.isfinite(memory.accelerator_memory())
