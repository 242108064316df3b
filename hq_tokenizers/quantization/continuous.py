"""The continuous bottleneck of the VAE, the baseline without codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hq_tokenizers.losses.elbo import gaussian_kl
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.randomness import fixed_normal


class GaussianBottleneck(nn.Module):
    """q(z|x) = N(μ(x), diag exp v(x)) against the prior N(0, I) (Kingma and Welling, 2014).

    Its term, "kl", is `gaussian_kl`.

    In evaluation z is a sample, too, with noise that is the same for every image and in every call. The batch norms of
    the decoder describe noisy latents; decoded from its means, a VAE of MNIST has a hundred times the error.
    """

    def forward(
        self, latents: torch.Tensor, temperature: torch.Tensor | None, log_variance_map: torch.Tensor, *_unused: Any
    ) -> QuantizerOutput:
        """Samples z from μ and v, both (B, h, w, d); with fixed noise when `temperature` is None."""
        mean, log_variance = latents.float(), log_variance_map.float()
        fixed = temperature is None
        noise = fixed_normal(mean.shape[1:], mean.device) if fixed else torch.randn_like(mean)
        sample = mean + noise * (0.5 * log_variance).exp()
        kl = gaussian_kl(mean, log_variance)
        empty = mean.new_zeros(0)
        return QuantizerOutput((sample,), None, {"kl": kl}, empty, empty, empty, empty)
