"""What a tokenizer makes of images, by name, for pictures that say what they show."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from hq_tokenizers.codes import Codes
from hq_tokenizers.quantization.usage import code_counts

from .decoding import encode_and_decode


def spread_over(num_rows: int, number: int) -> torch.Tensor:
    """Indices of up to `number` rows, evenly over a split: where classes are folders, they come one after the other."""
    shown = min(number, num_rows)
    return torch.arange(shown) * num_rows // max(shown, 1)


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
    *partial, whole = encode_and_decode(model, pixel_values, **others)[1]
    names = ("level 1" if count == 1 else f"levels 1 to {count}" for count in range(1, len(partial) + 1))
    return {"original": pixel_values, **dict(zip(names, partial, strict=True)), "reconstruction": whole}


@torch.no_grad()
def decoded_codes(model: PreTrainedModel, codes: Codes, level: int, indices: torch.Tensor) -> torch.Tensor:
    """What codes of a level look like, each decoded from a grid of nothing else.

    Levels are refined by the next ones, so that the levels before hold a code too: that which is used most there. The
    levels after are left out, as in a reconstruction from the first levels.

    Args:
        model: The tokenizer, in evaluation mode.
        codes: Codes of some images, of which the most used ones are counted.
        level: Index of the level.
        indices: Codes (N,) of that level, on the device of the model.

    Returns:
        (N, C, H, W), nominally in [0, 1].
    """
    truncated = codes.truncate(level + 1)
    sizes = truncated.layout.codebook_sizes
    held = [code_counts(grid, size).argmax() for grid, size in zip(truncated.levels()[:-1], sizes, strict=False)]
    level_of_code = truncated.layout.level_of_code().to(indices.device)
    flat = indices[:, None].expand(-1, len(level_of_code)).clone()
    for before, code in enumerate(held):
        flat[:, level_of_code == before] = code.to(indices.device)
    return model.decode(truncated.layout.unflatten(flat))
