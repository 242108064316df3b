"""Codebook health: what is wrong with a level, why it usually is, and what helps.

Works on the figures of a whole split, as `hq_tokenizers.evaluation.validation.evaluate_tokenizer` gives them, not on
those of a batch: a batch of N positions cannot use more than N codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_image_tokenizer import ImageTokenizerConfig

COLLAPSED = 0.1
"""A level whose perplexity is below this share of its codebook has collapsed."""
DEAD = 0.5
"""A level in which more than this share of the codes never occurs has dead codes."""
UNINFORMATIVE = 0.98
"""A level whose entropy of P̂ is above this share of log K carries nothing."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one level.

    Args:
        level: Index of the level, coarse to fine.
        symptom: "collapsed", "dead codes", "inflated" or "variance at its bound".
        measured: The figures that show it.
        cause: What usually causes it.
        remedy: Configuration fields that help.
    """

    level: int
    symptom: str
    measured: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        number = self.level + 1  # as pictures and curves count them
        return f"Level {number}: {self.symptom} ({self.measured}). Likely cause: {self.cause}. Try: {self.remedy}."

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def usage_table(codebook_sizes: Sequence[int], figures: Mapping[str, Any]) -> list[dict[str, float]]:
    """Per level: perplexity, perplexity / K, active codes, dead rate, entropy of P̂ and variance.

    Args:
        codebook_sizes: K of every level.
        figures: Figures of a split; lists with one value per level.
    """
    names = ("perplexity", "usage", "active_codes", "dead_rate", "entropy", "variance")
    return [{name: figures[name][level] for name in names} for level in range(len(codebook_sizes))]


def diagnose(config: ImageTokenizerConfig, codebook_sizes: Sequence[int], figures: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with the levels of a tokenizer; an empty list when nothing is.

    Args:
        config: The tokenizer's configuration.
        codebook_sizes: K of every level.
        figures: Figures of a split.
    """
    findings: list[Finding] = []
    if "perplexity" not in figures:
        return findings
    table = usage_table(codebook_sizes, figures)
    for level, row in enumerate(table):
        size = codebook_sizes[level]
        stochastic = config.is_stochastic
        if stochastic and size > 1 and row["entropy"] > UNINFORMATIVE * math.log(size):
            findings.append(_inflated(config, level, row, size))
        elif row["usage"] < COLLAPSED:
            findings.append(_unused(config, level, table, codebook_sizes, "collapsed"))
        elif row["dead_rate"] > DEAD:
            findings.append(_unused(config, level, table, codebook_sizes, "dead codes"))
        if isinstance(config, HQVAEConfig) and stochastic:
            findings += _at_bound(config, level, row["variance"])
    return findings


def _inflated(config: ImageTokenizerConfig, level: int, row: Mapping[str, float], size: int) -> Finding:
    cause = "no reconstruction gradient reaches this level, and the uniform prior then rewards a growing variance"
    start = "a larger initial_log_concentration" if config.quantizer == "vmf" else "a smaller initial_log_variance"
    remedy = f"train longer if this is the first epoch; {start}"
    if isinstance(config, HQVAEConfig):
        remedy += ", a lower upper end of log_variance_range" + ("" if config.progressive else ", or progressive: true")
    measured = f"entropy of P̂ {row['entropy']:.2f} of at most {math.log(size):.2f} nats, variance {row['variance']:.3g}"
    return Finding(level, "inflated", measured, cause, remedy)


def _unused(
    config: ImageTokenizerConfig,
    level: int,
    table: Sequence[Mapping[str, float]],
    codebook_sizes: Sequence[int],
    symptom: str,
) -> Finding:
    row = table[level]
    measured = (
        f"perplexity {row['perplexity']:.1f} and {row['active_codes']:.0f} active of {codebook_sizes[level]} codes"
    )
    if config.is_deterministic:
        others = [table[other] for other in _levels_with_the_same_codebook(config, level)]
        if any(other["usage"] >= COLLAPSED and other["dead_rate"] <= DEAD for other in others):
            cause = "levels share one codebook, and this one needs few of its codes, which others use"
            return Finding(level, symptom, measured, cause, "shared_codebook: false, or nothing: the codes are trained")
        cause = "codes that are never nearest to a latent vector are never trained"
        return Finding(level, symptom, measured, cause, _vector_remedy(config))
    if isinstance(config, HQVAEConfig) and level < len(codebook_sizes) - len(config.groups[-1].codebook_sizes):
        cause = "the finer groups explain the image without this coarse level"
        remedy = "fewer codes in the finer groups" + ("" if config.progressive else ", or progressive: true")
        return Finding(level, symptom, measured, cause, remedy)
    cause = "the training is young, or the data need fewer codes than there are"
    return Finding(level, symptom, measured, cause, "training longer, or a smaller codebook")


def _levels_with_the_same_codebook(config: ImageTokenizerConfig, level: int) -> range:
    """The levels that share the codebook of a level, itself included."""
    if isinstance(config, HQVAEConfig) and config.shared_codebook:
        first = 0
        for group in config.groups:
            levels = range(first, first + len(group.codebook_sizes))
            if level in levels:
                return levels
            first = levels.stop
    return range(level, level + 1)


def _vector_remedy(config: ImageTokenizerConfig) -> str:
    remedies = []
    if not config.restart_threshold:
        remedies.append("codebook_update: ema with restart_threshold: 1.0")
    if not config.reestimation_epochs:
        remedies.append("warmup_epochs and reestimation_epochs, which re-estimate the codebook (preset robust_vq_vae)")
    return ", or ".join([*remedies, "quantizer: gaussian"])


def _at_bound(config: HQVAEConfig, level: int, variance: float) -> list[Finding]:
    low, high = config.log_variance_range
    log_variance = math.log(max(variance, 1e-30))
    if low + 1e-3 < log_variance < high - 1e-3:
        return []
    cause = (
        "the level inflates without bound" if log_variance > (low + high) / 2 else "the level is deterministic already"
    )
    remedy = "a wider log_variance_range, after looking at this level's perplexity"
    return [Finding(level, "variance at its bound", f"log s² = {log_variance:.2f}", cause, remedy)]
