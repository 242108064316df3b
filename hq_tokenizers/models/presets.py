"""Named constructors: the papers' systems on the papers' networks, as configurations.

    >>> from hq_tokenizers import HQVAEModel, rsq_vae
    >>> model = HQVAEModel(rsq_vae("cifar10", num_levels=4, codebook_size=256))

Each takes the name of a network (a key of `NETWORKS`) and any field of its configuration class.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from hq_tokenizers.checks import CodebookSize, Width, check_choice, check_minimum, check_value, did_you_mean

from .configuration_hq_vae import HQVAEConfig
from .configuration_sq_vae import SQVAEConfig

NETWORKS: dict[str, dict[str, Any]] = {
    "digits": {
        "image_size": 8,
        "num_channels": 1,
        "num_downsampling": 1,
        "bottleneck_convolution": False,
        "bottleneck_norm": False,
        "codebook_size": 64,
        "initial_log_variance": math.log(10),
    },
    "mnist": {
        "image_size": 28,
        "num_channels": 1,
        "bottleneck_convolution": False,
        "bottleneck_norm": False,
        "codebook_size": 128,
        "initial_log_variance": math.log(10),
    },
    "cifar10": {"image_size": 32},
    "celeba": {
        "image_size": 64,
        "num_residual_blocks": 6,
        "num_decoder_residual_blocks": 5,
        "bottleneck_norm": False,
    },
    "celebamask": {
        "image_size": 64,
        "num_classes": 19,
        "likelihood": "vmf",
        "quantizer": "vmf",
        "hidden_size": 65,
        "codebook_dim": 65,
        "codebook_size": 64,
        "num_downsampling": 3,
        "num_decoder_residual_blocks": 1,
        "bottleneck_convolution": False,
        "bottleneck_norm": False,
    },
}
"""Networks and codebook sizes of the SQ-VAE paper by data set, and a small network for 8×8 digits."""

STRIDES = {"digits": (4, 2), "mnist": (4, 2), "cifar10": (8, 4), "celeba": (8, 4)}
"""Strides of the two-level systems by network; the second is that of the single-layer systems where both exist."""


_FIELDS = {field.name for config in (SQVAEConfig, HQVAEConfig) for field in dataclasses.fields(config)}


def network(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a named network, replaced by the overrides.

    Raises:
        ValueError: For an unknown name, or an override that no tokenizer has: transformers would keep it in silence.
    """
    check_choice("network", name, tuple(NETWORKS))
    for field in overrides:
        if field in ("network", "network_name"):
            raise ValueError(f"The network is the first argument, without a name: {overrides[field]!r}.")
        if field not in _FIELDS:
            raise ValueError(f"A tokenizer has no field {field!r}. {did_you_mean(field, _FIELDS)}".rstrip())
    return {**NETWORKS[name], **overrides}


def _hierarchical(name: str, overrides: Mapping[str, Any], **system: Any) -> HQVAEConfig:
    """An `HQVAEConfig` of a named network; `overrides` win over `system`, which wins over the network."""
    fields = network(name, overrides)
    for single_layer_field in ("num_downsampling", "codebook_size", "initial_log_variance"):
        fields.pop(single_layer_field, None)
    return HQVAEConfig(**{**fields, **system, **overrides})


def _codebook_size(name: str, codebook_size: int | None) -> int:
    return network(name, {}).get("codebook_size", 512) if codebook_size is None else codebook_size


def _residual_group(name: str, num_levels: int, codebook_size: int | None) -> list[str]:
    check_minimum("num_levels", num_levels, 1)
    check_choice("network", name, tuple(STRIDES))
    stride = 2 ** network(name, {}).get("num_downsampling", 2)
    return [f"stride {stride}: {_codebook_size(name, codebook_size)} x {num_levels}"]


def _two_groups(name: str, codebook_size: int | None) -> list[str]:
    check_choice("network", name, tuple(STRIDES))
    return [f"stride {stride}: {_codebook_size(name, codebook_size)}" for stride in STRIDES[name]]


def sq_vae(network_name: str = "cifar10", /, **overrides: Any) -> SQVAEConfig:
    """SQ-VAE with a Gaussian quantiser; `variance_type` chooses types I to IV."""
    return SQVAEConfig(**network(network_name, overrides))


def vae(network_name: str = "cifar10", /, **overrides: Any) -> SQVAEConfig:
    """VAE: the same networks with continuous Gaussian latents."""
    return SQVAEConfig(**network(network_name, {"quantizer": "none", **overrides}))


