"""Named constructors: the papers' systems on the papers' networks, as configurations.

    >>> from hq_tokenizers import HQVAEModel, rsq_vae
    >>> model = HQVAEModel(rsq_vae("cifar10", num_levels=4, codebook_size=256))

Each takes the name of a network (a key of `NETWORKS`) and any field of its configuration class. The stochastic ones
have the best settings known, `TUNED`, which use their codes from the first hundreds of steps on; `recipe="paper"`
trains as the paper and its authors' code do, which takes tens of thousands.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from hq_tokenizers.checks import CodebookSize, Range, Width, check_choice, check_minimum, check_value, did_you_mean

from .configuration_hq_vae import HQVAEConfig
from .configuration_image_tokenizer import BACKBONE_FIELDS
from .configuration_sq_vae import SQVAEConfig
from .named_networks import NETWORKS, STRIDES

Levels = Annotated[int, Range(1, 256)]
Recipe = Literal["tuned", "paper"]

TUNED: dict[str, Any] = {
    "normalize_latents": True,
    "bottleneck_gradient": "straight_through",
    "codebook_update": "ema",
    "ema_warmup": True,
    "restart_threshold": 0.5,
    "variance_update": "residual",
    "kl_weight": 0.05,
}
"""What the stochastic systems have by default; docs/results/stochastic_training.md has the study that found it."""

PREDICTED: dict[str, Any] = {"variance_parametrization": "plain", "initial_log_variance": -2.0}
"""For types II to IV, whose variances a network predicts: far below the latents', which are normalised, at the start.
From the papers' start every code is as likely as every other, and stays so: the samples are noise."""

SHARP = 0.3
"""`variance_factor` of systems with one grid; with several grids, coarse codes went unused at it."""

FIRM: dict[str, Any] = {"min_decoder_variance": 0.02, "variance_share": 0.01, "variance_factor": 0.03}
"""For images in [0, 1] with one code at a position.

The decoder's variance has a floor, a third of CIFAR-10's variance: without it the codes' hold on the encoder weakens as
the error falls. Variances of a tenth of the others', with a tenth of their `kl_weight`, hold as firmly and draw other
codes less often, of which large codebooks have many that are near.
"""

FIRM_WEIGHT = 0.005
"""`kl_weight` with `FIRM`, where latent values are no more than on MNIST."""

FIRM_SUM = 0.005
"""`min_decoder_variance` for images in [0, 1] with several codes at the positions of one grid, and more latent values
than on CIFAR-10.

Without it MNIST's latents ended with 0.4 of their energy left over, and RQ-VAE ahead; on CIFAR-10 it does not help.
"""

FIRM_GRIDS = 0.001
"""The same for several grids: at 0.005 MNIST's latents were at their codes too soon, and its error higher."""

PAPER_NETWORK: dict[str, Any] = {"convolution_bias": "uniform"}
"""The authors' code, where it is not what the configuration classes have by default."""

_FSQ_LEVELS = {64: (8, 8), 128: (5, 5, 5), 512: (8, 8, 8), 2048: (8, 8, 6, 5), 16384: (8, 8, 8, 6, 5)}
"""Values per channel by the number of codes of a network, which their product is next to."""

_NUM_LEVELS = 4
_CIFAR10, _MNIST = 4 / 3, 4.0
"""Latent values for a pixel value."""
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
        if field == "num_levels":
            raise ValueError("num_levels is for rsq_vae and rq_vae, which have several codes at a position.")
        if field not in _FIELDS:
            hint = did_you_mean(field, [*_FIELDS, "num_levels", "recipe"])
            raise ValueError(f"A tokenizer has no field {field!r}. {hint}".rstrip())
    fields = {**NETWORKS[name], **overrides}
    other = {"resnet": "diffusers", "diffusers": "resnet"}
    backbone = fields.get("backbone", "resnet")
    check_choice("backbone", backbone, tuple(other))
    # The network's own fields have no effect on another backbone; overrides that have none are refused later.
    unused = set(BACKBONE_FIELDS.get(other[backbone], ())) - set(overrides)
    return {field: value for field, value in fields.items() if field not in unused}


