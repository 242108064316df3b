"""A checkpoint is read whole, or the damaged file of it is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hq_tokenizers.training.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint


@pytest.mark.parametrize("name", ["model", "optimizer", "process-0"])
def test_a_file_that_is_cut_is_named(tmp_path: Path, name: str) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, 1, {"model": model}, optimizer, {"position": 7}, keep=1)
    (checkpoint,) = list_checkpoints(tmp_path)
    other = torch.nn.Linear(3, 2)
    state, _ = load_checkpoint(checkpoint, {"model": other}, torch.optim.Adam(other.parameters()))
    assert torch.equal(other.weight, model.weight)
    assert (state["step"], state["position"]) == (1, 7)

    path = checkpoint / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{path} is damaged or no safetensors file: .*not fully covered"):
        load_checkpoint(checkpoint, {"model": other}, torch.optim.Adam(other.parameters()))
