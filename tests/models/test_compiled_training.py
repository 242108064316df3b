"""Training steps under the compiler, whose partitioner decides what the backward pass computes again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hq_tokenizers import (
    HQVAEModel,
    SQVAEModel,
    StochasticQuantize,
    hybrid_vae,
    rq_vae,
    rsq_vae,
    sq_vae,
    sq_vae_2,
    vq_vae,
)
from hq_tokenizers.quantization.snapshot import snapshot

PATHWISE: dict[str, Any] = {
    "bottleneck_gradient": "pathwise",
    "codebook_update": "gradient",
    "restart_threshold": 0.0,
    "variance_update": "trained",
    "initial_log_variance": 0.0,
}
SMALL: dict[str, Any] = {"hidden_size": 8, "codebook_dim": 6, "image_size": 16}
SYSTEMS: dict[str, Callable[[], nn.Module]] = {
    "SQ-VAE": lambda: SQVAEModel(sq_vae("mnist", **SMALL)),
    "SQ-VAE, the paper's": lambda: SQVAEModel(sq_vae("mnist", recipe="paper", **SMALL)),
    "SQ-VAE, vMF": lambda: SQVAEModel(sq_vae("mnist", quantizer="vmf", **SMALL)),
    "VQ-VAE": lambda: SQVAEModel(vq_vae("mnist", **SMALL)),
    "RSQ-VAE": lambda: HQVAEModel(rsq_vae("mnist", num_levels=2, **SMALL)),
    "RQ-VAE": lambda: HQVAEModel(rq_vae("mnist", num_levels=2, **SMALL)),
    "hybrid": lambda: HQVAEModel(hybrid_vae("mnist", **SMALL)),
    "hybrid, progressive": lambda: HQVAEModel(
        hybrid_vae("mnist", progressive=True, restore_latent_scale=True, **SMALL)
    ),
    "SQ-VAE-2 with a learned prior": lambda: HQVAEModel(sq_vae_2("mnist", learned_prior=True, **SMALL)),
}


def train(model: nn.Module, call: nn.Module) -> list[torch.Tensor]:
    """Gradients and buffers after three steps, of which the last ones see what the first ones changed."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for pixels in torch.rand(3, 8, 1, 16, 16):
        optimizer.zero_grad()
        call(pixels).loss.backward()
        optimizer.step()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None] + list(model.buffers())


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_gradients_and_averages_are_those_without_it(name: str) -> None:
    torch.manual_seed(0)
    model = SYSTEMS[name]().train()
    other = copy.deepcopy(model)
    expected = train(model, model)
    # The partitioner that inductor uses, without its generation of code.
    found = train(other, torch.compile(other, fullgraph=True, backend="aot_eager"))
    for plain, compiled in zip(expected, found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4 * max(1.0, float(plain.abs().max())))


@pytest.mark.slow
def test_a_layer_divides_by_the_temperature_of_its_forward_pass() -> None:
    """Its count of steps, hence the temperature, moves in that pass."""
    gradients = []
    vectors = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    for compiled in (False, True):
        torch.manual_seed(0)
        layer = StochasticQuantize(6, 8, gumbel_decay=1.0, normalize=False, **PATHWISE)
        leaf = vectors.clone().requires_grad_()
        call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        torch.manual_seed(1)
        quantized, _, loss = call(leaf)
        (loss + quantized.square().mean()).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-6)


def test_a_snapshot_stays_when_its_buffer_changes() -> None:
    def step(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        result = (values * (3 * snapshot(scale)).reciprocal()).square().sum()
        with torch.no_grad():
            scale.mul_(100)
        return result

    values, scale = torch.ones(4, requires_grad=True), torch.full((1,), 0.5)
    torch.compile(step, fullgraph=True, backend="aot_eager")(values, scale).backward()
    torch.testing.assert_close(values.grad, torch.full((4,), 2 / 1.5**2))
    torch.testing.assert_close(scale, torch.full((1,), 50.0))
    assert snapshot(scale) is scale