def training_fields(recipe: Recipe, overrides: Mapping[str, Any], num_grids: int) -> dict[str, Any]:
    """Fields of a recipe for a stochastic system, without those that an override takes the purpose from."""
    check_choice("recipe", recipe, get_args(Recipe))
    if recipe == "paper":
        return PAPER_NETWORK
    if overrides.get("quantizer") in ("vq", "fsq", "none"):
        return {}
    fields = tuned(overrides.get("variance_type", "I"))
    if overrides.get("codebook_update", "ema") != "ema":
        del fields["restart_threshold"], fields["ema_warmup"]
    if num_grids == 1 and overrides.get("variance_update", fields.get("variance_update")) == "residual":
        fields["variance_factor"] = SHARP
    return fields


def tuned(variance_type: str) -> dict[str, Any]:
    """`TUNED`, as far as a stochastic system with this kind of variance can have it."""
    fields = dict(TUNED)
    if variance_type != "I":
        del fields["variance_update"]
        fields |= PREDICTED
    return fields


def _firm(config: SQVAEConfig) -> dict[str, Any]:
    """What holds the latents of images at their codes until the end, and no more firmly than pixels are many.

    The loss sums over pixel values, and the terms that charge for codes over latent ones, of which MNIST has four for a
    pixel value. Of the digits, which have sixteen, the same weight held the encoder so firmly that the error stood
    still: above four it is in proportion.
    """
    if not _can_be_firm(config):
        return {}
    return {**FIRM, "kl_weight": FIRM_WEIGHT * min(1.0, _MNIST / _latent_values(config))}


def _latent_values(config: SQVAEConfig | HQVAEConfig) -> float:
    """Values of the latents of its finest grid for a pixel value."""
    stride = config.groups[-1].stride if isinstance(config, HQVAEConfig) else config.stride
    return config.codebook_dim / (stride**2 * config.num_channels)


def floor_of_hierarchy(num_grids: int) -> float:
    """`min_decoder_variance` that keeps the latents of a hierarchy from drifting away from their codes."""
    return FIRM_SUM if num_grids == 1 else FIRM_GRIDS


def _can_be_firm(config: SQVAEConfig | HQVAEConfig) -> bool:
    """Whether it is trained by `TUNED` on images, with a decoder variance that follows the error."""
    of_images = config.quantizer == "gaussian" and config.modality == "image" and not config.for_label_maps
    return of_images and config.variance_update == "residual" and config.decoder_variance == "batch"


def _hierarchical(name: str, overrides: Mapping[str, Any], **system: Any) -> HQVAEConfig:
    """An `HQVAEConfig` of a named network; `overrides` win over `system`, which wins over the network."""
    fields = network(name, overrides)
    for single_layer_field in ("num_downsampling", "codebook_size", "initial_log_variance"):
        fields.pop(single_layer_field, None)
    return HQVAEConfig(**{**fields, **system, **overrides})


def _stochastic_hierarchy(name: str, overrides: Mapping[str, Any], groups: list[str], recipe: Recipe) -> HQVAEConfig:
    """Stochastic codes of these groups, or of those that an override has in their place."""
    training = training_fields(recipe, overrides, _num_grids(overrides, groups))
    config = _hierarchical(name, overrides, code_groups=groups, **training)
    is_hierarchy = len(config.groups) > 1 or config.has_residual_levels
    if recipe == "tuned" and is_hierarchy and _can_be_firm(config) and _latent_values(config) > _CIFAR10:
        training["min_decoder_variance"] = floor_of_hierarchy(len(config.groups))
        return _hierarchical(name, overrides, code_groups=groups, **training)
    return config


def _codebook_size(name: str, codebook_size: int | None) -> int:
    if codebook_size is None:
        return network(name, {}).get("codebook_size", 512)
    return check_value("codebook_size", codebook_size, CodebookSize)


