"""Quantising a grid by any of the three kinds of codes: relaxed, sampled, most probable.

Shape legend: B batch, h × w grid, d code width, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from hq_tokenizers.quantization.functional import entropy_of
from hq_tokenizers.quantization.stochastic_codebook import Quantized, StochasticCodebook, in_image_parts
from hq_tokenizers.randomness import sample_gumbel


def quantize_grid(
    codebook: StochasticCodebook,
    latents: torch.Tensor,
    precision: torch.Tensor,
    temperature: torch.Tensor | None,
    generators: Sequence[torch.Generator] | None,
    codes_only: bool = False,
) -> Quantized:
    """Quantises a grid, see `StochasticCodebook.forward`.

    | temperature | generators | code vectors |
    |---|---|---|
    | τ | None | samples with noise of torch's global generator, from which moving averages learn: training |
    | τ | one per image | relaxed samples from which nothing learns: what training decodes, measured |
    | None | one per image | of a categorical sample |
    | None | None | of the most probable codes |
    """
    if temperature is None or generators is None:
        return codebook(latents, precision, temperature, generators, codes_only)
    num_vectors = latents.shape[1] * latents.shape[2]
    num_images = max(1, codebook.max_elements // (num_vectors * len(codebook.weight)))
    relax = partial(_relax, codebook, temperature)
    return in_image_parts(relax, latents, precision, generators, num_images)


def _relax(
    codebook: StochasticCodebook,
    temperature: torch.Tensor,
    latents: torch.Tensor,
    precision: torch.Tensor,
    generators: Sequence[torch.Generator],
) -> Quantized:
    """z̃ = Σ_k y_k b_k with y = softmax((log P̂ + g) / τ), the relaxed sample of training, without its gradient."""
    log_probabilities = codebook.log_probabilities(latents, precision)
    gumbel = sample_gumbel(log_probabilities.shape[1:], generators, latents.device)
    relaxed = torch.softmax((log_probabilities + gumbel) / temperature, dim=-1) @ codebook.codes
    return relaxed, log_probabilities.argmax(dim=-1), entropy_of(log_probabilities)
