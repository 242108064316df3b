"""Randomness that does not depend on the batch size: one generator per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

GeneratorLike = torch.Generator | Sequence[torch.Generator] | int | None


def sample_generators(generator: GeneratorLike, num_samples: int) -> list[torch.Generator]:
    """One CPU generator per sample, so that a sample's noise does not depend on who shares its batch.

    Args:
        generator: A list is used as it is. A single `torch.Generator` is asked for one seed per sample, in order: two
            calls for 2 and 1 samples give the generators of one call for 3. An integer seed gives the seeds
            `seed`, `seed + 1`, …. `None` draws the seeds from torch's global generator.
        num_samples: Number of samples B.

    Raises:
        ValueError: If a list has another length than `num_samples`.
        TypeError: If `generator` is none of the above.
    """
    if isinstance(generator, int) and not isinstance(generator, bool):
        return [torch.Generator().manual_seed(generator + index) for index in range(num_samples)]
    if generator is None or isinstance(generator, torch.Generator):
        device = None if generator is None else generator.device
        seeds = torch.randint(2**63 - 1, (num_samples,), generator=generator, device=device).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    if isinstance(generator, Sequence) and all(isinstance(item, torch.Generator) for item in generator):
        if len(generator) != num_samples:
            raise ValueError(f"Got {len(generator)} generators for {num_samples} samples: give one per sample.")
        return list(generator)
    raise TypeError(
        f"generator must be a torch.Generator, a list of them, an integer seed or None, got {type(generator).__name__}."
    )


def sample_exponential(
    shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str | None = None
) -> torch.Tensor:
    """Exponential(1) noise (B, *shape) in float32, row i drawn from generator i and moved to `device`.

    `argmax(log p − log E)` is then a categorical sample (the exponential race), and −log E is Gumbel(0, 1) noise.
    """
    rows = [torch.empty(tuple(shape), device=g.device).exponential_(generator=g) for g in generators]
    return _stack(rows, shape, device)


def sample_uniform(
    shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str | None = None
) -> torch.Tensor:
    """Uniform noise (B, *shape) in float32, in [0, 1), row i drawn from generator i and moved to `device`."""
    rows = [torch.rand(tuple(shape), device=g.device, generator=g) for g in generators]
    return _stack(rows, shape, device)


def fixed_normal(shape: Sequence[int], device: torch.device | str | None = None) -> torch.Tensor:
    """Normal(0, 1) noise in float32 that is the same in every call: a hash of the index of each number."""
    bits = torch.arange(math.prod(shape), device=device) + 0x9E3779B9
    for multiplier in (0x7FEB352D, 0x846CA68B):
        bits = ((bits ^ (bits >> 16)) * multiplier) & 0xFFFFFFFF
    # 23 bits and a half are numbers between 0 and 1 in float32, ends excluded.
    uniform = ((bits ^ (bits >> 16)) >> 9).float().add(0.5) / 2**23
    return torch.special.ndtri(uniform).reshape(tuple(shape))


def _stack(rows: list[torch.Tensor], shape: Sequence[int], device: torch.device | str | None) -> torch.Tensor:
    return torch.stack([row.to(device) for row in rows]) if rows else torch.empty(0, *shape, device=device)
