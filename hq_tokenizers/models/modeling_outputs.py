"""What the image tokenizers return."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from hq_tokenizers.codes import Codes


@dataclass
class ImageTokenizerOutput(ModelOutput):
    """Output of an image tokenizer's `forward`.

    Args:
        loss: Negative ELBO per image in nats with its constants, averaged over the batch: a scalar. No bound, but the
            sum of its terms, with a `kl_weight` other than 1, progressive coding or a deterministic quantiser. None
            when `return_loss=False`.
        reconstruction: (B, C, H, W), nominally in [0, 1], of sounds normalised spectrograms; never clamped.
        codes: Hard codes of the batch; None for the VAE, which has none.
        terms: Scalars that sum to `loss`, but for `kl_weight`: "reconstruction", "continuous", "discrete", and what a
            system adds.
        diagnostics: Per level, tensors of shape (num_levels,): "entropy" of P̂ (nats per position), "perplexity" and
            "active_codes" of this batch's hard codes, "variance" of the quantiser; energies per value: "latent_energy"
            of the group's latents, "residual_energy" of what the levels so far leave over of them.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    codes: Codes | None = None
    terms: dict[str, torch.Tensor] | None = None
    diagnostics: dict[str, torch.Tensor] | None = None
