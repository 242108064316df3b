"""Cross-entropies of codes, and the units likelihoods are reported in.

Shape legend: B batch, P_g positions of the level's group, K codes of the level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from hq_tokenizers.codes import CodeLayout, Codes


def level_targets(codes: Codes, soft_targets: Sequence[torch.Tensor] | None) -> tuple[torch.Tensor, ...]:
    """What each level's logits are compared with: the codes, LongTensor (B, P_g), or the soft targets (B, P_g, K).

    Raises:
        ValueError: If the soft targets are not one tensor of that shape per level.
    """
    hard = tuple(values.flatten(1) for values in codes.levels())
    if soft_targets is None:
        return hard
    expected = [(*values.shape, size) for values, size in zip(hard, codes.layout.codebook_sizes, strict=True)]
    given = [tuple(target.shape) for target in soft_targets]
    if given != expected:
        raise ValueError(
            f"soft_targets are probabilities, one tensor (batch, positions, codebook size) per level: {expected} here, "
            f"got {given}."
        )
    return tuple(soft_targets)


def dense_soft_targets(
    layout: CodeLayout, codes: torch.Tensor, probabilities: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Soft targets as the models take them, from the likeliest codes only; every other code gets 0.

    Args:
        layout: Layout of the codes.
        codes: LongTensor (B, T, k), T in the order of `Codes.flatten`; a code that comes twice gets both probabilities.
        probabilities: (B, T, k); scaled here to a sum of 1 over k.

    Returns:
        One float32 tensor (B, P_g, K) per level, coarse to fine.
    """
    probabilities = probabilities.float()
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    lengths = [group.num_positions * group.depth for group in layout.groups]
    dense = []
    groups = zip(layout.groups, codes.split(lengths, dim=1), probabilities.split(lengths, dim=1), strict=True)
    for group, group_codes, group_probabilities in groups:
        for depth, size in enumerate(group.codebook_sizes):
            indices, values = (tensor[:, depth :: group.depth] for tensor in (group_codes, group_probabilities))
            dense.append(values.new_zeros(*indices.shape[:2], size).scatter_add(2, indices, values))
    return tuple(dense)


def code_cross_entropy(logits: torch.Tensor, target: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """−Σ_k q_k log p_k in nats for every code of a level, in float32: (B, P_g).

    Args:
        logits: Of p, (B, P_g, K).
        target: Codes (B, P_g), or probabilities q (B, P_g, K).
        label_smoothing: Share of q that is spread evenly over the K codes.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if target.ndim == 3:
        target = target.to(logits.dtype)
    losses = F.cross_entropy(
        logits.flatten(0, 1), target.flatten(0, 1), reduction="none", label_smoothing=label_smoothing
    )
    return losses.unflatten(0, logits.shape[:2])


def masked_cross_entropy(
    logits: Sequence[torch.Tensor],
    targets: Sequence[torch.Tensor],
    predicted: Sequence[torch.Tensor],
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean over the images of the mean cross-entropy of an image's predicted codes, in nats: a scalar.

    Args:
        logits: One tensor (B, P_g, K) per level.
        targets: As `level_targets` gives them.
        predicted: One BoolTensor (B, P_g) per level; every image has at least one True.
        label_smoothing: As in `code_cross_entropy`.
    """
    asked = torch.cat(list(predicted), dim=1)
    weights = asked / asked.sum(dim=1, keepdim=True)
    losses = [code_cross_entropy(p, q, label_smoothing) for p, q in zip(logits, targets, strict=True)]
    return (torch.cat(losses, dim=1) * weights).sum(dim=1).mean()


def bits_per_dimension(
    log_prob: torch.Tensor,
    num_dimensions: int,
    decoder_nll: torch.Tensor | float = 0.0,
    posterior_entropy: torch.Tensor | float = 0.0,
    pixel_levels: int | None = None,
) -> torch.Tensor:
    """Bits per dimension of whole images under prior and decoder, an upper bound of −log₂ p(x) / D.

        −log p(x) ≤ E_q(k|x) [−log p(x | k) − log P(k)] − H(q(k|x))

    The bound holds for any q; with a deterministic encoder H is 0. Without `decoder_nll` the value is the rate of the
    codes alone, in bits per pixel value.

    Args:
        log_prob: log P(k) of the codes in nats, `prior.log_prob(codes)`: (B,).
        num_dimensions: D, the number of pixel values of an image (height · width · channels).
        decoder_nll: −log p(x | k) in nats per image, (B,): for continuous pixel values the negative log-density.
        posterior_entropy: H(q(k|x)) in nats per image, when the codes were sampled from q.
        pixel_levels: When `decoder_nll` is a density over values in [0, 1] that stand for this many grey levels (256):
            the density is turned into the probability of a level, which adds log₂(pixel_levels) bits per dimension.

    Returns:
        (B,).

    Raises:
        ValueError: If a count is not positive.
    """
    if num_dimensions < 1:
        raise ValueError(f"num_dimensions must be at least 1, the number of pixel values, got {num_dimensions}.")
    if pixel_levels is not None and pixel_levels < 2:
        raise ValueError(f"pixel_levels must be at least 2 (256 for 8 bits), got {pixel_levels}.")
    nats = decoder_nll - log_prob - posterior_entropy
    return nats / (num_dimensions * math.log(2)) + (0.0 if pixel_levels is None else math.log2(pixel_levels))
