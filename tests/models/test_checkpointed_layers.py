from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel

from hq_tokenizers.models.checkpointed_layers import CheckpointedSequential, enable_gradient_checkpointing
from hq_tokenizers.training.model_options import build_tokenizer_config

SMALL = {"hidden_size": 16, "codebook_dim": 8, "image_size": 32}
SYSTEMS = {
    "SQ-VAE IV": {"preset": "sq_vae", "variance_type": "IV", "codebook_size": 16, **SMALL},
    "robust VQ-VAE": {"preset": "robust_vq_vae", "codebook_size": 16, **SMALL},
    "hybrid": {"preset": "hybrid_vae", "codebook_size": 16, "progressive": True, **SMALL},
    "VAE": {"preset": "vae", **SMALL},
}


def _two_steps(system: str, checkpointing: bool) -> dict[str, torch.Tensor]:
    """Weights, statistics, counters and last gradients after two optimiser steps."""
    torch.manual_seed(0)
    model = AutoModel.from_config(build_tokenizer_config(SYSTEMS[system], {})).train()
    if checkpointing:
        enable_gradient_checkpointing(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.rand(4, 3, 32, 32)).loss.backward()
        optimizer.step()
    gradients = {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**model.state_dict(), **gradients}


@pytest.mark.parametrize("system", SYSTEMS)
def test_training_is_bit_identical(system: str) -> None:
    plain, checkpointed = _two_steps(system, False), _two_steps(system, True)
    assert plain.keys() == checkpointed.keys()
    assert any("num_batches_tracked" in name for name in plain)
    assert [name for name in plain if not torch.equal(plain[name], checkpointed[name])] == []


def test_less_is_kept_and_computed_twice() -> None:
    model = AutoModel.from_config(build_tokenizer_config(SYSTEMS["hybrid"] | {"image_size": 128}, {})).train()
    pixel_values = torch.rand(2, 3, 128, 128)
    calls = []
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_hook(lambda *_: calls.append(1))

    def kept_bytes() -> int:
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(pixel_values).loss
        total = sum(storages.values())
        loss.backward()
        return total

    plain = kept_bytes()
    assert len(calls) == 1
    enable_gradient_checkpointing(model)
    assert kept_bytes() < 0.6 * plain
    assert len(calls) == 3


def test_nothing_is_computed_twice_without_gradients() -> None:
    layers = CheckpointedSequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    layers.gradient_checkpointing = True
    layers._gradient_checkpointing_func = None  # type: ignore[assignment]
    images = torch.rand(2, 1, 3, 3)
    with torch.no_grad():
        layers(images)
    layers.eval()(images)
    assert layers[1].num_batches_tracked == 1


def _gradients(checkpointing: bool, compiled: bool = False) -> list[torch.Tensor]:
    """Gradients of two backward passes through one graph, and the batch statistics."""
    torch.manual_seed(0)
    layers = CheckpointedSequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    layers.gradient_checkpointing = checkpointing
    run = torch.compile(layers, backend="eager") if compiled else layers
    loss = run(torch.rand(3, 1, 4, 4)).square().sum()
    first = torch.autograd.grad(loss, list(layers.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(layers.parameters()))
    return [*first, *second, *layers.buffers()]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_graph_may_be_used_twice_and_compiled(compiled: bool) -> None:
    for plain, checkpointed in zip(_gradients(False), _gradients(True, compiled), strict=True):
        assert torch.equal(plain, checkpointed)


def test_reentrant_checkpointing_is_refused() -> None:
    layers = CheckpointedSequential(nn.Conv2d(1, 1, 1))
    layers.gradient_checkpointing = True
    layers._gradient_checkpointing_func = partial(checkpoint, use_reentrant=True)
    with pytest.raises(ValueError, match="needs use_reentrant=False"):
        layers(torch.rand(1, 1, 2, 2))
