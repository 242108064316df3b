"""From a configuration to the parts of a tokenizer: the one place to add a backbone, a quantiser or a likelihood."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from hq_tokenizers.losses.likelihoods import (
    Activation,
    CategoricalLabels,
    GaussianImages,
    SquaredErrorImages,
    VonMisesFisherLabels,
)
from hq_tokenizers.quantization.continuous import GaussianBottleneck
from hq_tokenizers.quantization.finite_scalar import FiniteScalarQuantizer
from hq_tokenizers.quantization.gaussian import GaussianQuantizer, GaussianVariance
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.reestimation import CodebookReestimation
from hq_tokenizers.quantization.residual_gaussian import ResidualGaussianQuantizer
from hq_tokenizers.quantization.residual_variance import ResidualVariance
from hq_tokenizers.quantization.residual_vector import ResidualVectorQuantizer
from hq_tokenizers.quantization.von_mises_fisher import VonMisesFisherQuantizer

from .backbones import (
    DiffusersDecoder,
    DiffusersEncoder,
    FeaturePyramid,
    Resolutions,
    diffusers_first_block,
    diffusers_injected_block,
)
from .configuration_hq_vae import HQVAEConfig
from .configuration_image_tokenizer import ImageTokenizerConfig
from .configuration_sq_vae import SQVAEConfig
from .latent_scale import LatentNorm
from .networks import ImageDecoder, ImageEncoder, Projection
from .networks_hierarchical import BottomUp, FirstBlock, InjectedBlock, first_block, injected_block
from .networks_speech import SpeakerDecoder, SpeechBottomUp, SpeechDecoder, SpeechEncoder


def build_encoder(config: SQVAEConfig, in_channels: int) -> nn.Module:
    """Pixels to latents of a single-layer tokenizer."""
    variance_channels = config.codebook_dim if config.has_variance_head else 0
    if config.grid_dims == 1:
        return SpeechEncoder(
            in_channels,
            config.hidden_size,
            config.num_downsampling,
            config.num_residual_blocks,
            latent_width(config),
            variance_channels,
        )
    if config.backbone == "diffusers":
        return DiffusersEncoder(
            in_channels, _resolutions(config), latent_width(config), variance_channels, not config.for_label_maps
        )
    return ImageEncoder(
        in_channels=in_channels,
        hidden_size=config.hidden_size,
        num_stages=config.num_downsampling,
        num_blocks=config.num_residual_blocks,
        final_convolution=config.bottleneck_convolution,
        final_norm=config.bottleneck_norm,
        out_channels=latent_width(config),
        variance_channels=variance_channels,
    )


def build_bottom_up(config: HQVAEConfig) -> nn.Module:
    """Pixels to features at the resolution of every group of a hierarchy."""
    strides = [group.stride for group in config.groups]
    if config.grid_dims == 1:
        stages = config.stride.bit_length() - 1
        return SpeechBottomUp(config.num_channels, config.hidden_size, stages, config.num_residual_blocks)
    if config.backbone == "diffusers":
        return FeaturePyramid(config.num_channels, _resolutions(config), strides)
    return BottomUp(
        in_channels=config.num_channels,
        hidden_size=config.hidden_size,
        strides=strides,
        num_blocks=config.num_residual_blocks,
        final_convolution=config.bottleneck_convolution,
        final_norm=config.bottleneck_norm,
    )


def build_top_down(config: HQVAEConfig) -> list[FirstBlock | InjectedBlock]:
    """The block of every group: its latents from the features and the coarser groups, and the state after it."""
    strides = [group.stride for group in config.groups]
    width, dim, latents = config.hidden_size, config.codebook_dim, latent_width(config)
    with_fill = config.progressive or config.learned_prior
    if config.backbone == "diffusers":
        resolutions = _resolutions(config)
        return [
            diffusers_first_block(resolutions, dim, latents, config.post_quant_channels),
            *(
                diffusers_injected_block(resolutions, coarse, fine, dim, latents, with_fill)
                for coarse, fine in itertools.pairwise(strides)
            ),
        ]
    return [
        first_block(width, dim, latents, residual=config.grid_dims == 2),
        *(
            injected_block(width, dim, latents, coarse // fine, config.num_decoder_residual_blocks, with_fill)
            for coarse, fine in itertools.pairwise(strides)
        ),
    ]


def build_decoder(config: ImageTokenizerConfig, out_channels: int, stride: int, from_codes: bool) -> nn.Module:
    """To pixels, from code vectors or from the finest top-down state of a hierarchy, and the speaker if there are any.

    Args:
        config: The configuration.
        out_channels: Channels of the data.
        stride: Stride of the input.
        from_codes: Whether the input is code vectors.
    """
    in_channels = config.codebook_dim if from_codes else config.hidden_size
    if config.num_speakers:
        decoder = _build_decoder(config, in_channels + config.speaker_dim, out_channels, stride)
        return SpeakerDecoder(decoder, config.num_speakers, config.speaker_dim)
    if config.backbone == "diffusers":
        code_dim = config.codebook_dim if from_codes else None
        return DiffusersDecoder(_resolutions(config), stride, code_dim, out_channels, config.post_quant_channels)
    return _build_decoder(config, in_channels, out_channels, stride)


def _build_decoder(config: ImageTokenizerConfig, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The decoder of the papers' networks."""
    if config.grid_dims == 1:
        layers, stages = config.num_decoder_residual_blocks, stride.bit_length() - 1
        return SpeechDecoder(in_channels, config.recurrent_size, layers, out_channels, stages)
    return ImageDecoder(
        in_channels=in_channels,
        hidden_size=config.hidden_size,
        out_channels=out_channels,
        num_stages=stride.bit_length() - 1,
        num_blocks=config.num_decoder_residual_blocks,
        first_convolution=config.bottleneck_convolution,
    )