def vq_vae(network_name: str = "cifar10", /, **overrides: Any) -> SQVAEConfig:
    """VQ-VAE with a codebook by moving averages; `codebook_update="gradient"` for the other variant."""
    return SQVAEConfig(**network(network_name, {"quantizer": "vq", "codebook_update": "ema", **overrides}))


def robust_vq_vae(network_name: str = "cifar10", /, **overrides: Any) -> SQVAEConfig:
    """VQ-VAE with the remedies of Łańcucki et al.: batch norm, ten times the codebook learning rate, re-estimation."""
    fields = network(network_name, overrides)
    dim, size = fields.get("codebook_dim", 64), fields.get("codebook_size", 512)
    check_value("codebook_dim", dim, Width)
    check_value("codebook_size", size, CodebookSize)
    remedies = {
        "quantizer": "vq",
        "codebook_update": "gradient",
        "bottleneck_batch_norm": True,
        "codebook_learning_rate_factor": 1.0 if overrides.get("codebook_update") == "ema" else 10.0,
        "codebook_init_std": math.sqrt(2 / (size + dim)),  # Xavier
        "warmup_epochs": 2,
        "reestimation_epochs": 2,
    }
    return SQVAEConfig(**network(network_name, {**remedies, **overrides}))


def rsq_vae(
    network_name: str = "cifar10", /, num_levels: int = 4, codebook_size: int | None = None, **overrides: Any
) -> HQVAEConfig:
    """RSQ-VAE: one grid, a sum of `num_levels` stochastic codes per position.

    Args:
        network_name: A key of `NETWORKS`.
        num_levels: Codes per position, L.
        codebook_size: Codes K of every level; None takes the network's.
        **overrides: Fields of the configuration.
    """
    return _hierarchical(network_name, overrides, code_groups=_residual_group(network_name, num_levels, codebook_size))


def rq_vae(
    network_name: str = "cifar10", /, num_levels: int = 4, codebook_size: int | None = None, **overrides: Any
) -> HQVAEConfig:
    """RQ-VAE: one grid, a sum of `num_levels` deterministic codes of one shared codebook, with code restart.

    Args:
        network_name: A key of `NETWORKS`.
        num_levels: Codes per position, L.
        codebook_size: Codes K of every level; None takes the network's.
        **overrides: Fields of the configuration.
    """
    return _hierarchical(
        network_name,
        overrides,
        code_groups=_residual_group(network_name, num_levels, codebook_size),
        quantizer="vq",
        codebook_update="ema",
        shared_codebook=True,
        restart_threshold=1.0,
    )


def sq_vae_2(network_name: str = "cifar10", /, codebook_size: int | None = None, **overrides: Any) -> HQVAEConfig:
    """SQ-VAE-2: two grids of stochastic codes.

    Args:
        network_name: A key of `NETWORKS`.
        codebook_size: Codes K of every level; None takes the network's.
        **overrides: Fields of the configuration.
    """
    return _hierarchical(network_name, overrides, code_groups=_two_groups(network_name, codebook_size))


def vq_vae_2(network_name: str = "cifar10", /, codebook_size: int | None = None, **overrides: Any) -> HQVAEConfig:
    """VQ-VAE-2: two grids of deterministic codes, codebooks by moving averages.

    Args:
        network_name: A key of `NETWORKS`.
        codebook_size: Codes K of every level; None takes the network's.
        **overrides: Fields of the configuration.
    """
    return _hierarchical(
        network_name,
        overrides,
        code_groups=_two_groups(network_name, codebook_size),
        quantizer="vq",
        codebook_update="ema",
    )


def hybrid_vae(network_name: str = "cifar10", /, codebook_size: int | None = None, **overrides: Any) -> HQVAEConfig:
    """A hybrid: two grids of stochastic codes, each with two levels.

    Args:
        network_name: A key of `NETWORKS`.
        codebook_size: Codes K of every level; None takes the network's.
        **overrides: Fields of the configuration.
    """
    groups = [f"{group} x 2" for group in _two_groups(network_name, codebook_size)]
    return _hierarchical(network_name, overrides, code_groups=groups)


PRESETS: dict[str, Callable[..., SQVAEConfig | HQVAEConfig]] = {
    preset.__name__: preset
    for preset in (sq_vae, vae, vq_vae, robust_vq_vae, rsq_vae, rq_vae, sq_vae_2, vq_vae_2, hybrid_vae)
}
"""The named constructors by name, for configuration files: `preset: sq_vae`."""
