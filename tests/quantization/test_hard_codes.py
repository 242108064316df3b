"""Codes and nothing else: the search of several levels against all sums there are, and what quantisers leave out."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from hq_tokenizers import HQVAEModel, rq_vae, rsq_vae, sq_vae_2
from hq_tokenizers.quantization.hard_codes import beam_search, for_codes
from hq_tokenizers.quantization.outputs import QuantizerOutput

SIZES = (5, 4, 6)
DIM = 3


def example(number: int = 40) -> tuple[torch.Tensor, list[torch.Tensor]]:
    noise = torch.Generator().manual_seed(0)
    codebooks = [torch.randn(size, DIM, generator=noise) / (level + 1) for level, size in enumerate(SIZES)]
    return torch.randn(number, DIM, generator=noise), codebooks


def distances(latents: torch.Tensor, codebooks: list[torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
    """In float64: ‖z − Σ_l b_l‖², (M,)."""
    total = sum(book.double()[index] for book, index in zip(codebooks, codes.unbind(-1), strict=True))
    return (latents.double() - total).square().sum(-1)


def test_wide_enough_it_finds_the_best_of_all_sums() -> None:
    latents, codebooks = example()
    every = torch.tensor(list(itertools.product(*map(range, SIZES))))
    sums = sum(book.double()[index] for book, index in zip(codebooks, every.unbind(-1), strict=True))
    best = torch.cdist(latents.double(), sums).argmin(-1)
    assert torch.equal(beam_search(latents, codebooks, SIZES[0] * SIZES[1], 10**6), every[best])


def test_of_width_1_it_takes_the_nearest_code_level_after_level() -> None:
    latents, codebooks = example()
    residual, chosen = latents.double(), []
    for book in codebooks:
        chosen.append(torch.cdist(residual, book.double()).argmin(-1))
        residual = residual - book.double()[chosen[-1]]
    assert torch.equal(beam_search(latents, codebooks, 1, 10**6), torch.stack(chosen, -1))


def test_wider_is_closer_on_average() -> None:
    latents, codebooks = example(500)
    errors = [
        distances(latents, codebooks, beam_search(latents, codebooks, width, 10**6)).mean() for width in (1, 2, 20)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_parts_have_the_codes_of_the_whole() -> None:
    latents, codebooks = example()
    assert torch.equal(beam_search(latents, codebooks, 4, 1), beam_search(latents, codebooks, 4, 10**6))


@pytest.mark.parametrize("preset", [rsq_vae, rq_vae])
def test_a_quantiser_of_several_levels(preset: Any) -> None:
    (quantizer,) = HQVAEModel(preset("digits", num_levels=3, codebook_size=8)).quantizer
    latents = torch.randn(2, 3, 4, quantizer.level_codebooks()[0].weight.shape[1])
    output = for_codes(quantizer, 4)(latents, None)
    assert output.indices.shape == (2, 3, 4, 3)
    total = torch.zeros(())
    for found, vectors in zip(output.partial_sums, quantizer.embed(output.indices), strict=True):
        total = total + vectors
        assert torch.equal(found, total)
    greedy = quantizer(latents, None)
    assert (latents - output.quantized).square().sum() < (latents - greedy.quantized).square().sum()


def test_codes_of_a_shared_codebook_are_in_the_order_in_which_they_leave_least() -> None:
    """The first code alone is then never further away than any other of the position."""
    (quantizer,) = HQVAEModel(rq_vae("digits", num_levels=3, codebook_size=8)).quantizer
    codebook = quantizer.level_codebooks()[0].codes.detach()
    latents = torch.randn(4, 5, 6, codebook.shape[1])
    codes = for_codes(quantizer, 8)(latents, None).indices
    unordered = beam_search(latents.flatten(0, 2), [codebook] * 3, 8, 10**6)
    assert torch.equal(codes.flatten(0, 2).sort(-1).values, unordered.sort(-1).values)
    residual = latents
    for level in range(3):
        left_over = (residual.unsqueeze(-2) - codebook[codes[..., level:]]).square().sum(-1)
        assert torch.all(left_over[..., :1] <= left_over)
        residual = residual - codebook[codes[..., level]]
    assert not torch.equal(codes.flatten(0, 2), unordered), "nothing was to be put in order"
    quantizer.level_codebooks()[0].max_elements = 1
    assert torch.equal(for_codes(quantizer, 8)(latents, None).indices, codes)


def test_of_one_level_there_is_nothing_to_search() -> None:
    quantizer = HQVAEModel(sq_vae_2("digits")).quantizer[0]
    latents = torch.randn(2, 3, 4, quantizer.level_codebooks()[0].weight.shape[1])
    assert torch.equal(for_codes(quantizer, 4)(latents, None).indices, quantizer(latents, None).indices)


def test_quantisers_of_others_are_called_as_ever() -> None:
    class Other(nn.Module):
        def log_probabilities(self, latents: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

        def forward(self, latents: torch.Tensor, temperature: torch.Tensor | None) -> QuantizerOutput:
            zeros = latents.new_zeros(1)
            return QuantizerOutput((latents,), None, {"term": zeros.sum()}, zeros, zeros, zeros.sum(), zeros)

    assert for_codes(Other())(torch.zeros(1, 1, 1, 1), None).terms.keys() == {"term"}
