"""Codes that are given rather than sampled: inpainting, variations, completions.

Shape legend: N inputs, B samples (N · num_images, input-major), P_g positions of group g, D_g codes per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hq_tokenizers.codes import CodeLayout, Codes


@dataclass(frozen=True)
class KnownCodes:
    """Given codes of B samples, ready to be looked up by position.

    Args:
        codes: Per group a LongTensor (B, P_g, D_g); arbitrary where the mask is False.
        masks: Per group a BoolTensor (B, P_g, D_g), True where the code is given.
    """

    codes: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor, ...]

    def fill(self, sampled: torch.Tensor, group: int, position: int, depth: int) -> torch.Tensor:
        """Replaces the sampled codes (B,) of one place by the given ones, where there are any."""
        return torch.where(self.masks[group][:, position, depth], self.codes[group][:, position, depth], sampled)


def prepare_known_codes(
    known_codes: Codes,
    known_mask: Sequence[torch.Tensor] | None,
    num_inputs: int,
    num_images: int,
    device: torch.device,
) -> KnownCodes:
    """Checks given codes and repeats them for every image of an input.

    Args:
        known_codes: Codes of N images, or of one image for all inputs.
        known_mask: Per group a BoolTensor (N, h_g, w_g, D_g), or (N, h_g, w_g) for all depths of a position alike; one
            row serves all inputs. True marks the codes to keep.
        num_inputs: N.
        num_images: Samples per input.
        device: Where the codes are sampled.

    Raises:
        TypeError: If a mask is not boolean.
        ValueError: If there is no mask, a shape is wrong, or a code to keep is outside its codebook.
    """
    layout = known_codes.layout
    if known_mask is None:
        raise ValueError("known_codes needs a known_mask: one boolean tensor per group, True where codes are kept.")
    if isinstance(known_mask, torch.Tensor) or len(known_mask) != len(layout.groups):
        count = "a single tensor" if isinstance(known_mask, torch.Tensor) else f"{len(known_mask)} tensors"
        raise ValueError(f"known_mask is one boolean tensor per group, {len(layout.groups)} here, got {count}.")
    masks = _full_masks(known_mask, layout, num_inputs)
    kept = [codes.to(mask.device).where(mask, 0) for codes, mask in zip(known_codes.groups, masks, strict=True)]
    Codes(tuple(kept), layout).validate()

    def spread(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device).flatten(1, 2).expand(num_inputs, -1, -1).repeat_interleave(num_images, dim=0)

    return KnownCodes(tuple(map(spread, kept)), tuple(map(spread, masks)))


def _full_masks(known_mask: Sequence[torch.Tensor], layout: CodeLayout, num_inputs: int) -> list[torch.Tensor]:
    masks = []
    for index, (mask, group) in enumerate(zip(known_mask, layout.groups, strict=True)):
        grid = (group.height, group.width)
        if mask.dtype != torch.bool:
            raise TypeError(f"known_mask[{index}] must be boolean (True = keep the code), got {mask.dtype}.")
        full = mask[..., None].expand(*mask.shape, group.depth) if mask.ndim == 3 else mask
        if full.ndim != 4 or full.shape[1:] != (*grid, group.depth) or full.shape[0] not in (1, num_inputs):
            raise ValueError(
                f"known_mask[{index}] must have shape {(num_inputs, *grid)} or {(num_inputs, *grid, group.depth)} "
                f"(a first dimension of 1 serves all), got {tuple(mask.shape)}."
            )
        masks.append(full)
    return masks