def _resolutions(config: ImageTokenizerConfig) -> Resolutions:
    return Resolutions(
        channels=config.resolution_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        mid_block_attention=config.mid_block_attention,
        attention_strides=tuple(config.attention_strides),
        state_of_coarser=isinstance(config, HQVAEConfig) and config.state_width == "coarser",
    )


def build_latent_norm(config: ImageTokenizerConfig) -> nn.Module:
    """What stands between encoder and quantiser: BN and a 1×1 projection (robust VQ training), a normalisation."""
    layers: list[nn.Module] = []
    if config.bottleneck_batch_norm:
        width = latent_width(config)
        layers += [nn.BatchNorm2d(width), Projection(width, config.codebook_dim)]
    if config.restore_latent_scale:
        layers.append(LatentNorm(config.codebook_dim))
    elif config.normalize_latents:
        layers.append(nn.BatchNorm2d(config.codebook_dim, affine=False))
    return nn.Sequential(*layers)


def latent_width(config: ImageTokenizerConfig) -> int:
    """Channels of what `build_latent_norm` is given: the encoder's, where it has the projection to the codes."""
    if not config.bottleneck_batch_norm:
        return config.codebook_dim
    return config.resolution_channels[-1] if config.backbone == "diffusers" else config.hidden_size


def build_single_quantizer(config: SQVAEConfig) -> nn.Module:
    """The quantiser of one grid with one code per position."""
    if config.quantizer == "none":
        return GaussianBottleneck()
    if config.quantizer == "vq":
        return _vector_quantizer(config, (config.codebook_size,), shared=False)
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(config.fsq_levels)
    if config.quantizer == "vmf":
        return VonMisesFisherQuantizer(
            config.codebook_size,
            config.codebook_dim,
            config.max_quantizer_elements,
            averages=_build_averages(config, config.codebook_size),
            residual_variance=_build_residual_variance(config, num_levels=1),
            straight_through=config.bottleneck_gradient == "straight_through",
        )
    learned_variance = GaussianVariance(
        variance_type=config.variance_type,
        parametrization=config.variance_parametrization,
        floor=config.variance_floor,
        trainable=config.train_variance,
    )
    return GaussianQuantizer(
        num_codes=config.codebook_size,
        code_dim=config.codebook_dim,
        variance=_build_residual_variance(config, num_levels=1) or learned_variance,
        dequantization_noise=config.dequantization_noise,
        max_elements=config.max_quantizer_elements,
        averages=_build_averages(config, config.codebook_size),
        straight_through=config.bottleneck_gradient == "straight_through",
        reestimation=_build_reestimation(config),
    )


