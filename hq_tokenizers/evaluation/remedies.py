"""The settings that cure a tokenizer, each as a configuration that lacks it can take it.

Every function gives fields with the values to set, none that are set already; {} when there is nothing left to set.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_image_tokenizer import ImageTokenizerConfig
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.presets import TUNED, floor_of_hierarchy, tuned

Settings = dict[str, Any]

VECTOR_RESTART = 1.0
LIGHT_KL: float = TUNED["kl_weight"]
QUICK = 30.0
"""The factor of the learning rate with which codebooks learned by gradient keep up with the latents."""
WIDE = 5.0
"""The variance to begin with, per energy of an initial code vector."""


def as_options(settings: Settings) -> str:
    """Settings as they are written after a command: "--model.codebook_update ema --model.restart_threshold 0.5"."""
    return " ".join(f"--model.{name} {_as_text(value)}" for name, value in settings.items())


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return f"'[{', '.join(map(_as_text, value))}]'" if isinstance(value, list) else str(value)


def levels_by_group(config: ImageTokenizerConfig) -> list[range]:
    """The levels of every resolution, coarse to fine."""
    sizes = [len(group.codebook_sizes) for group in config.groups] if isinstance(config, HQVAEConfig) else [1]
    ends = [0, *itertools.accumulate(sizes)]
    return list(itertools.starmap(range, itertools.pairwise(ends)))


def _lacking(config: ImageTokenizerConfig, settings: Settings) -> Settings:
    """Those settings that the configuration lacks, with what has to go back to its default beside them."""
    lacking = {name: value for name, value in settings.items() if getattr(config, name) != value}
    if not lacking:
        return {}
    trial = copy.copy(config)
    for name, value in lacking.items():
        setattr(trial, name, value)
    return {**lacking, **trial.unused_fields()}


def combination(config: ImageTokenizerConfig) -> Settings:
    """The settings that presets of stochastic tokenizers share and that work together; some of them alone do harm."""
    settings = tuned(config.variance_type if isinstance(config, SQVAEConfig) else "I")
    settings["restart_threshold"] = max(config.restart_threshold, TUNED["restart_threshold"])
    settings["kl_weight"] = min(config.kl_weight, LIGHT_KL)
    if config.codebook_update == "ema":
        del settings["ema_warmup"]
    return _lacking(config, settings)


def for_variance(config: ImageTokenizerConfig) -> Settings:
    """A smaller variance: a lower start; where it is low, one that is tied to what a level leaves over."""
    if config.variance_update == "residual":
        return _lacking(config, {"variance_factor": 1.0}) if config.variance_factor > 1 else {}
    start = round(math.log(max(WIDE * config.codebook_init_std**2, 1e-12)), 2)
    if config.quantizer == "gaussian" and start < config.initial_log_variance:
        return _lacking(config, {"initial_log_variance": start})
    return combination(config)


def for_codebook(config: ImageTokenizerConfig) -> Settings:
    """A codebook that goes where the latents are."""
    if config.codebook_update == "gradient" and config.codebook_learning_rate_factor < QUICK:
        return _lacking(config, {"codebook_learning_rate_factor": QUICK})
    return combination(config)


def for_kl(config: ImageTokenizerConfig) -> Settings:
    """Less to pay for codes."""
    return _lacking(config, {"kl_weight": LIGHT_KL}) if config.kl_weight > LIGHT_KL else {}


def for_starvation(config: ImageTokenizerConfig) -> Settings:
    """What gives a level something to do."""
    return combination(config) or for_coarse_levels(config)


def for_drift(config: ImageTokenizerConfig) -> Settings:
    """A reconstruction that weighs no more below an error, of images that are trained as the presets train."""
    if config.modality != "image" or config.decoder_variance != "batch" or config.variance_update != "residual":
        return {}
    floor = floor_of_hierarchy(len(levels_by_group(config)))
    return _lacking(config, {"min_decoder_variance": floor}) if config.min_decoder_variance < floor else {}


def for_coarse_levels(config: ImageTokenizerConfig) -> Settings:
    """A reconstruction from every prefix of the levels."""
    return _lacking(config, {"progressive": True}) if isinstance(config, HQVAEConfig) else {}


def for_temperature(config: ImageTokenizerConfig, temperature: float, target: float) -> Settings:
    """A temperature that reaches the target in the steps that were made so far, or gradients that mind it less."""
    if temperature <= target or config.gumbel_temperature <= target:
        return combination(config)
    if temperature <= config.gumbel_min_temperature:
        return _lacking(config, {"gumbel_min_temperature": 0.0})
    travelled = math.log(config.gumbel_temperature / temperature)
    if not config.gumbel_decay or travelled <= 0:
        return _lacking(config, {"gumbel_decay": 1e-3})
    faster = config.gumbel_decay * math.log(config.gumbel_temperature / target) / travelled
    low_enough = min(config.gumbel_min_temperature, target)
    return _lacking(config, {"gumbel_decay": float(f"{faster:.2g}"), "gumbel_min_temperature": low_enough})


def for_vector_codebook(config: ImageTokenizerConfig) -> Settings:
    """The next remedy of Łańcucki et al. and of RQ-VAE that a deterministic codebook lacks; when it has all, SQ-VAE."""
    if not config.restart_threshold and not config.reestimation_epochs:
        return _lacking(config, {"codebook_update": "ema", "restart_threshold": VECTOR_RESTART})
    if not config.bottleneck_batch_norm:
        return _lacking(config, {"bottleneck_batch_norm": True})
    if not config.reestimation_epochs:
        return _lacking(config, {"warmup_epochs": 2, "reestimation_epochs": 2})
    return _lacking(config, {"quantizer": "gaussian"})


def for_lower_bound(config: HQVAEConfig) -> Settings:
    """A range with room below."""
    low, high = config.log_variance_range
    return _lacking(config, {"log_variance_range": [max(-80.0, low - 6.0), float(high)]})
