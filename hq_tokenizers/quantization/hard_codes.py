"""Codes and nothing else: what encoding asks a quantiser for.

Shape legend: B batch, h × w grid, M latent vectors, d code width, D levels of K_l codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from hq_tokenizers.quantization.functional import in_chunks
from hq_tokenizers.quantization.outputs import QuantizerOutput


def for_codes(quantizer: nn.Module, beam_width: int = 1) -> Callable[..., QuantizerOutput]:
    """A quantiser outside of training, without what its codes do not need.

    The terms and the entropies of P̂ take over half of the time of encoding with a stochastic quantiser; one with
    `supports_codes_only` leaves them out when it is called with `codes_only`. Others are called as ever.

    Args:
        quantizer: Any.
        beam_width: Above 1 the codes of several levels are those of `beam_search`.
    """
    if beam_width > 1 and len(quantizer.level_codebooks()) > 1:  # type: ignore[operator]
        return partial(_beam_output, quantizer, beam_width)
    return partial(quantizer, codes_only=True) if getattr(quantizer, "supports_codes_only", False) else quantizer


def _beam_output(quantizer: Any, beam_width: int, latents: torch.Tensor, *_unused: Any) -> QuantizerOutput:
    """The codes of `beam_search` for latents (B, h, w, d), their partial sums, and zeros in place of figures."""
    books = quantizer.level_codebooks()
    with torch.autocast(latents.device.type, enabled=False):
        codebooks = [book.codes for book in books]
        vectors, bound = latents.float().flatten(0, 2), books[0].max_elements
        found = beam_search(vectors, codebooks, beam_width, bound)
        if books[0] is books[1]:
            order = partial(_closest_first, codebooks[0])
            (found,) = in_chunks(
                order, vectors, found, num_codes=codebooks[0].shape[1] * len(books), max_elements=bound
            )
    indices = found.unflatten(0, latents.shape[:3])
    sums = tuple(accumulate(quantizer.embed(indices)))
    zeros = latents.new_zeros(len(books))
    return QuantizerOutput(sums, indices, {}, zeros, zeros, latent_energy=zeros.sum(), residual_energy=zeros)


@torch.no_grad()
def beam_search(
    latents: torch.Tensor, codebooks: Sequence[torch.Tensor], beam_width: int, max_elements: int
) -> torch.Tensor:
    """Codes whose vectors sum up close to the latents: argmin over what is kept of ‖z − Σ_l b_{l,k_l}‖².

    Level after level the `beam_width` partial sums that are closest are kept, of all continuations of those kept
    before. With a width of 1 that is the nearest code of what the levels before leave over.

    Args:
        latents: (M, d), float32.
        codebooks: One (K_l, d) per level.
        beam_width: Partial sums to keep.
        max_elements: Bound on the distances held at once.

    Returns:
        LongTensor (M, D).
    """

    def search(z: torch.Tensor) -> tuple[torch.Tensor]:
        residuals, paths = z.unsqueeze(1), torch.zeros(len(z), 1, 0, dtype=torch.long, device=z.device)
        for codebook in codebooks:
            energies = residuals.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
            closeness = (residuals @ codebook.T - energies / 2).flatten(1)
            best = closeness.topk(min(beam_width, closeness.shape[1])).indices
            kept, codes = best // len(codebook), best % len(codebook)
            paths = torch.cat([_rows(paths, kept), codes.unsqueeze(-1)], dim=-1)
            residuals = _rows(residuals, kept) - codebook[codes]
        return (paths[:, 0],)

    largest = beam_width * max(map(len, codebooks))
    return in_chunks(search, latents, num_codes=largest, max_elements=max_elements)[0]


def _closest_first(codebook: torch.Tensor, latents: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor]:
    """The codes (M, D) of one codebook in the order in which every next one leaves the least over; the sum stays.

    A beam finds the same sum in any order, and first levels of another order alone would decode to more error.
    """
    residuals, left = latents, codes
    chosen = []
    for _ in range(codes.shape[1]):
        distances = (residuals.unsqueeze(1) - codebook[left]).square().sum(-1)
        nearest = distances.argmin(dim=1, keepdim=True)
        chosen.append(left.gather(1, nearest))
        residuals = residuals - codebook[chosen[-1][:, 0]]
        others = torch.arange(left.shape[1], device=left.device) != nearest
        left = left[others].reshape(len(left), left.shape[1] - 1)
    return (torch.cat(chosen, dim=1),)


def _rows(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Values (M, W, c) of the chosen (M, W') of the W."""
    return values.gather(1, chosen.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
