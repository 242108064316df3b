"""How the layers of `layers.py` are trained: the fields they share, their defaults, and the papers' settings."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from torch import nn

from hq_tokenizers.checks import NotNegative, Number, Positive, Range, check_fields, did_you_mean
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.residual_variance import ResidualVariance

Decay = Annotated[Number, Range(0, 1, below=True)]
LogVariance = Annotated[Number, Range(-80, 80)]


PAPER: dict[str, Any] = {
    "normalize": False,
    "bottleneck_gradient": "pathwise",
    "codebook_update": "gradient",
    "restart_threshold": 0.0,
    "variance_update": "trained",
    "kl_weight": 1.0,
}
"""Training as in the papers of SQ-VAE and HQ-VAE: `StochasticQuantize(64, 512, **PAPER)`."""


@dataclass
class CodebookTraining:
    """How code vectors are learned, for all four layers.

    Args:
        codebook_update: By moving averages, "ema", or by "gradient"; of `VectorQuantize` and `ResidualVectorQuantize`
            also "linear": random vectors that stay as they are, times one learned linear layer (SimVQ).
        ema_decay: Decay of the moving averages per training step.
        ema_warmup: Whether the decay grows towards `ema_decay` from small values, (1 + t) / (10 + t) at step t.
        restart_threshold: With "ema": a code whose count per batch, and its moving average, are below this, and below
            a quarter of what all would have alike, is replaced by a random vector of the batch; 0 switches it off.
    """

    codebook_update: Literal["ema", "gradient", "linear"] = "ema"
    ema_decay: Decay = 0.99
    ema_warmup: bool = False
    restart_threshold: NotNegative = 0.0

    @classmethod
    def of(cls, layer: type, arguments: Mapping[str, Any]) -> Self:
        """The fields that a layer was given by name.

        Raises:
            TypeError: For one that it does not have, as a call with a wrong argument raises.
            ValueError: For a value out of range.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        named = inspect.signature(layer).parameters.values()
        accepted = [*(parameter.name for parameter in named if parameter.kind == parameter.KEYWORD_ONLY), *fields]
        for name in arguments:
            if name not in fields:
                hint = did_you_mean(name, accepted)
                raise TypeError(
                    f"{layer.__name__} has no argument {name!r}.{hint and f' {hint}'} Accepted: {', '.join(accepted)}."
                )
        return cls(**arguments)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.restart_threshold and self.codebook_update != "ema":
            raise ValueError("restart_threshold needs the counts of codebook_update='ema'; set it to 0 otherwise.")

    def averages(self, num_codes: int, dim: int) -> MovingAverages | None:
        """The moving averages that a codebook follows; None where it is learned by gradient."""
        if self.codebook_update != "ema":
            return None
        return MovingAverages(num_codes, dim, self.ema_decay, self.restart_threshold, self.ema_warmup)


@dataclass
class VectorTraining(CodebookTraining):
    """How the deterministic layers are trained: the fields of `CodebookTraining` and the following.

    Args:
        commitment_weight: β of the commitment term.
    """

    commitment_weight: NotNegative = 0.25


@dataclass
class StochasticTraining(CodebookTraining):
    """How the stochastic layers are trained: the fields of `CodebookTraining`, with other defaults, and the following.

    By default as the preset `rsq_vae`; `**PAPER` for the papers' training.

    Args:
        bottleneck_gradient: "straight_through": codes are drawn exactly, and the encoder gets the decoder's gradient as
            it is, and codes that are learned by gradient none of it. "pathwise": through relaxed samples, at a Gumbel
            temperature.
        variance_update: "residual": variances follow the moving average of the energy that a level leaves over.
            "trained": they are parameters.
        variance_factor: With "residual": variance per remaining energy.
        variance_share: With "residual": smallest variance of a level, per variance of what it quantises.
        initial_log_variance: Initial log s², by default log 20 with one code a position and log 60 with several;
            "residual" forgets it within some ten steps.
        kl_weight: β, what the terms that charge for codes weigh in the loss.
        gumbel_temperature: τ₀ of the relaxed samples.
        gumbel_decay: τ(t) = max(τ₀ exp(−gumbel_decay · t), gumbel_min_temperature) after t forward passes in training.
        gumbel_min_temperature: Smallest temperature.
    """

    ema_warmup: bool = True
    restart_threshold: NotNegative = 0.5
    bottleneck_gradient: Literal["straight_through", "pathwise"] = "straight_through"
    variance_update: Literal["residual", "trained"] = "residual"
    variance_factor: Positive = 0.3
    variance_share: NotNegative = 0.1
    initial_log_variance: LogVariance | None = None
    kl_weight: NotNegative = 0.05
    gumbel_temperature: Positive = 1.0
    gumbel_decay: NotNegative = 1e-5
    gumbel_min_temperature: NotNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook_update == "linear":
            raise ValueError("codebook_update='linear' is for VectorQuantize and ResidualVectorQuantize.")

    def residual_variance(self, num_levels: int, initial_log_variance: float) -> ResidualVariance | None:
        """The variances where they are tied to what the levels leave over; None where they are trained."""
        if self.variance_update == "trained":
            return None
        variance = ResidualVariance(num_levels, self.variance_factor, self.variance_share)
        nn.init.constant_(variance.energy, math.exp(initial_log_variance) / self.variance_factor)
        return variance
