"""The weights that each kind of module starts from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init

from hq_tokenizers.losses.likelihoods import GaussianImages
from hq_tokenizers.quantization.codebook import Codebook
from hq_tokenizers.quantization.moving_averages import FRESH
from hq_tokenizers.quantization.reestimation import CodebookReestimation, Reservoir
from hq_tokenizers.quantization.residual_variance import ResidualVariance
from hq_tokenizers.quantization.temperature import GumbelTemperature
from hq_tokenizers.quantization.vector_codebook import VectorCodebook

from .configuration_image_tokenizer import ImageTokenizerConfig
from .networks import Projection
from .networks_speech import SpeakerDecoder, SpeechDecoder


def initialize(module: nn.Module, config: ImageTokenizerConfig) -> None:
    """Gives a module of a tokenizer its initial weights; a module that has none of its own is left alone."""
    for kinds, initializer in _INITIALIZERS.items():
        if isinstance(module, kinds):
            initializer(module, config)
            return


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d, config: ImageTokenizerConfig) -> None:
    fan_in = module.weight[0].numel()
    if config.backbone == "diffusers" and not isinstance(module, Projection):
        _as_pytorch(module)
    else:
        init.normal_(module.weight, std=1 / math.sqrt(fan_in) if isinstance(module, Projection) else 0.02)
    if module.bias is not None and config.convolution_bias == "uniform":
        _uniform(module.bias, fan_in)
    elif module.bias is not None:
        init.zeros_(module.bias)


def _linear(module: nn.Linear, config: ImageTokenizerConfig) -> None:
    if config.backbone == "diffusers":
        _as_pytorch(module)
        init.zeros_(module.bias)


def _speech_decoder(module: SpeechDecoder, config: ImageTokenizerConfig) -> None:
    """As PyTorch does."""
    for layer, width in ((module.recurrent, module.recurrent.hidden_size), (module.head, module.head.in_features)):
        for parameter in layer.parameters():
            _uniform(parameter, width)


def _speaker_decoder(module: SpeakerDecoder, config: ImageTokenizerConfig) -> None:
    init.normal_(module.speakers.weight)


def _group_norm(module: nn.GroupNorm, config: ImageTokenizerConfig) -> None:
    init.ones_(module.weight)
    init.zeros_(module.bias)


def _batch_norm(module: nn.BatchNorm2d, config: ImageTokenizerConfig) -> None:
    if module.affine:
        init.normal_(module.weight, mean=1.0, std=0.02)
        init.zeros_(module.bias)
    init.zeros_(module.running_mean)
    init.ones_(module.running_var)
    init.zeros_(module.num_batches_tracked)


def _codebook(module: Codebook, config: ImageTokenizerConfig) -> None:
    init.normal_(module.weight, std=config.codebook_init_std)
    if module.averages is not None:
        count = max(1.0, FRESH * module.averages.restart_threshold)
        init.constant_(module.averages.count, count)
        if module.averages.step is not None:
            init.zeros_(module.averages.step)
        init.copy_(module.averages.total, count * module.weight)
    if isinstance(module, VectorCodebook) and module.projection is not None:
        _uniform(module.projection.weight, module.projection.in_features)
        _uniform(module.projection.bias, module.projection.in_features)


def _residual_variance(module: ResidualVariance, config: ImageTokenizerConfig) -> None:
    init.constant_(module.energy, _initial_variance(config) / module.factor)
    init.zeros_(module.spread)
    init.zeros_(module.step)


def _reservoir(module: Reservoir, config: ImageTokenizerConfig) -> None:
    init.zeros_(module.vectors)
    init.zeros_(module.num_seen)


def _reestimation(module: CodebookReestimation, config: ImageTokenizerConfig) -> None:
    init.zeros_(module.epoch)


def _gaussian_images(module: GaussianImages, config: ImageTokenizerConfig) -> None:
    if module.log_variance is not None:
        init.constant_(module.log_variance, config.initial_decoder_log_variance)


def _temperature(module: GumbelTemperature, config: ImageTokenizerConfig) -> None:
    init.zeros_(module.step)


_INITIALIZERS: dict[type | tuple[type, ...], Callable[..., None]] = {
    (nn.Conv2d, nn.ConvTranspose2d): _convolution,
    nn.Linear: _linear,
    SpeechDecoder: _speech_decoder,
    SpeakerDecoder: _speaker_decoder,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm2d: _batch_norm,
    Codebook: _codebook,
    ResidualVariance: _residual_variance,
    Reservoir: _reservoir,
    CodebookReestimation: _reestimation,
    GaussianImages: _gaussian_images,
    GumbelTemperature: _temperature,
}


def _initial_variance(config: ImageTokenizerConfig) -> float:
    """The quantisation variance that training starts from."""
    if config.quantizer == "vmf":
        dim = config.codebook_dim
        return (dim - 1) / dim / (1 + math.exp(config.initial_log_concentration))
    return math.exp(config.initial_log_variance)


def _as_pytorch(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
    """PyTorch's own initial weights, which VQGAN and latent diffusion start from: U(−1/√n, 1/√n) for n inputs."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))


def _uniform(parameter: torch.Tensor, num_inputs: int) -> None:
    """U(−1/√n, 1/√n)."""
    bound = num_inputs**-0.5
    init.uniform_(parameter, -bound, bound)