def build_group_quantizer(config: HQVAEConfig, index: int) -> nn.Module:
    """The quantiser of one group of a hierarchy, coarse to fine."""
    sizes = config.groups[index].codebook_sizes
    if config.is_deterministic:
        return _vector_quantizer(config, sizes, config.shared_codebook)
    return ResidualGaussianQuantizer(
        sizes,
        config.codebook_dim,
        shared_codebook=config.shared_codebook,
        log_variance_range=config.log_variance_range,
        train_variance=config.train_variance,
        learned_prior=config.learned_prior and index > 0,
        max_elements=config.max_quantizer_elements,
        averages_for=lambda num_codes: _build_averages(config, num_codes),
        residual_variance=_build_residual_variance(config, len(sizes)),
        straight_through=config.bottleneck_gradient == "straight_through",
        reestimation=_build_reestimation(config),
    )


def _vector_quantizer(
    config: ImageTokenizerConfig, codebook_sizes: Sequence[int], shared: bool
) -> ResidualVectorQuantizer:
    """The deterministic quantiser, with a level per codebook size."""
    return ResidualVectorQuantizer(
        codebook_sizes,
        config.codebook_dim,
        shared_codebook=shared,
        commitment_weight=config.commitment_weight,
        averages_for=lambda size: _build_averages(config, size),
        linear=config.codebook_update == "linear",
        reestimation=_build_reestimation(config),
        max_elements=config.max_quantizer_elements,
    )


def _build_reestimation(config: ImageTokenizerConfig) -> CodebookReestimation | None:
    """The schedule by which codebooks are estimated from data, if there is one."""
    if not config.reestimation_epochs:
        return None
    return CodebookReestimation(
        warmup_epochs=config.warmup_epochs,
        reestimation_epochs=config.reestimation_epochs,
        reservoir_size=config.reservoir_size,
        code_dim=config.codebook_dim,
    )


def _build_averages(config: ImageTokenizerConfig, num_codes: int) -> MovingAverages | None:
    """What a codebook of K codes follows; None where its codes are learned by gradient."""
    if config.codebook_update != "ema":
        return None
    return MovingAverages(num_codes, config.codebook_dim, config.ema_decay, config.restart_threshold, config.ema_warmup)


def _build_residual_variance(config: ImageTokenizerConfig, num_levels: int) -> ResidualVariance | None:
    """The variances where they are tied to what the levels leave over; None where they are trained."""
    if config.variance_update == "trained":
        return None
    return ResidualVariance(num_levels, config.variance_factor, config.variance_share)


def build_label_likelihood(config: SQVAEConfig) -> CategoricalLabels:
    """The decoder's distribution over label maps."""
    if config.likelihood == "vmf":
        return VonMisesFisherLabels(config.num_classes, config.decoder_softplus)
    return CategoricalLabels(config.num_classes)


def build_image_likelihood(config: ImageTokenizerConfig, num_reconstructions: int = 1) -> GaussianImages:
    """The decoder's distribution over images; for VQ its scaled squared error."""
    of_images = config.modality == "image"
    activation: Activation = config.output_activation if of_images else "identity"
    if config.is_deterministic:
        usual = 0.06 if of_images else 1.0
        return SquaredErrorImages(usual if config.data_variance is None else config.data_variance, activation)
    learned = config.decoder_variance == "learned"
    return GaussianImages(learned, num_reconstructions, activation, config.min_decoder_variance)
