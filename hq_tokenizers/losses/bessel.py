"""Normaliser of the von Mises–Fisher distribution, safe for large concentrations."""

from __future__ import annotations

import math

import torch

DOWNWARD_STEPS = 60
"""Orders above the wanted one at which the downward recurrence starts; its error shrinks with every step."""


def log_bessel(order: int, argument: torch.Tensor) -> torch.Tensor:
    """Log I_v(κ), the modified Bessel function of the first kind; differentiable in κ.

    log I_v = log I_0 + Σ_{j=1}^{v} log ρ_j with ρ_j = I_j / I_{j−1}, by the downward recurrence
    ρ_j = 1 / (2j/κ + ρ_{j+1}), which is stable and started from Amos' bound ρ_j ≈ κ / (j − ½ + √((j + ½)² + κ²)).

    Args:
        order: v ≥ 0.
        argument: κ > 0, any shape.

    Returns:
        float64 of the shape of `argument`.
    """
    kappa = argument.double()
    first = order + DOWNWARD_STEPS
    ratio = kappa / (first - 0.5 + ((first + 0.5) ** 2 + kappa.square()).sqrt())
    result = torch.special.i0e(kappa).log() + kappa
    for j in range(first - 1, 0, -1):
        ratio = 1 / (2 * j / kappa + ratio)
        if j <= order:
            result = result + ratio.log()
    return result


def log_vmf_normalizer(dimension: int, concentration: torch.Tensor) -> torch.Tensor:
    """Log C_F(κ) = (F/2 − 1) log κ − (F/2) log 2π − log I_{F/2−1}(κ), in float64.

    Args:
        dimension: F, even, at least 2: the unit sphere is S^{F−1}.
        concentration: κ > 0.
    """
    half = dimension // 2
    kappa = concentration.double()
    return (half - 1) * kappa.log() - half * math.log(2 * math.pi) - log_bessel(half - 1, kappa)
