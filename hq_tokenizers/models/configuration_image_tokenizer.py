"""Fields that the configurations of all image tokenizers share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from transformers import PreTrainedConfig

from hq_tokenizers.checks import (
    ImageSize,
    Length,
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
Stride = Annotated[int, Range(1, 2**16)]
Epochs = Annotated[int, Range(0, 1_000_000)]
BACKBONE_FIELDS = {
    "resnet": ("num_residual_blocks", "num_decoder_residual_blocks", "bottleneck_convolution", "bottleneck_norm"),
    "diffusers": (
        *("block_out_channels", "layers_per_block", "norm_num_groups", "mid_block_attention", "attention_strides"),
        "post_quant_channels",
    ),
}
"""Fields that have an effect on one backbone only."""


class ImageTokenizerConfig(PreTrainedConfig):
    """Fields of every image tokenizer.

    Args:
        quantizer: How latents become codes; the configuration of a model says which it has.
        modality: What is modelled: "image", pixels in [0, 1] (or label maps), or "sound", log-mel spectrograms of
            `HQFeatureExtractor` with unbounded values, of any length.
        grid_dims: Of sound: 2 for a spectrogram as an image of one channel and codes over time and frequency, 1 for its
            bands as the channels of a sequence and codes over time, on the network of the SQ-VAE paper's speech model.
        image_size: Height and width of the training images, an integer or [height, width], divisible by the stride;
            of sound [bands, frames], or [1, frames] with `grid_dims=1`. The model accepts any other size that the
            stride divides.
        num_channels: Image channels: 1 grey, 3 colour; bands with `grid_dims=1`.
        num_speakers: Of sound: speakers, one of whom the decoder is told; 0 for none.
        speaker_dim: Width of the embedding of a speaker.
        recurrent_size: With `grid_dims=1`: units of the decoder's GRU in each direction.
        backbone: The networks: "resnet" those of the SQ-VAE paper, with batch norms, or "diffusers" the encoder and
            decoder of diffusers' autoencoders, with group norms and attention: those of VQGAN and RQ-VAE.
        hidden_size: Channels of the convolutional features.
        num_residual_blocks: Residual blocks of the encoder; with `grid_dims=1` its convolutions at the codes' length.
        num_decoder_residual_blocks: Residual blocks of the decoder; with `grid_dims=1` layers of its GRU.
        bottleneck_convolution: Whether a 3×3 convolution stands at the bottleneck on both sides.
        bottleneck_norm: Whether BN and ReLU precede the encoder's residual blocks.
        block_out_channels: Channels at the resolutions of strides 1, 2, 4 and so on to the coarsest; by default
            `hidden_size` at each.
        layers_per_block: Residual layers of the encoder at each resolution; the decoder has one more.
        norm_num_groups: Groups of the group norms, a divisor of all channels.
        mid_block_attention: Whether the middle, at the coarsest resolution, has self-attention between its two residual
            layers.
        attention_strides: Strides, in pixels, of the resolutions at which self-attention follows each residual layer.
        post_quant_channels: Channels of a 1×1 convolution between code vectors and decoder, which diffusers'
            autoencoders and VQGAN have; None has none.
        output_activation: What the decoder's last layer means: "sigmoid" gives pixels in [0, 1]; "linear" takes it as
            pixels in [−1, 1], which nothing keeps within that range, as the autoencoders of diffusers do.
        bottleneck_batch_norm: Whether BN and a 1×1 projection stand before the quantiser (robust VQ training).
        normalize_latents: Whether the channels of what the quantiser is given have mean 0 and variance 1, over the
            batch in training: a scale that nothing else holds runs away in long runs with variance_update "residual".
        restore_latent_scale: With `normalize_latents`: whether code vectors get the mean and variance of the latents
            back before the decoder, so that it sees the scale that the encoder gave them.
        convolution_bias: Initial biases of the convolutions: "zero", or "uniform", PyTorch's own ±1/√(inputs), which
            the authors' code keeps.
        codebook_dim: Width d of a code vector.
        codebook_init_std: Standard deviation of the initial code vectors.
        codebook_learning_rate_factor: Learning rate of the codebooks relative to the rest of the model.
        train_variance: Whether the quantisation variance is learned; False freezes it, for ablations.
        decoder_variance: σ² of the Gaussian decoder: "batch" its optimum on each batch, "learned" a parameter.
        min_decoder_variance: With "batch": the smallest σ². Where the error of a batch is below, it weighs against the
            terms that charge for codes as it would at this constant σ²; without, a falling error weighs ever more.
        initial_decoder_log_variance: Initial log σ² when it is learned.
        kl_weight: Weight β of the terms that charge for codes, "continuous" and "discrete", or of a VAE's "kl": with 1
            the loss is the negative ELBO, less buys a smaller error with more bits (β-VAE).
        gumbel_temperature: Gumbel-softmax temperature τ₀ at step 0.
        gumbel_decay: τ(t) = max(τ₀ exp(−gumbel_decay · t), gumbel_min_temperature) after t optimiser steps.
        gumbel_min_temperature: Smallest temperature.
        bottleneck_gradient: What the encoder gets of the decoder's gradient: "pathwise", through relaxed samples as in
            the papers, or "straight_through", as it is, while codes are drawn exactly, and codes that are learned by
            gradient get none of it; the other terms of the loss keep their own gradients.
        variance_update: "trained" variances minimise the loss as in the papers; "residual" ones follow the moving
            average of the energy per value that a level leaves over.
        variance_factor: With "residual": variance per remaining energy; 1 is sharp, 3 soft.
        variance_share: With "residual": smallest variance of a level, per variance of the latents that it quantises;
            keeps latents from freezing at their codes.
        commitment_weight: VQ only: β of the commitment term.
        data_variance: VQ and FSQ only: variance of the pixel values by which the mean squared error is divided. None
            takes that of CIFAR-10, 0.06, and 1 for sound, whose spectrograms are normalised; MNIST has 0.09.
        codebook_update: Code vectors learned by "gradient"; by moving averages of the latents nearest to them (or, of
            stochastic quantisers, at their most probable codes), "ema"; or, VQ only, "linear": random vectors that
            stay as they are, times one learned linear layer (SimVQ).
        ema_decay: With "ema": decay of the moving averages per optimiser step.
        ema_warmup: With "ema": whether the decay grows towards `ema_decay` from small values, (1 + t) / (10 + t) at
            step t.
        restart_threshold: With "ema": a code whose count per batch, and its moving average, are below this, and below
            a quarter of what all would have alike, is replaced by a random vector of the batch; 0 switches it off.
        warmup_epochs: VQ and Gaussian quantisers: epochs without quantisation, while encoder outputs are collected.
        reestimation_epochs: VQ and Gaussian quantisers: epochs after the warm-up at whose start the codebooks are
            re-estimated by k-means.
        reservoir_size: With `reestimation_epochs`: encoder outputs collected for it, at least as many as codes.
        max_quantizer_elements: Largest number of elements of the latents × codes matrix held in memory at once; larger
            batches are quantised in slices.
    """

    base_config_key = "image_tokenizer_config"
    # What transformers' Trainer gathers as predictions is the reconstruction alone: the rest is no batch of tensors.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["codes", "terms", "diagnostics"]
    stride_field: ClassVar[str]
    """The field that decides the stride."""

    quantizer: Literal["gaussian", "vmf", "vq", "fsq", "none"] = "gaussian"
    modality: Literal["image", "sound"] = "image"
    grid_dims: Literal[1, 2] = 2
    image_size: ImageSize = 32
    num_channels: Width = 3
    backbone: Literal["resnet", "diffusers"] = "resnet"
    num_speakers: Annotated[int, Range(0, 1_000_000)] = 0
    speaker_dim: Width = 64
    recurrent_size: Width = 128
    hidden_size: Annotated[int, Range(2, 65_536)] = 64
    num_residual_blocks: Blocks = 2
    num_decoder_residual_blocks: Annotated[int, Range(0, 1000)] = 2
    bottleneck_convolution: bool = True
    bottleneck_norm: bool = True
    block_out_channels: Annotated[list[Width] | tuple[Width, ...], Length(2, 17)] | None = None
    layers_per_block: Annotated[int, Range(1, 100)] = 2
    norm_num_groups: Width = 32
    mid_block_attention: bool = True
    attention_strides: list[Stride] | tuple[Stride, ...] = ()
    post_quant_channels: Width | None = None
    output_activation: Literal["sigmoid", "linear"] = "sigmoid"
    bottleneck_batch_norm: bool = False
    normalize_latents: bool = False
    restore_latent_scale: bool = False
    convolution_bias: Literal["zero", "uniform"] = "zero"
    codebook_dim: Width = 64
    codebook_init_std: NotNegative = 1.0
    codebook_learning_rate_factor: Positive = 1.0
    train_variance: bool = True
    decoder_variance: Literal["batch", "learned"] = "batch"
    min_decoder_variance: NotNegative = 0.0
    initial_decoder_log_variance: LogVariance = math.log(0.1)
    kl_weight: Positive = 1.0
    gumbel_temperature: Positive = 1.0
    gumbel_decay: NotNegative = 1e-5
    gumbel_min_temperature: NotNegative = 0.0
    bottleneck_gradient: Literal["pathwise", "straight_through"] = "pathwise"
    variance_update: Literal["trained", "residual"] = "trained"
    variance_factor: Positive = 1.0
    variance_share: NotNegative = 0.1
    commitment_weight: NotNegative = 0.25
    data_variance: Positive | None = None
    codebook_update: Literal["gradient", "ema", "linear"] = "gradient"
    ema_decay: Annotated[Number, Range(0, 1, below=True)] = 0.99
    ema_warmup: bool = False
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
        """Whether every latent vector has one code, the nearest (VQ, FSQ)."""
        return self.has_codes and not self.is_stochastic

    @property
    def draws_relaxed_samples(self) -> bool:
        """Whether training decodes relaxed samples of the codes, instead of codes."""
        return self.is_stochastic and self.bottleneck_gradient == "pathwise"

    @property
    def for_label_maps(self) -> bool:
        """Whether the model's data are label maps, LongTensors (B, H, W), instead of images."""
        return False

    @property
    def resolution_channels(self) -> tuple[int, ...]:
        """Of the backbone "diffusers": channels at strides 1, 2, 4 and so on to the coarsest."""
        return tuple(self.block_out_channels or [self.hidden_size] * self.stride.bit_length())

    def __post_init__(self, **kwargs: Any) -> None:
        check_fields(self, below=PreTrainedConfig)
        forget_exported_code(__name__, kwargs)
        self._check_relations()
        self._check_names(kwargs)
        class_names(self.id2label or {})
        self._check_unused()
        self.coarsest_grid(self.image_size, f"image_size and {self.stride_field} do not go together. ")
        super().__post_init__(**kwargs)

    def _check_reservoir(self, most_codes: int) -> None:
        """Refuses a reservoir from which the largest codebook could never be estimated."""
        if self.reestimation_epochs and self.reservoir_size < most_codes:
            raise ValueError(
                f"reservoir_size must be at least the {most_codes} codes of the largest codebook, which are estimated "
                f"from it, got {self.reservoir_size}: raise it, or use fewer codes."
            )

    def _check_relations(self) -> None:
        """Refuses values that are right alone and wrong together."""
        if self.gumbel_min_temperature > self.gumbel_temperature:
            raise ValueError(
                f"gumbel_min_temperature must be at most gumbel_temperature {self.gumbel_temperature}, got "
                f"{self.gumbel_min_temperature}."
            )
        if self.restart_threshold and self.codebook_update != "ema":
            raise ValueError("restart_threshold needs the counts of codebook_update='ema'; set it to 0 otherwise.")
        if self.codebook_update == "linear" and self.is_stochastic:
            raise ValueError(
                f"codebook_update='linear' is for quantizer='vq': with {self.quantizer!r} choose 'gradient' or 'ema'."
            )
        if self.codebook_update == "linear" and self.reestimation_epochs:
            raise ValueError(
                "reestimation_epochs replaces code vectors one by one, which codebook_update='linear' cannot: leave "
                "one of them out."
            )
        if self.warmup_epochs and not self.reestimation_epochs:
            raise ValueError("warmup_epochs collects vectors for reestimation_epochs, which is 0: set both or none.")
        if self.reestimation_epochs and not self.warmup_epochs:
            raise ValueError("reestimation_epochs needs warmup_epochs ≥ 1, in which the vectors are collected.")
        if self.grid_dims == 1 and not self.num_decoder_residual_blocks:
            raise ValueError("With grid_dims=1, num_decoder_residual_blocks are the layers of a GRU: at least 1.")
        if self.modality == "sound" and self.for_label_maps:
            raise ValueError("modality='sound' is for spectrograms, not label maps: leave likelihood at 'gaussian'.")
        if self.modality == "sound" and self.backbone != "resnet":
            raise ValueError(
                "modality='sound' needs networks in which padding changes nothing, which group norms and attention do "
                "not have: leave backbone at 'resnet'."
            )
        if self.backbone == "diffusers":
            self._check_resolutions()

    def _check_resolutions(self) -> None:
        channels, halvings = self.resolution_channels, self.stride.bit_length() - 1
        if len(channels) != halvings + 1:
            raise ValueError(
                f"block_out_channels has a width for each of the strides 1, 2, … {self.stride}, which are "
                f"{halvings + 1}, got {len(channels)}: {list(channels)}. {self.stride_field} decides the coarsest."
            )
        if any(width % self.norm_num_groups for width in channels):
            raise ValueError(f"norm_num_groups must divide all channels, {list(channels)}, got {self.norm_num_groups}.")
        strides = [2**level for level in range(halvings + 1)]
        if not set(self.attention_strides) <= set(strides):
            raise ValueError(f"attention_strides must be among {strides}, got {list(self.attention_strides)}.")

    def _check_names(self, unknown: dict[str, Any]) -> None:
        """Refuses misspelt fields; transformers stores any argument it does not know as an attribute."""
        fields = [field.name for field in dataclasses.fields(self)]
        for name in unknown:
            hint = did_you_mean(name, fields, cutoff=0.85)
            if hint:
                raise ValueError(f"{type(self).__name__} has no field {name!r}. {hint}")

    def _check_unused(self) -> None:
        """Refuses fields that were set and would have no effect."""
        for name, default in self.unused_fields().items():
            purpose = self._purposes()[name][1]
            raise ValueError(f"{name} is for {purpose}, else it has no effect: leave it at {default!r}.")

    def unused_fields(self) -> dict[str, Any]:
        """The defaults of those fields that have another value and would have no effect."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | self._implied()
        unused = [name for name, (used, _) in self._purposes().items() if not used]
        return {name: defaults[name] for name in unused if _as_json(getattr(self, name)) != _as_json(defaults[name])}

    def _implied(self) -> dict[str, Any]:
        """Fields of which others leave no choice, with their values."""
        return {}

    def _purposes(self) -> dict[str, tuple[bool, str]]:
        """Of fields that not every system has a use for: whether this one has, and what they are for."""
        vq, fsq, stochastic = self.quantizer == "vq", self.quantizer == "fsq", self.is_stochastic
        estimated = self.quantizer in ("vq", "gaussian")
        averages = (vq or stochastic) and self.codebook_update == "ema"
        residual = stochastic and self.variance_update == "residual"
        gaussian_images = not self.is_deterministic and not self.for_label_maps
        learned = gaussian_images and self.decoder_variance == "learned"
        backbones = {
            name: (self.backbone == backbone, f"backbone={backbone!r}")
            for backbone, names in BACKBONE_FIELDS.items()
            for name in names
        }
        own_widths = self.backbone == "diffusers" and self.block_out_channels is not None
        one_dimensional = self.grid_dims == 1
        return {
            **backbones,
            **dict.fromkeys(("grid_dims", "num_speakers"), (self.modality == "sound", "modality='sound'")),
            "recurrent_size": (one_dimensional, "grid_dims=1"),
            "speaker_dim": (self.num_speakers > 0, "num_speakers > 0"),
            "hidden_size": (not own_widths, "models without block_out_channels"),
            **(
                dict.fromkeys(("bottleneck_convolution", "bottleneck_norm"), (False, "grids of two dimensions"))
                if one_dimensional
                else {}
            ),
            "commitment_weight": (vq, "quantizer='vq'"),
            "data_variance": (self.is_deterministic, "quantizer='vq' or 'fsq'"),
            "normalize_latents": (self.has_codes, "models with codes"),
            "restore_latent_scale": (
                self.normalize_latents and self.modality == "image",
                "images with normalize_latents=True",
            ),
            "output_activation": (self.modality == "image" and not self.for_label_maps, "models of images"),
            "codebook_update": (self.has_codes and not fsq, "models with codes that are learned"),
            **dict.fromkeys(
                ("codebook_dim", "codebook_size", "codebook_init_std", "max_quantizer_elements"),
                (not fsq, "codebooks that are not given by fsq_levels"),
            ),
            **dict.fromkeys(("bottleneck_gradient", "variance_update"), (stochastic, "stochastic quantizers")),
            **dict.fromkeys(("variance_factor", "variance_share"), (residual, "variance_update='residual'")),
            **dict.fromkeys(("warmup_epochs", "reestimation_epochs"), (estimated, "quantizer='vq' or 'gaussian'")),
            **dict.fromkeys(("ema_decay", "ema_warmup", "restart_threshold"), (averages, "codebook_update='ema'")),
            "reservoir_size": (
                estimated and self.reestimation_epochs > 0,
                "quantizer='vq' or 'gaussian' with reestimation_epochs",
            ),
            "codebook_learning_rate_factor": (
                (vq or stochastic) and not averages,
                "codebooks learned by gradient, not by moving averages",
            ),
            **dict.fromkeys(
                ("gumbel_temperature", "gumbel_decay", "gumbel_min_temperature"),
                (self.draws_relaxed_samples, "stochastic quantizers with bottleneck_gradient='pathwise'"),
            ),
            "train_variance": (stochastic and not residual, "stochastic quantizers with variance_update='trained'"),
            "kl_weight": (not self.is_deterministic, "stochastic or continuous models"),
            "decoder_variance": (gaussian_images, "stochastic or continuous models of images"),
            "min_decoder_variance": (
                gaussian_images and not learned,
                "stochastic or continuous models of images with decoder_variance='batch'",
            ),
            "initial_decoder_log_variance": (learned, "decoder_variance='learned'"),
        }

    @property
    def stride(self) -> int:
        """Pixels per position of the coarsest grid: both sides of an image are multiples of it."""
        raise AttributeError(f"{type(self).__name__} has no grid: use SQVAEConfig or HQVAEConfig.")

    def coarsest_grid(self, image_size: int | Sequence[int], prefix: str = "") -> tuple[int, int]:
        """Height and width of the coarsest grid of codes of images of a size; of one-dimensional grids the height is 1.

        Args:
            image_size: An integer or [height, width].
            prefix: What to put before an error.

        Raises:
            ValueError: If the stride does not divide the size, or there are several rows on a one-dimensional grid.
        """
        rows = 1 if self.grid_dims == 1 else self.stride
        height, width = check_image_size(image_size, (rows, self.stride), prefix)
        if self.grid_dims == 1 and height != 1:
            raise ValueError(
                f"{prefix}With grid_dims=1 the bands of a spectrogram are channels: image_size is [1, frames], got "
                f"{image_size!r}."
            )
        return height // rows, width // self.stride


def is_of_sound(config: PreTrainedConfig) -> bool:
    """Whether this is the configuration of a tokenizer of sound; own tokenizers need not say that they are none."""
    return getattr(config, "modality", "image") == "sound"


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
