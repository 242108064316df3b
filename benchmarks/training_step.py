"""Seconds per training step of SQ-VAE against a plain, unfused implementation of the same network.

    python benchmarks/training_step.py mnist
    python benchmarks/training_step.py cifar10

Both take turns in one process, and the medians and their ratio are printed: only the ratio means something on a machine
that does other work too. The plain implementation writes the quantiser as the paper's formulas read, and reports the
perplexity, the entropy and the codes of every batch, as ours does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

from hq_tokenizers import SQVAEModel, sq_vae
from hq_tokenizers.models.presets import NETWORKS

WARM_UP, REPEATS = 10, 60


class PlainSQVAE(nn.Module):
    """The textbook: every tensor of latents × codes is an autograd node."""

    def __init__(self, network: str):
        super().__init__()
        model = SQVAEModel(sq_vae(network))
        self.encoder, self.decoder = model.encoder, model.decoder
        self.codebook = nn.Parameter(torch.randn(model.config.codebook_size, model.config.codebook_dim))
        self.log_variance = nn.Parameter(torch.tensor(float(model.config.initial_log_variance)))
        self.perplexity = self.entropy = self.codes = torch.empty(0)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The loss, up to constants."""
        batch_size = len(pixel_values)
        latents = self.encoder(pixel_values)[0].permute(0, 2, 3, 1).contiguous()
        flat = latents.flatten(0, 2)
        distances = flat.square().sum(1, keepdim=True) + self.codebook.square().sum(1) - 2 * flat @ self.codebook.T
        weight = 0.5 / self.log_variance.exp()
        logits = -weight * distances
        probabilities, log_probabilities = logits.softmax(-1), logits.log_softmax(-1)
        with torch.no_grad():  # what both report at every step: the perplexity and entropy of the batch, and its codes
            mean_probabilities = probabilities.mean(0)
            self.perplexity = torch.special.entr(mean_probabilities).sum().exp()
            self.entropy = -(probabilities * log_probabilities).sum(1).mean()
            self.codes = logits.argmax(1)
        gumbel = -torch.log(-torch.log(torch.rand_like(logits) + 1e-10) + 1e-10)
        quantized = (((logits + gumbel) / 0.99).softmax(-1) @ self.codebook).view_as(latents)
        discrete = (probabilities * log_probabilities).sum() / batch_size
        continuous = (weight * (latents - quantized).square()).sum() / batch_size
        reconstruction = self.decoder(quantized.permute(0, 3, 1, 2).contiguous()).sigmoid()
        error = (reconstruction - pixel_values).square().sum() / batch_size
        return pixel_values[0].numel() / 2 * error.log() + continuous + discrete


def training_step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in ("mnist", "cifar10"):
        print(__doc__)
        return
    network = sys.argv[1]
    size, channels = NETWORKS[network]["image_size"], NETWORKS[network].get("num_channels", 3)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    pixel_values = torch.rand(32, channels, size, size, device=device)
    ours, plain = SQVAEModel(sq_vae(network)).train().to(device), PlainSQVAE(network).train().to(device)
    steps = (training_step(ours, lambda: ours(pixel_values).loss), training_step(plain, lambda: plain(pixel_values)))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(WARM_UP + REPEATS):
        for step, record in zip(steps, times, strict=True):
            started = time.perf_counter()
            step()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            record.append(time.perf_counter() - started)
    mine, theirs = (1e3 * median(record[WARM_UP:]) for record in times)
    print(f"{network}, batch 32, {device.type}, {torch.get_num_threads()} threads")
    print(f"hq_tokenizers {mine:.1f} ms, plain {theirs:.1f} ms, ratio {mine / theirs:.2f}")


if __name__ == "__main__":
    main()
