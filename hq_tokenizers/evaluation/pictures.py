"""What a tokenizer makes of images, by name, for pictures that say what they show."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


@torch.no_grad()
def named_reconstructions(
    model: PreTrainedModel, pixel_values: torch.Tensor, **others: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The images and what a tokenizer makes of them.

    Args:
        model: The tokenizer, in evaluation mode.
        pixel_values: Images (B, C, H, W), or label maps (B, H, W).
        **others: "attention_mask" and "speaker_ids" of sounds.

    Returns:
        "original"; of a tokenizer of several levels what the first ones hold, "level 1", "levels 1 to 2", …; and
        "reconstruction", from all.
    """
    versions = {"original": pixel_values}
    if model.config.has_codes and model.code_layout().num_levels > 1:
        codes = model.encode(pixel_values, **{name: value for name, value in others.items() if name != "speaker_ids"})
        for count in range(1, codes.num_levels):
            versions["level 1" if count == 1 else f"levels 1 to {count}"] = model.decode(
                codes, num_levels=count, **others
            )
    return versions | {"reconstruction": model(pixel_values, return_loss=False, **others).reconstruction}
