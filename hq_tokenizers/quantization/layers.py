"""The quantisers as layers, for models and training code of your own: vectors in, `(quantized, codes, loss)` out.

    >>> import torch
    >>> from hq_tokenizers import ResidualStochasticQuantize
    >>> layer = ResidualStochasticQuantize(dim=64, codebook_size=512, num_quantizers=4)
    >>> quantized, codes, loss = layer(torch.randn(8, 100, 64))
    >>> codes.shape
    torch.Size([8, 100, 4])

They hold the modules that the models hold, `layer.quantizer`, and start from the same weights.

Shape legend: B batch, … at most three sizes of a grid (N positions in all), d code width, K codes, D codes a position.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from torch import nn

from hq_tokenizers.checks import CodebookSize, Range, Width, check_value
from hq_tokenizers.quantization.gaussian import GaussianQuantizer, GaussianVariance
from hq_tokenizers.quantization.layer_training import PAPER, StochasticTraining, VectorTraining
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.quantize_layer import QuantizeLayer
from hq_tokenizers.quantization.residual_gaussian import ResidualGaussianQuantizer
from hq_tokenizers.quantization.residual_vector import ResidualVectorQuantizer
from hq_tokenizers.quantization.temperature import GumbelTemperature

__all__ = ["PAPER", "ResidualStochasticQuantize", "ResidualVectorQuantize", "StochasticQuantize", "VectorQuantize"]

LOG_VARIANCE_RANGE = (-14.0, 8.0)
MAX_ELEMENTS = 2**27
"""Elements of the latents × codes matrix held in memory at once; larger batches are quantised in slices."""

Levels = Annotated[int, Range(1, 256)]


class _StochasticLayer(QuantizeLayer):
    """Loss and temperature of the stochastic layers."""

    def __init__(
        self,
        dim: int,
        quantizer: nn.Module,
        training: StochasticTraining,
        channel_last: bool,
        normalize: bool,
        one_code: bool,
    ):
        super().__init__(dim, quantizer, channel_last, normalize, one_code)
        self.kl_weight = training.kl_weight
        self.temperature = GumbelTemperature(
            training.gumbel_temperature, training.gumbel_decay, training.gumbel_min_temperature
        )

    def _temperature(self) -> torch.Tensor:
        temperature = self.temperature()
        self.temperature.advance()
        return temperature

    def _terms(self, terms: dict[str, torch.Tensor], num_positions: int) -> dict[str, torch.Tensor]:
        return {name: term / num_positions for name, term in terms.items()}

    def _loss(self, output: QuantizerOutput, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """(2 β / d) ρ (continuous + discrete), ρ = min(1, ‖ẑ − z_q‖² / ‖ẑ‖²) without a gradient."""
        smallest = torch.finfo(torch.float32).tiny
        left_over = (output.residual_energy[-1] / output.latent_energy.clamp_min(smallest)).clamp_max(1.0)
        return 2 * self.kl_weight / self.dim * left_over * torch.stack(list(terms.values())).sum()


class StochasticQuantize(_StochasticLayer):
    """Stochastic quantisation by one code per vector (SQ-VAE, Gaussian with one variance for all).

    Its terms are nats per latent vector, and its loss

        loss = (2 β / d) ρ (continuous + discrete)
        continuous = E ‖ẑ − z_q‖² / (2 s²)     discrete = log K − E H(P̂)     ρ = min(1, ‖ẑ − z_q‖² / ‖ẑ‖²), held fixed

    where the norms in ρ are sums over the batch. It belongs to a mean squared error in units of the data's variance:
    minimise F.mse_loss(x̂, x) / Var(x) + loss. This has the gradient of the bound with β,

        (D/2) log mse + β N (continuous + discrete)

    for D values x and N latent vectors, times 2 mse / (D Var(x)), where the decoder leaves as large a share of the
    data's variance as the quantiser of the latents' (ρ = mse / Var(x)), and D / N = d; with others, multiply the loss
    by d N / D. With `return_terms` that bound can be written as it stands.

    Args:
        dim: Code width d.
        codebook_size: Number of codes K.
        channel_last: Whether the input is (B, …, d), or (B, d, …).
        normalize: Whether a batch norm without learned scale comes before the codes: a scale that nothing else holds
            runs away in long runs with variance_update "residual". Code vectors lie in the normalised space.
        **training: Fields of `StochasticTraining`.

    Raises:
        ValueError: For a value out of range.
        TypeError: For an argument that it does not have.
    """

    def __init__(
        self, dim: int, codebook_size: int, *, channel_last: bool = True, normalize: bool = True, **training: Any
    ):
        fields = StochasticTraining.of(type(self), training)
        dim, codebook_size = _sizes(dim, codebook_size)
        initial = math.log(20) if fields.initial_log_variance is None else fields.initial_log_variance
        trained = GaussianVariance("I", "released", floor=0.0, trainable=True)
        nn.init.constant_(trained.log_variance, initial)
        quantizer = GaussianQuantizer(
            codebook_size,
            dim,
            fields.residual_variance(1, initial) or trained,
            dequantization_noise=False,
            max_elements=MAX_ELEMENTS,
            averages=fields.averages(codebook_size, dim),
            straight_through=fields.bottleneck_gradient == "straight_through",
        )
        super().__init__(dim, quantizer, fields, channel_last, normalize, one_code=True)


class ResidualStochasticQuantize(_StochasticLayer):
    """Stochastic quantisation by a sum of codes per vector (RSQ-VAE).

    Loss and terms are those of `StochasticQuantize`, with continuous = E ‖ẑ − Σ_l z_l‖² / (2 Σ_l s_l²), discrete summed
    over the levels, and z_q in ρ the sum of the codes.

    Args:
        dim: Code width d.
        codebook_size: Number of codes K of every level.
        num_quantizers: Number of levels D.
        shared_codebook: Whether all levels use one codebook.
        channel_last: Whether the input is (B, …, d), or (B, d, …).
        normalize: As for `StochasticQuantize`.
        **training: Fields of `StochasticTraining`.

    Raises:
        ValueError: For a value out of range.
        TypeError: For an argument that it does not have.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_quantizers: int,
        *,
        shared_codebook: bool = False,
        channel_last: bool = True,
        normalize: bool = True,
        **training: Any,
    ):
        fields = StochasticTraining.of(type(self), training)
        dim, codebook_size = _sizes(dim, codebook_size)
        num_quantizers = check_value("num_quantizers", num_quantizers, Levels)
        initial = math.log(60) if fields.initial_log_variance is None else fields.initial_log_variance
        quantizer = ResidualGaussianQuantizer(
            [codebook_size] * num_quantizers,
            dim,
            shared_codebook=check_value("shared_codebook", shared_codebook, bool),
            log_variance_range=LOG_VARIANCE_RANGE,
            train_variance=True,
            learned_prior=False,
            max_elements=MAX_ELEMENTS,
            averages_for=lambda size: fields.averages(size, dim),
            residual_variance=fields.residual_variance(num_quantizers, initial),
            straight_through=fields.bottleneck_gradient == "straight_through",
        )
        if quantizer.log_variances is not None:
            nn.init.constant_(quantizer.log_variances, initial)
        super().__init__(dim, quantizer, fields, channel_last, normalize, one_code=False)