def _check_groups_given_once(overrides: Mapping[str, Any], **given: bool) -> None:
    """Refuses arguments that describe the groups beside groups that are described in full."""
    for name in given if "code_groups" in overrides else ():
        if given[name]:
            raise ValueError(f"{name} has no effect beside code_groups, which say it all: leave one of the two out.")


def _num_grids(overrides: Mapping[str, Any], groups: Sequence[str]) -> int:
    given = overrides.get("code_groups", groups)
    return len(given) if isinstance(given, list | tuple) else len(groups)  # the configuration refuses all else


def _residual_group(
    name: str, num_levels: int | None, codebook_size: int | None, overrides: Mapping[str, Any]
) -> list[str]:
    _check_groups_given_once(overrides, num_levels=num_levels is not None, codebook_size=codebook_size is not None)
    num_levels = _NUM_LEVELS if num_levels is None else num_levels
    check_minimum("num_levels", num_levels, 1)
    check_choice("network", name, tuple(STRIDES))
    stride = 2 ** network(name, {}).get("num_downsampling", 2)
    return [f"stride {stride}: {_codebook_size(name, codebook_size)} x {num_levels}"]


def _two_groups(name: str, codebook_size: int | None, overrides: Mapping[str, Any]) -> list[str]:
    _check_groups_given_once(overrides, codebook_size=codebook_size is not None)
    check_choice("network", name, tuple(STRIDES))
    if len(STRIDES[name]) < 2:
        raise ValueError(f"The network {name!r} has one resolution: choose another, or a system of one grid.")
    return [f"stride {stride}: {_codebook_size(name, codebook_size)}" for stride in STRIDES[name]]


def sq_vae(network_name: str = "cifar10", /, recipe: Recipe = "tuned", **overrides: Any) -> SQVAEConfig:
    """SQ-VAE with a Gaussian quantiser, of label maps with a von Mises–Fisher one.

    Args:
        network_name: A key of `NETWORKS`.
        recipe: "tuned" for the best settings known, "paper" for those of the paper.
        **overrides: Fields of the configuration; `variance_type` chooses types I to IV.
    """
    fields = network(network_name, {**training_fields(recipe, overrides, 1), **overrides})
    if recipe == "tuned":
        fields = {**fields, **_firm(SQVAEConfig(**fields)), **overrides}
    if recipe == "paper" and fields.get("quantizer", "gaussian") == "gaussian":
        # The authors' vision code adds 1 to the variance of type I, and to no other.
        fields = {"variance_floor": 1.0 if fields.get("variance_type", "I") == "I" else 0.0, **fields}
    if recipe == "paper" and fields.get("likelihood") == "vmf":
        fields = {"decoder_softplus": True, **fields}
    return SQVAEConfig(**fields)


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


def sim_vq_vae(network_name: str = "cifar10", /, **overrides: Any) -> SQVAEConfig:
    """SimVQ (Zhu et al., 2024): a VQ-VAE whose codes are frozen random vectors times one learned linear layer."""
    dim = network(network_name, overrides).get("codebook_dim", 64)
    check_value("codebook_dim", dim, Width)
    system = {"quantizer": "vq", "codebook_update": "linear", "codebook_init_std": dim**-0.5}
    return SQVAEConfig(**network(network_name, {**system, **overrides}))


def fsq_vae(network_name: str = "cifar10", /, **overrides: Any) -> SQVAEConfig:
    """FSQ (Mentzer et al., 2023): every channel rounded to a few values, about as many codes as the network has.

    Args:
        network_name: A key of `NETWORKS`.
        **overrides: Fields of the configuration; `fsq_levels` decides the number of codes and their width.
    """
    fields = network(network_name, {"quantizer": "fsq", **overrides})
    levels = _FSQ_LEVELS[_codebook_size(network_name, None)]
    given_by_levels = {"codebook_size", "codebook_dim"} - set(overrides)
    return SQVAEConfig(**{"fsq_levels": levels, **{k: v for k, v in fields.items() if k not in given_by_levels}})


