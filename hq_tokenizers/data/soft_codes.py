"""The tokenizer's probabilities of the codes, as targets for a prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hq_tokenizers.codes import CodeLayout


@dataclass(frozen=True)
class SoftCodes:
    """The k likeliest codes under the tokenizer's posterior, for every code of N images.

    Args:
        codes: Integers (N, T, k), T in the order of `Codes.flatten`. A level of fewer than k codes is filled up with
            code 0 at probability 0.
        probabilities: float16 (N, T, k), of sum 1 over k up to rounding.
    """

    codes: torch.Tensor
    probabilities: torch.Tensor


def soft_codes(layout: CodeLayout, log_posterior: Sequence[torch.Tensor], number: int) -> SoftCodes:
    """The likeliest codes of every place, with their probabilities scaled to a sum of 1.

    Args:
        layout: Layout of the codes.
        log_posterior: Log-probabilities of every level, (B, h_g, w_g, K_l), coarse to fine.
        number: Codes to keep per place, k; the width of the result is less where no level has that many.

    Returns:
        int32 codes and float16 probabilities, (B, T, k).
    """
    width = min(number, max(layout.codebook_sizes))
    batch_size, device = len(log_posterior[0]), log_posterior[0].device
    codes = torch.zeros(batch_size, layout.num_codes, width, dtype=torch.int32, device=device)
    probabilities = torch.zeros(batch_size, layout.num_codes, width, dtype=torch.float16, device=device)
    places = layout.level_of_code().to(device)
    for level, log_probabilities in enumerate(log_posterior):
        kept = log_probabilities.flatten(1, 2).topk(min(width, log_probabilities.shape[-1]), dim=-1)
        columns = slice(kept.values.shape[-1])
        codes[:, places == level, columns] = kept.indices.int()
        # A softmax over the kept ones divides them by their sum.
        probabilities[:, places == level, columns] = kept.values.softmax(-1).half()
    return SoftCodes(codes, probabilities)
