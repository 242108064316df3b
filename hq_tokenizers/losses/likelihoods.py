"""The decoder's distribution p(x | z_q): what the networks see, what they give back, and its negative log-likelihood.

Shape legend: B batch, H × W image, C channels of an image or classes of a label map, D values (H·W·C of an image, H·W
of a label map), F outputs per pixel of a label map.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.losses.bessel import log_vmf_normalizer
from hq_tokenizers.losses.elbo import gaussian_nll

MINIMUM_NORM = 1e-6
Activation = Literal["sigmoid", "linear", "identity"]


class GaussianImages(nn.Module):
    """N(x; x̂, σ² I) for images in [0, 1], or for spectrograms.

    Args:
        learned: Whether log σ² is a parameter; otherwise σ² is at its optimum for each batch.
        num_reconstructions: Of progressive coding, each with a σ² of its own: coarse ones are further from the image.
        activation: What follows the decoder's last layer y: "sigmoid", "linear" for (y + 1) / 2, which maps [−1, 1] to
            [0, 1], or "identity", of spectrograms.
        min_variance: Where σ² is not learned: its smallest value.
    """

    def __init__(
        self,
        learned: bool,
        num_reconstructions: int = 1,
        activation: Activation = "sigmoid",
        min_variance: float = 0.0,
    ):
        super().__init__()
        self.activation = activation
        self.min_variance = min_variance
        shape = () if num_reconstructions == 1 else (num_reconstructions,)
        self.log_variance = nn.Parameter(torch.empty(shape)) if learned else None

    def inputs(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The encoder's input: the image."""
        return pixel_values

    def outputs(self, decoded: torch.Tensor) -> torch.Tensor:
        """x̂ from the decoder's last layer, in float32, so that bfloat16 does not round it."""
        decoded = decoded.float()
        if self.activation == "sigmoid":
            return decoded.sigmoid()
        return (decoded + 1) / 2 if self.activation == "linear" else decoded

    def nll(self, decoded: torch.Tensor, pixel_values: torch.Tensor, index: int = -1) -> torch.Tensor:
        """−log p(x | z_q) per image in nats; `index` of the reconstruction, by default the last, of all levels."""
        log_variance: torch.Tensor | None = self.log_variance
        if log_variance is not None and log_variance.ndim:
            log_variance = log_variance[index]
        return gaussian_nll(self.outputs(decoded), pixel_values, log_variance, self.min_variance)

    def error_weight(self, mean_squared_error: torch.Tensor, num_values: int) -> torch.Tensor:
        """D / (2σ²): what `nll` charges for one unit of mean squared error per pixel value, without gradient.

        Args:
            mean_squared_error: ‖x − x̂‖² / D of the batch, a scalar; the optimum of σ².
            num_values: D.
        """
        if self.log_variance is None:
            variance = mean_squared_error.detach().clamp_min(max(self.min_variance, torch.finfo(torch.float32).tiny))
        else:
            variance = self.log_variance.detach().float().flatten()[-1].exp()
        return num_values / (2 * variance)


class SquaredErrorImages(GaussianImages):
    """The VQ objective for images, no likelihood: mean squared error per value over the data's variance.

    Args:
        data_variance: Variance of the pixel values.
        activation: See `GaussianImages`.
    """

    def __init__(self, data_variance: float, activation: Activation = "sigmoid"):
        super().__init__(learned=False, activation=activation)
        self.data_variance = data_variance

    def nll(self, decoded: torch.Tensor, pixel_values: torch.Tensor, index: int = -1) -> torch.Tensor:
        """The scaled error."""
        return F.mse_loss(self.outputs(decoded).float(), pixel_values.float()) / self.data_variance

    def error_weight(self, mean_squared_error: torch.Tensor, num_values: int) -> torch.Tensor:
        """1 over the variance of the data, for every image size."""
        return mean_squared_error.new_tensor(1 / self.data_variance)


class CategoricalLabels(nn.Module):
    """A softmax over the classes at every pixel of a label map (the paper's NC-SQ-VAE).

    Args:
        num_classes: C; networks see and give C channels, rounded up to an even number F.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes

    def inputs(self, label_map: torch.Tensor) -> torch.Tensor:
        """The encoder's input: one-hot, (B, H, W) → float (B, F, H, W)."""
        return F.one_hot(label_map, label_channels(self.num_classes)).movedim(-1, 1).float()

    def outputs(self, decoded: torch.Tensor) -> torch.Tensor:
        """The most probable label map, (B, H, W)."""
        return decoded[:, : self.num_classes].argmax(dim=1)

    def nll(self, decoded: torch.Tensor, label_map: torch.Tensor) -> torch.Tensor:
        """−log p(x | z_q) per image in nats."""
        logits = decoded[:, : self.num_classes].float()
        return F.cross_entropy(logits, label_map, reduction="sum") / len(label_map)


class VonMisesFisherLabels(CategoricalLabels):
    """vMF(w_x; f̃, κ) at every pixel of a label map (SQ-VAE, section 4.2).

    Class c stands for the unit vector w_c, the c-th axis of R^F; f̃ is the normalised output of the decoder;

        −log p = −κ Σ_d w_{x_d}ᵀ f̃_d − D log C_F(κ)

    with κ learned through log κ⁻¹.

    Args:
        num_classes: C; F is C rounded up to an even number.
        softplus: Whether Softplus precedes the normalisation, as in the authors' decoder.
    """

    def __init__(self, num_classes: int, softplus: bool = False):
        super().__init__(num_classes)
        self.softplus = softplus
        self.log_inverse_concentration = nn.Parameter(torch.empty(()))

    def nll(self, decoded: torch.Tensor, label_map: torch.Tensor) -> torch.Tensor:
        """−log p(x | z_q) per image in nats, a density on the sphere."""
        decoded = F.softplus(decoded.float()) if self.softplus else decoded.float()
        directions = F.normalize(decoded, dim=1, eps=MINIMUM_NORM)
        alignment = directions.gather(1, label_map.unsqueeze(1)).sum() / len(label_map)
        concentration = (-self.log_inverse_concentration.float()).exp()
        normalizer = log_vmf_normalizer(decoded.shape[1], concentration).float()
        return -concentration * alignment - label_map[0].numel() * normalizer


def label_channels(num_classes: int) -> int:
    """F = 2 ⌈C/2⌉: channels that represent C classes; even, so that the vMF normaliser has an integer order."""
    return 2 * math.ceil(num_classes / 2)
