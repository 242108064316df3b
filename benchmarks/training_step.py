"""Training speed of stochastic systems against deterministic ones, and of SQ-VAE against a plain implementation.

    python benchmarks/training_step.py mnist
    python benchmarks/training_step.py cifar10 [RECORD.json]

All take turns in one process, and the medians and their ratios are printed: only the ratios mean something on a machine
that does other work too. The plain implementation writes the quantiser as the paper's formulas read, and reports the
perplexity, the entropy and the codes of every batch, as ours does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from records import write_record
from torch import nn

from hq_tokenizers import HQVAEModel, SQVAEModel, rq_vae, rsq_vae, sq_vae, vq_vae
from hq_tokenizers.models.named_networks import NETWORKS

BATCH_SIZE = 32
WARM_UP, REPEATS = 5, 30


class PlainSQVAE(nn.Module):
    """The textbook: every tensor of latents × codes is an autograd node."""

    def __init__(self, network: str):
        super().__init__()
        model = SQVAEModel(sq_vae(network, recipe="paper"))
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


def contestants(network: str, device: torch.device) -> dict[str, nn.Module]:
    """Systems by name, in training mode, each stochastic one before what it is compared with."""
    models = {
        "SQ-VAE, the paper's": SQVAEModel(sq_vae(network, recipe="paper")),
        "SQ-VAE, the paper's, plain": PlainSQVAE(network),
        "SQ-VAE": SQVAEModel(sq_vae(network)),
        "VQ-VAE": SQVAEModel(vq_vae(network)),
        "RSQ-VAE, L = 4": HQVAEModel(rsq_vae(network)),
        "RQ-VAE, L = 4": HQVAEModel(rq_vae(network)),
    }
    return {name: model.train().to(device) for name, model in models.items()}


def loss_of(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    output = model(pixel_values)
    return output if isinstance(output, torch.Tensor) else output.loss


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in ("mnist", "cifar10"):
        print(__doc__)
        return
    network, *outputs = sys.argv[1:]
    size, channels = NETWORKS[network]["image_size"], NETWORKS[network].get("num_channels", 3)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    pixel_values = torch.rand(BATCH_SIZE, channels, size, size, device=device)
    models = contestants(network, device)
    steps = {name: training_step(model, partial(loss_of, model, pixel_values)) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(WARM_UP + REPEATS):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if device.type != "cpu":
                torch.accelerator.synchronize()
            times[name].append(time.perf_counter() - started)
    run = {"network": network, "batch_size": BATCH_SIZE, "device": device.type, "threads": torch.get_num_threads()}
    print(f"{network}, batch {BATCH_SIZE}, {device.type}, {run['threads']} threads")
    seconds = {name: median(record[WARM_UP:]) for name, record in times.items()}
    names = list(models)
    for name, other in zip(names[::2], names[1::2], strict=True):
        rates = " and ".join(f"{each} {BATCH_SIZE / seconds[each]:.0f}" for each in (name, other))
        print(f"images/s: {rates}: {seconds[other] / seconds[name]:.2f} times")
    for output in outputs:
        rates_by_name = {name: BATCH_SIZE / each for name, each in seconds.items()}
        write_record(Path(output), {**run, "torch": torch.__version__, "images_per_second": rates_by_name})


if __name__ == "__main__":
    main()
