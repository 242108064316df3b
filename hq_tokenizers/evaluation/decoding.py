"""What a tokenizer keeps of its inputs, by the number of levels that are decoded."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hq_tokenizers.codes import Codes


@torch.no_grad()
def encode_and_decode(
    model: PreTrainedModel, pixel_values: torch.Tensor, **others: torch.Tensor
) -> tuple[Codes | None, list[torch.Tensor]]:
    """The codes, chosen as `encode` of the model chooses them, and what they decode to.

    Args:
        model: The tokenizer, in evaluation mode.
        pixel_values: Images (B, C, H, W), or label maps (B, H, W).
        **others: "attention_mask" and "speaker_ids" of sounds.

    Returns:
        The codes, or None of a tokenizer without; and the reconstructions from the first 1, …, L levels of them, or the
        only one.
    """
    if not model.config.has_codes:
        return None, [model(pixel_values, return_loss=False, **others).reconstruction]
    codes = model.encode(pixel_values, **{name: value for name, value in others.items() if name != "speaker_ids"})
    return codes, [model.decode(codes, num_levels=level + 1, **others) for level in range(codes.num_levels)]