class _VectorLayer(QuantizeLayer):
    """Loss of the deterministic layers."""

    def __init__(
        self,
        dim: int,
        codebook_sizes: list[int],
        shared_codebook: bool,
        training: VectorTraining,
        channel_last: bool,
        normalize: bool,
        one_code: bool,
    ):
        quantizer = ResidualVectorQuantizer(
            codebook_sizes,
            dim,
            shared_codebook=shared_codebook,
            commitment_weight=training.commitment_weight,
            averages_for=lambda size: training.averages(size, dim),
            linear=training.codebook_update == "linear",
            reestimation=None,
            max_elements=MAX_ELEMENTS,
        )
        super().__init__(dim, quantizer, channel_last, normalize, one_code)

    def _temperature(self) -> torch.Tensor:
        # Of no value to a deterministic quantiser, which asks only whether there is one.
        return torch.ones(())

    def _terms(self, terms: dict[str, torch.Tensor], num_positions: int) -> dict[str, torch.Tensor]:
        return terms

    def _loss(self, output: QuantizerOutput, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(terms.values())).sum()


class VectorQuantize(_VectorLayer):
    """Quantisation by the nearest code (VQ-VAE), with a straight-through gradient.

    Its loss is the sum of its terms, means over the values of the latents:

        commitment = β · mean (z − sg(b))²     codebook = mean (sg(z) − b)²     (not with codebook_update "ema")

    Args:
        dim: Code width d.
        codebook_size: Number of codes K.
        channel_last: Whether the input is (B, …, d), or (B, d, …).
        normalize: Whether a batch norm without learned scale comes before the codes, which then lie in its space.
        **training: Fields of `VectorTraining`; `restart_threshold` is 1 here with moving averages, and 0 in the preset
            `vq_vae`, the paper's baseline.

    Raises:
        ValueError: For a value out of range.
        TypeError: For an argument that it does not have.
    """

    def __init__(
        self, dim: int, codebook_size: int, *, channel_last: bool = True, normalize: bool = False, **training: Any
    ):
        dim, codebook_size = _sizes(dim, codebook_size)
        fields = VectorTraining.of(type(self), _with_restarts(training))
        super().__init__(dim, [codebook_size], False, fields, channel_last, normalize, one_code=True)


class ResidualVectorQuantize(_VectorLayer):
    """Quantisation by a sum of nearest codes (RQ-VAE), by default of one shared codebook with restart of dead codes.

    Loss and terms are those of `VectorQuantize`, means over the levels, with the sum of the codes so far in place of b.

    Args:
        dim: Code width d.
        codebook_size: Number of codes K of every level.
        num_quantizers: Number of levels D.
        shared_codebook: Whether all levels use one codebook.
        channel_last: Whether the input is (B, …, d), or (B, d, …).
        normalize: As for `VectorQuantize`.
        **training: Fields of `VectorTraining`; `restart_threshold` is 1 here with moving averages.

    Raises:
        ValueError: For a value out of range.
        TypeError: For an argument that it does not have.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_quantizers: int,
        *,
        shared_codebook: bool = True,
        channel_last: bool = True,
        normalize: bool = False,
        **training: Any,
    ):
        dim, codebook_size = _sizes(dim, codebook_size)
        sizes = [codebook_size] * check_value("num_quantizers", num_quantizers, Levels)
        shared = check_value("shared_codebook", shared_codebook, bool)
        fields = VectorTraining.of(type(self), _with_restarts(training))
        super().__init__(dim, sizes, shared, fields, channel_last, normalize, one_code=False)


def _with_restarts(training: dict[str, Any]) -> dict[str, Any]:
    """Fields of `VectorTraining`, by default with restarts: nobody knows the scale of another model's latents."""
    return {"restart_threshold": 1.0, **training} if training.get("codebook_update", "ema") == "ema" else training


def _sizes(dim: int, codebook_size: int) -> tuple[int, int]:
    return check_value("dim", dim, Width), check_value("codebook_size", codebook_size, CodebookSize)
