"""All noise: one generator per sample, Gumbel noise, and the state of torch's global generators.

What samples takes a generator per sample, so that a result does not depend on the batch size; training draws from the
global generators, whose state its checkpoints keep.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
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
    if isinstance(generator, numbers.Integral) and not isinstance(generator, bool):
        return [torch.Generator().manual_seed(int(generator) + index) for index in range(num_samples)]
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


def draw_gumbel_(out: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Fills a tensor with Gumbel(0, 1) noise: −log(−log U) with U uniform in (0, 1).

    Drawn from torch's global generator by default. (On a CPU, drawing exponential noise takes eight times as long.)
    """
    # A uniform number of 0 becomes the smallest one above it; no other changes.
    smallest = torch.finfo(out.dtype).tiny
    return out.uniform_(smallest, 1, generator=generator).log_().neg_().log_().neg_()


def sample_gumbel(
    shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str | None = None
) -> torch.Tensor:
    """−log E with E = −log U ~ Exponential(1): standard Gumbel noise (B, *shape), row i drawn from generator i.

    On a CPU uniform numbers take a fifth of the time of PyTorch's exponential ones.
    """
    uniform = sample_uniform(shape, generators, device)
    # Infinite noise would hide the only code that a filter left, or make −∞ + ∞ of an excluded one's score.
    resolution = torch.finfo(uniform.dtype)
    return uniform.clamp_(resolution.tiny, 1 - resolution.eps / 2).log_().neg_().log_().neg_()


def noise_state() -> dict[str, torch.Tensor]:
    """The state of the CPU's generator and of the accelerator's, where there is one."""
    state = {"cpu": torch.get_rng_state()}
    if torch.accelerator.is_available():
        state["accelerator"] = torch.get_device_module().get_rng_state()
    return state


def load_noise_state(state: dict[str, torch.Tensor]) -> None:
    """Restores what `noise_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "accelerator" in state and torch.accelerator.is_available():
        torch.get_device_module().set_rng_state(state["accelerator"])


def global_generator_state(device: torch.device) -> torch.Tensor:
    """The state of the generator from which noise on `device` is drawn by default."""
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def generator_from_state(state: torch.Tensor, device: torch.device) -> torch.Generator:
    """A new generator that draws what the one with this state draws, and leaves that one alone."""
    generator = torch.Generator(device)
    generator.set_state(state)
    return generator


def hashed_seeds(*numbers: int | np.ndarray) -> np.ndarray:
    """Seeds, uint64, that whole numbers from 0 on and arrays of such decide together (splitmix64 of each in turn)."""
    seeds = np.zeros(1, np.uint64)
    for number in numbers:
        seeds = (seeds ^ np.asarray(number, np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            seeds = (seeds ^ (seeds >> np.uint64(shift))) * np.uint64(multiplier)
        seeds = seeds ^ (seeds >> np.uint64(31))
    return seeds


@contextmanager
def seeded_noise(seed: int) -> Iterator[None]:
    """Within, what is drawn on the CPU by default follows from a seed (64 bits); the state before is restored."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


@contextmanager
def keep_noise() -> Iterator[None]:
    """Restores, afterwards, the state there was before."""
    state = noise_state()
    try:
        yield
    finally:
        load_noise_state(state)