def rsq_vae(
    network_name: str = "cifar10",
    /,
    num_levels: Levels | None = None,
    codebook_size: CodebookSize | None = None,
    recipe: Recipe = "tuned",
    **overrides: Any,
) -> HQVAEConfig:
    """RSQ-VAE: one grid, a sum of `num_levels` stochastic codes per position.

    Args:
        network_name: A key of `NETWORKS`.
        num_levels: Codes per position, L; None takes 4.
        codebook_size: Codes K of every level; None takes the network's.
        recipe: "tuned" for the best settings known, "paper" for those of the paper.
        **overrides: Fields of the configuration.
    """
    groups = _residual_group(network_name, num_levels, codebook_size, overrides)
    return _stochastic_hierarchy(network_name, overrides, groups, recipe)


def rq_vae(
    network_name: str = "cifar10",
    /,
    num_levels: Levels | None = None,
    codebook_size: CodebookSize | None = None,
    **overrides: Any,
) -> HQVAEConfig:
    """RQ-VAE: one grid, a sum of `num_levels` deterministic codes of one shared codebook, with code restart.

    Args:
        network_name: A key of `NETWORKS`.
        num_levels: Codes per position, L; None takes 4.
        codebook_size: Codes K of every level; None takes the network's.
        **overrides: Fields of the configuration.
    """
    return _hierarchical(
        network_name,
        overrides,
        code_groups=_residual_group(network_name, num_levels, codebook_size, overrides),
        quantizer="vq",
        codebook_update="ema",
        shared_codebook=True,
        restart_threshold=1.0,
    )


def sq_vae_2(
    network_name: str = "cifar10",
    /,
    codebook_size: CodebookSize | None = None,
    recipe: Recipe = "tuned",
    **overrides: Any,
) -> HQVAEConfig:
    """SQ-VAE-2: two grids of stochastic codes.

    Args:
        network_name: A key of `NETWORKS`.
        codebook_size: Codes K of every level; None takes the network's.
        recipe: "tuned" for the best settings known, "paper" for those of the paper.
        **overrides: Fields of the configuration.
    """
    groups = _two_groups(network_name, codebook_size, overrides)
    return _stochastic_hierarchy(network_name, overrides, groups, recipe)


def vq_vae_2(
    network_name: str = "cifar10", /, codebook_size: CodebookSize | None = None, **overrides: Any
) -> HQVAEConfig:
    """VQ-VAE-2: two grids of deterministic codes, codebooks by moving averages.

    Args:
        network_name: A key of `NETWORKS`.
        codebook_size: Codes K of every level; None takes the network's.
        **overrides: Fields of the configuration.
    """
    return _hierarchical(
        network_name,
        overrides,
        code_groups=_two_groups(network_name, codebook_size, overrides),
        quantizer="vq",
        codebook_update="ema",
    )


def hybrid_vae(
    network_name: str = "cifar10",
    /,
    codebook_size: CodebookSize | None = None,
    recipe: Recipe = "tuned",
    **overrides: Any,
) -> HQVAEConfig:
    """A hybrid: two grids of stochastic codes, each with two levels.

    Args:
        network_name: A key of `NETWORKS`.
        codebook_size: Codes K of every level; None takes the network's.
        recipe: "tuned" for the best settings known, "paper" for those of the paper.
        **overrides: Fields of the configuration.
    """
    groups = [f"{group} x 2" for group in _two_groups(network_name, codebook_size, overrides)]
    return _stochastic_hierarchy(network_name, overrides, groups, recipe)


PRESETS: dict[str, Callable[..., SQVAEConfig | HQVAEConfig]] = {
    preset.__name__: preset
    for preset in (
        sq_vae,
        vae,
        vq_vae,
        robust_vq_vae,
        sim_vq_vae,
        fsq_vae,
        rsq_vae,
        rq_vae,
        sq_vae_2,
        vq_vae_2,
        hybrid_vae,
    )
}
"""The named constructors by name, for configuration files: `preset: sq_vae`."""
