"""Fields that the configurations of all image tokenizers share."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal

from transformers import PreTrainedConfig

from hq_tokenizers.checks import (
    ImageSize,
    NotNegative,
    Number,
    Positive,
    Range,
    Width,
    check_fields,
    check_image_size,
    class_names,
    did_you_mean,
)
from hq_tokenizers.remote_code import forget_exported_code

LogVariance = Annotated[Number, Range(-80, 80)]
"""Beyond it, exp leaves the range of float32."""
Blocks = Annotated[int, Range(1, 1000)]
Epochs = Annotated[int, Range(0, 1_000_000)]


class ImageTokenizerConfig(PreTrainedConfig):
    """Fields of every image tokenizer.

    Args:
        quantizer: How latents become codes; the configuration of a model says which it has.
        image_size: Height and width of the training images, an integer or [height, width], divisible by the stride.
            The model accepts any other size that the stride divides.
        num_channels: Image channels: 1 grey, 3 colour.
        hidden_size: Channels of the convolutional features.
        num_residual_blocks: Residual blocks of the encoder.
        num_decoder_residual_blocks: Residual blocks of the decoder.
        bottleneck_convolution: Whether a 3×3 convolution stands at the bottleneck on both sides.
        bottleneck_norm: Whether BN and ReLU precede the encoder's residual blocks.
        bottleneck_batch_norm: Whether BN and a 1×1 projection stand before the quantiser (robust VQ training).
        convolution_bias: Initial biases of the convolutions: "zero", or "uniform", PyTorch's own ±1/√(inputs), which
            the authors' code keeps.
        codebook_dim: Width d of a code vector.
        codebook_init_std: Standard deviation of the initial code vectors.
        codebook_learning_rate_factor: Learning rate of the codebooks relative to the rest of the model.
        train_variance: Whether the quantisation variance is learned; False freezes it, for ablations.
        decoder_variance: σ² of the Gaussian decoder: "batch" its optimum on each batch, "learned" a parameter.
        initial_decoder_log_variance: Initial log σ² when it is learned.
        kl_weight: Weight β of the terms that charge for codes, "continuous" and "discrete", or of a VAE's "kl": with 1
            the loss is the negative ELBO, less buys a smaller error with more bits (β-VAE).
        gumbel_temperature: Gumbel-softmax temperature τ₀ at step 0.
        gumbel_decay: τ(t) = max(τ₀ exp(−gumbel_decay · t), gumbel_min_temperature) after t optimiser steps.
        gumbel_min_temperature: Smallest temperature.
        bottleneck_gradient: What the encoder gets of the decoder's gradient: "pathwise", through the relaxed sample as
            in the papers, or "straight_through", as it is; the other terms of the loss keep their own gradients.
        variance_update: "trained" variances minimise the loss as in the papers; "residual" ones are `variance_factor`
            times the moving average of the energy per value that a level leaves over.
        variance_factor: See `variance_update`; 1 is sharp, 3 soft.
        commitment_weight: VQ only: β of the commitment term.
        data_variance: VQ only: variance of the pixel values by which the mean squared error is divided, by default that
            of CIFAR-10; MNIST has 0.09.
        codebook_update: Code vectors learned by "gradient", or by moving averages of the latents nearest to them (or,
            of stochastic quantisers, at their most probable codes), "ema".
        ema_decay: With "ema": decay of the moving averages per optimiser step.
        restart_threshold: With "ema": a code whose count per batch, and its moving average, are below this is replaced
            by a random vector of the batch; 0 switches it off.
        warmup_epochs: VQ only: epochs without quantisation, while encoder outputs are collected.
        reestimation_epochs: VQ only: epochs after the warm-up at whose start the codebook is re-estimated by k-means.
        reservoir_size: VQ only: encoder outputs collected for the re-estimation.
        max_quantizer_elements: Largest number of elements of the latents × codes matrix held in memory at once; larger
            batches are quantised in slices.
    """

    base_config_key = "image_tokenizer_config"
    # What transformers' Trainer gathers as predictions is the reconstruction alone: the rest is no batch of tensors.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["codes", "terms", "diagnostics"]
    stride_field: ClassVar[str]
    """The field that decides the stride."""

    quantizer: Literal["gaussian", "vmf", "vq", "none"] = "gaussian"
    image_size: ImageSize = 32
    num_channels: Width = 3
    hidden_size: Annotated[int, Range(2, 65_536)] = 64
    num_residual_blocks: Blocks = 2
    num_decoder_residual_blocks: Annotated[int, Range(0, 1000)] = 2
    bottleneck_convolution: bool = True
    bottleneck_norm: bool = True
    bottleneck_batch_norm: bool = False
    convolution_bias: Literal["zero", "uniform"] = "zero"
    codebook_dim: Width = 64
    codebook_init_std: NotNegative = 1.0
    codebook_learning_rate_factor: Positive = 1.0
    train_variance: bool = True
    decoder_variance: Literal["batch", "learned"] = "batch"
    initial_decoder_log_variance: LogVariance = math.log(0.1)
    kl_weight: Positive = 1.0
    gumbel_temperature: Positive = 1.0
    gumbel_decay: NotNegative = 1e-5
    gumbel_min_temperature: NotNegative = 0.0
    bottleneck_gradient: Literal["pathwise", "straight_through"] = "pathwise"
    variance_update: Literal["trained", "residual"] = "trained"
    variance_factor: Positive = 3.0
    commitment_weight: NotNegative = 0.25
    data_variance: Positive = 0.06
    codebook_update: Literal["gradient", "ema"] = "gradient"
    ema_decay: Annotated[Number, Range(0, 1, below=True)] = 0.99
    restart_threshold: NotNegative = 0.0
    warmup_epochs: Epochs = 0
    reestimation_epochs: Epochs = 0
    reservoir_size: Annotated[int, Range(1, 2**27)] = 20480
    max_quantizer_elements: Annotated[int, Range(1, 2**40)] = 2**27

    @property
    def has_codes(self) -> bool:
        """Whether images become codes; a VAE has continuous latents instead."""
        return self.quantizer != "none"

    @property
    def is_stochastic(self) -> bool:
        """Whether codes have a posterior P̂(z_q | z), from which training samples."""
        return self.quantizer in ("gaussian", "vmf")

    @property
    def is_deterministic(self) -> bool:
        """Whether every latent vector has one code, the nearest (VQ)."""
        return self.has_codes and not self.is_stochastic

    @property
    def for_label_maps(self) -> bool:
        """Whether the model's data are label maps, LongTensors (B, H, W), instead of images."""
        return False

    def __post_init__(self, **kwargs: Any) -> None:
        check_fields(self, below=PreTrainedConfig)
        forget_exported_code(__name__, kwargs)
        self._check_relations()
        self._check_names(kwargs)
        class_names(self.id2label or {})
        self._check_unused()
        prefix = f"image_size and {self.stride_field} do not go together. "
        check_image_size(self.image_size, self.stride, prefix)
        super().__post_init__(**kwargs)

    def _check_relations(self) -> None:
        """Refuses values that are right alone and wrong together."""
        if self.gumbel_min_temperature > self.gumbel_temperature:
            raise ValueError(
                f"gumbel_min_temperature must be at most gumbel_temperature {self.gumbel_temperature}, got "
                f"{self.gumbel_min_temperature}."
            )
        if self.restart_threshold and self.codebook_update != "ema":
            raise ValueError("restart_threshold needs the counts of codebook_update='ema'; set it to 0 otherwise.")
        if self.warmup_epochs and not self.reestimation_epochs:
            raise ValueError("warmup_epochs collects vectors for reestimation_epochs, which is 0: set both or none.")
        if self.reestimation_epochs and not self.warmup_epochs:
            raise ValueError("reestimation_epochs needs warmup_epochs ≥ 1, in which the vectors are collected.")

    def _check_names(self, unknown: dict[str, Any]) -> None:
        """Refuses misspelt fields; transformers stores any argument it does not know as an attribute."""
        fields = [field.name for field in dataclasses.fields(self)]
        for name in unknown:
            hint = did_you_mean(name, fields, cutoff=0.85)
            if hint:
                raise ValueError(f"{type(self).__name__} has no field {name!r}. {hint}")

    def _check_unused(self) -> None:
        """Refuses fields that were set and would have no effect."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, (used, purpose) in self._purposes().items():
            if not used and getattr(self, name) != defaults[name]:
                raise ValueError(f"{name} is for {purpose}, else it has no effect: leave it at {defaults[name]!r}.")

    def _purposes(self) -> dict[str, tuple[bool, str]]:
        """Of fields that not every system has a use for: whether this one has, and what they are for."""
        vq, stochastic = self.is_deterministic, self.is_stochastic
        averages = self.has_codes and self.codebook_update == "ema"
        residual = stochastic and self.variance_update == "residual"
        gaussian_images = not vq and not self.for_label_maps
        learned = gaussian_images and self.decoder_variance == "learned"
        return {
            **dict.fromkeys(("commitment_weight", "data_variance"), (vq, "quantizer='vq'")),
            "codebook_update": (self.has_codes, "models with codes"),
            **dict.fromkeys(("bottleneck_gradient", "variance_update"), (stochastic, "stochastic quantizers")),
            "variance_factor": (residual, "variance_update='residual'"),
            **dict.fromkeys(("warmup_epochs", "reestimation_epochs"), (vq, "quantizer='vq'")),
            **dict.fromkeys(("ema_decay", "restart_threshold"), (averages, "codebook_update='ema'")),
            "reservoir_size": (vq and self.reestimation_epochs > 0, "quantizer='vq' with reestimation_epochs"),
            "codebook_learning_rate_factor": (
                (vq or stochastic) and not averages,
                "codebooks learned by gradient, not by moving averages",
            ),
            **dict.fromkeys(("gumbel_temperature", "gumbel_decay"), (stochastic, "stochastic quantizers")),
            "gumbel_min_temperature": (stochastic, "stochastic quantizers"),
            "train_variance": (stochastic and not residual, "stochastic quantizers with variance_update='trained'"),
            "kl_weight": (not vq, "stochastic or continuous models"),
            "decoder_variance": (gaussian_images, "stochastic or continuous models of images"),
            "initial_decoder_log_variance": (learned, "decoder_variance='learned'"),
        }

    @property
    def stride(self) -> int:
        """Pixels per position of the coarsest grid: both sides of an image are multiples of it."""
        raise AttributeError(f"{type(self).__name__} has no grid: use SQVAEConfig or HQVAEConfig.")
