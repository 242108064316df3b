"""The collapse doctor: what is wrong with the levels of a tokenizer, why, and the setting that cures it.

Works on the figures of a whole split, as `hq_tokenizers.evaluation.validation.evaluate_tokenizer` gives them, not on
those of a batch: a batch of N positions cannot use more than N codes. docs/troubleshooting.md has a section on every
symptom; its thresholds are the constants here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hq_tokenizers.checks import CodebookSize, check_value
from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_image_tokenizer import ImageTokenizerConfig

from . import remedies
from .remedies import Settings

COLLAPSED = 0.1
"""A level whose perplexity is below this share of the codes that a split can show has collapsed."""
DEAD = 0.5
"""A level in which more than this share of the codes never occurs has dead codes."""
ENOUGH = 10
"""Vectors for a code from which on a split shows whether it is used: 1.3, used alike, leave out a quarter of them."""
BLURRED = 0.8
"""A level whose entropy of P̂ is above this share of log K tells its codes hardly apart."""
TOO_WIDE = 5.0
"""Variances tied to what a level leaves over are 1 to 3 times its energy; more than this is too wide."""
INEFFECTIVE = 0.6
"""A level that leaves over more than this share of what it is given has codes that do not fit."""
DRIFTED = 1 / 10
"""Levels of one grid that together leave over more than this share, where the error is small, have lost its latents."""
STARVED = 0.95
"""A level that leaves over more than this share of what it is given does nothing."""
UNMOVED = 0.3
"""Code vectors whose energy is within this share of their initial one have not gone anywhere."""
SLOW = 10.0
"""Below this factor of the learning rate a codebook learned by gradient is slow."""
GAP = 1.5
"""Codes whose error is above this multiple of that of relaxed samples are not what training decodes."""
HARD = 0.5
"""A Gumbel temperature below which relaxed samples are nearly codes."""

SYMPTOMS = (
    "variance too large",
    "codebook left behind",
    "kl too strong",
    "starved",
    "latents drift away",
    "temperature gap",
    "collapsed",
    "dead codes",
    "variance at its bound",
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Args:
        levels: Indices of the levels it is wrong with, coarse to fine; in words they count from 1.
        symptom: One of `SYMPTOMS`.
        measured: The figures that show it.
        cause: What usually causes it.
        settings: Fields of the configuration that cure it, with the values they do not have yet; empty when there are
            none left to set.
    """

    levels: tuple[int, ...]
    symptom: str
    measured: str
    cause: str
    settings: Settings

    @property
    def remedy(self) -> str:
        """What to write after the command."""
        return (
            remedies.as_options(self.settings) or "longer training (--epochs), or fewer codes (--model.codebook_size)"
        )

    @property
    def observation(self) -> str:
        """What was seen, without a cause or a remedy."""
        # Pictures and curves count from 1.
        numbers = ", ".join(str(level + 1) for level in self.levels)
        return f"Level{'s' * (len(self.levels) > 1)} {numbers}: {self.symptom} ({self.measured})"

    def __str__(self) -> str:
        return f"{self.observation}. Likely cause: {self.cause}.\n  Try: {self.remedy} ({self.page})."

    @property
    def page(self) -> str:
        """The section of the documentation on the symptom."""
        return f"docs/troubleshooting.md#{self.symptom.replace(' ', '-')}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "levels": list(self.levels), "remedy": self.remedy, "page": self.page}


@dataclass(frozen=True)
class _Level:
    """The figures of one level."""

    index: int
    size: int
    first_of_group: bool
    codes_to_expect: float
    """How many codes the split can show to be in use, at most `size`."""
    perplexity: float
    active_codes: float
    dead_rate: float
    entropy: float
    variance: float
    given: float
    """Energy per value of what the level quantises."""
    residual_energy: float
    codebook_energy: float

    @property
    def left_over(self) -> str:
        """In words."""
        return f"{self.residual_energy:.3g} of {self.given:.3g} per value left over"


def diagnose(config: ImageTokenizerConfig, codebook_sizes: Sequence[int], figures: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with a tokenizer; an empty list when nothing is.

    Args:
        config: The tokenizer's configuration.
        codebook_sizes: K of every level: "codebook_sizes" of a training's report.json.
        figures: Figures of a split: "test" of that file, or a line of metrics.jsonl of a validation after the warm-up.

    Raises:
        TypeError: If `config` is no tokenizer's configuration, or `figures` no dictionary.
        ValueError: If they are no figures of a split, of another number of levels, or of a tokenizer that is trained
            without relaxed samples where the configuration has them.
    """
    if not isinstance(config, ImageTokenizerConfig):
        raise TypeError(f"config must be that of a tokenizer, as model.config, got {type(config).__name__}.")
    if not isinstance(figures, Mapping):
        raise TypeError(f"figures must be a dictionary, 'test' of report.json, got {type(figures).__name__}.")
    check_value("codebook_sizes", codebook_sizes, list[CodebookSize] | tuple[CodebookSize, ...])
    if not config.has_codes:
        return []
    if "perplexity" not in figures:
        raise ValueError(
            "The figures have no 'perplexity': give those of one split, 'test' of report.json or a validation's line "
            "of metrics.jsonl."
        )
    if len(figures["perplexity"]) != len(codebook_sizes):
        raise ValueError(
            f"The figures are of {len(figures['perplexity'])} levels, codebook_sizes are {list(codebook_sizes)}."
        )
    if config.draws_relaxed_samples and "temperature" not in figures:
        raise ValueError(
            "The figures are of a tokenizer that was trained without relaxed samples, and this configuration draws "
            "them: diagnose needs the configuration that the figures were measured with."
        )
    levels = list(_levels(config, codebook_sizes, figures))
    findings: list[Finding] = []
    for level in levels:
        causes = list(_stochastic_findings(config, level)) if config.is_stochastic and level.size > 1 else []
        findings += causes or _unused(config, level, levels)
        if isinstance(config, HQVAEConfig) and config.is_stochastic and not causes:
            findings += _at_bound(config, level)
    if config.is_stochastic and not findings:
        findings += _drifted(config, levels, figures)
    # Codes that do not fit are decoded worse than their mixtures at every temperature: first things first.
    if config.draws_relaxed_samples and not any(finding.symptom in SYMPTOMS[:2] for finding in findings):
        findings += _temperature_gap(config, len(levels), figures)
    return _merged(findings)


def _levels(
    config: ImageTokenizerConfig, codebook_sizes: Sequence[int], figures: Mapping[str, Any]
) -> Iterator[_Level]:
    firsts = {levels.start for levels in remedies.levels_by_group(config)}
    vectors = _vectors(config, figures.get("num_images", math.inf))
    names = ("perplexity", "active_codes", "dead_rate", "entropy", "variance")
    for index, size in enumerate(codebook_sizes):
        first = index in firsts
        yield _Level(
            index,
            size,
            first,
            min(size, vectors[index] / ENOUGH),
            **{name: figures[name][index] for name in names},
            given=figures["latent_energy"][index] if first else figures["residual_energy"][index - 1],
            residual_energy=figures["residual_energy"][index],
            codebook_energy=figures["codebook_energy"][index],
        )


def _vectors(config: ImageTokenizerConfig, num_images: float) -> list[float]:
    """How many vectors every level quantises of as many images of the configuration's size."""
    height, width = config.coarsest_grid(config.image_size)
    strides = [group.stride for group in config.groups] if isinstance(config, HQVAEConfig) else [1]
    positions = [height * width * (strides[0] // stride) ** 2 for stride in strides]
    groups = remedies.levels_by_group(config)
    return [num_images * number for number, levels in zip(positions, groups, strict=True) for _ in levels]


def _merged(findings: list[Finding]) -> list[Finding]:
    """One finding for all levels that have the same symptom and remedy."""
    merged: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        key = finding.symptom, finding.cause, finding.remedy
        earlier = merged.get(key)
        merged[key] = finding if earlier is None else _joined(earlier, finding)
    return list(merged.values())


def _joined(earlier: Finding, later: Finding) -> Finding:
    """One finding for the levels of both, which says whose every figure is, counting from 1 as `observation` does."""
    measured = earlier.measured
    if len(earlier.levels) == 1:
        measured = f"level {earlier.levels[0] + 1}: {measured}"
    (level,) = later.levels
    return replace(
        earlier, levels=(*earlier.levels, level), measured=f"{measured}; level {level + 1}: {later.measured}"
    )


def _stochastic_findings(config: ImageTokenizerConfig, level: _Level) -> Iterator[Finding]:
    entropy = f"entropy of P̂ {level.entropy:.2f} of at most {math.log(level.size):.2f} nats"
    blurred = level.entropy > BLURRED * math.log(level.size)
    # A variance that is tied to what is left over is wide by its factor, or as wide as the latents need.
    tied = config.variance_update == "residual" and config.variance_factor <= 1
    wide = not tied and level.variance > TOO_WIDE * level.residual_energy
    left_behind = _is_left_behind(config, level)
    if blurred and wide:
        yield Finding(
            (level.index,),
            "variance too large",
            f"{entropy}, variance {level.variance:.3g} where {level.residual_energy:.3g} is left over",
            "the uniform prior rewards a wide P̂, and nothing ties its variance to the task of the level",
            remedies.for_variance(config),
        )
    if left_behind:
        yield Finding(
            (level.index,),
            "codebook left behind",
            f"perplexity {level.perplexity:.1f} of {level.size}, {level.left_over}, code vectors at "
            f"{level.codebook_energy:.3g} where they began at {config.codebook_init_std**2:.3g}",
            "the optimiser's steps do not grow with the scale of the latents, so that code vectors do not reach them",
            remedies.for_codebook(config),
        )
    if left_behind or (blurred and wide):
        return
    if blurred and (settings := remedies.for_kl(config)):
        measured = f"{entropy}, variance {level.variance:.3g}, kl_weight {config.kl_weight:.3g}"
        cause = "the bound charges more for distinct codes than the reconstruction pays"
        yield Finding((level.index,), "kl too strong", measured, cause, settings)
    elif level.residual_energy > STARVED * level.given:
        cause = "the level takes nothing away from what it is given, and no term of the loss asks it to"
        yield Finding((level.index,), "starved", level.left_over, cause, remedies.for_starvation(config))


def _is_left_behind(config: ImageTokenizerConfig, level: _Level) -> bool:
    """Whether a codebook that learns by small steps is where it began, and not where the latents are."""
    initial = config.codebook_init_std**2
    slow = config.codebook_update == "gradient" and config.codebook_learning_rate_factor < SLOW
    # Unit vectors have one energy, wherever they are.
    unmoved = config.quantizer != "vmf" and abs(level.codebook_energy - initial) < UNMOVED * initial
    return slow and unmoved and level.residual_energy > INEFFECTIVE * level.given


def _temperature_gap(config: ImageTokenizerConfig, num_levels: int, figures: Mapping[str, Any]) -> Iterator[Finding]:
    measure = "mse" if "mse_argmax" in figures else "pixel_accuracy"
    hard, relaxed = (
        figures[f"{measure}_{kind}"] if measure == "mse" else 1 - figures[f"{measure}_{kind}"]
        for kind in ("argmax", "relaxed")
    )
    if hard <= GAP * relaxed:
        return
    temperature = figures["temperature"]
    yield Finding(
        tuple(range(num_levels)),
        "temperature gap",
        f"error {relaxed:.3g} from relaxed samples, {hard:.3g} from codes, temperature {temperature:.2f}",
        "the decoder learns from mixtures of codes that it does not get when it is used",
        remedies.for_temperature(config, temperature, HARD),
    )


def _disuse(level: _Level) -> str | None:
    """The symptom of a level that does not use its codes."""
    if level.perplexity < COLLAPSED * level.codes_to_expect:
        return "collapsed"
    return "dead codes" if level.dead_rate > DEAD and level.codes_to_expect == level.size else None


def _unused(config: ImageTokenizerConfig, level: _Level, levels: Sequence[_Level]) -> Iterator[Finding]:
    symptom = _disuse(level)
    if symptom is None:
        return
    settings: Settings
    measured = f"perplexity {level.perplexity:.1f} and {level.active_codes:.0f} active of {level.size} codes"
    if config.is_deterministic:
        group = next(group for group in remedies.levels_by_group(config) if level.index in group)
        shared = isinstance(config, HQVAEConfig) and config.shared_codebook
        if shared and any(_disuse(levels[i]) is None for i in group):
            cause = "levels share one codebook, and this one needs few of its codes, which others use"
            settings = {"shared_codebook": False}
        elif config.quantizer == "fsq":
            cause, settings = "the codes are the points of a fixed grid, which the latents do not fill", {}
        else:
            cause = "codes that are never nearest to a latent vector are never trained"
            settings = remedies.for_vector_codebook(config)
    elif level.index < remedies.levels_by_group(config)[-1].start:
        cause = "the finer groups explain the image without this coarse level"
        settings = remedies.for_coarse_levels(config)
    else:
        cause = "the training is young, or the data need fewer codes than there are"
        settings = remedies.for_codebook(config)
    yield Finding((level.index,), symptom, measured, cause, settings)


def _drifted(config: ImageTokenizerConfig, levels: Sequence[_Level], figures: Mapping[str, Any]) -> Iterator[Finding]:
    """Of hierarchies: one code at the positions of one grid is held otherwise."""
    settings = remedies.for_drift(config)
    if len(levels) == 1 or not settings or figures["mse"] >= settings["min_decoder_variance"]:
        return
    grids = remedies.levels_by_group(config)
    shares = {grid: levels[grid[-1]].residual_energy / levels[grid[0]].given for grid in grids}
    drifted = [grid for grid in grids if shares[grid] > DRIFTED]
    if not drifted:
        return
    left_over = f"{shares[grids[0]]:.0%} of their energy left over by all levels"
    if len(grids) > 1:
        shares_named = (f"{shares[grid]:.0%} of its grid's energy by level {grid[-1] + 1}" for grid in drifted)
        left_over = f"left over {', '.join(shares_named)}"
    yield Finding(
        tuple(index for grid in drifted for index in grid),
        "latents drift away",
        f"{left_over}, mean squared error {figures['mse']:.3g}",
        "as the error falls the reconstruction weighs more, and what holds latents at their codes does not",
        settings,
    )


def _at_bound(config: HQVAEConfig, level: _Level) -> Iterator[Finding]:
    low, high = config.log_variance_range
    log_variance = math.log(max(level.variance, 1e-30))
    if low + 1e-3 < log_variance < high - 1e-3:
        return
    inflates = log_variance > (low + high) / 2
    cause = "the level inflates without bound" if inflates else "the level is deterministic already"
    settings = remedies.for_variance(config) if inflates else remedies.for_lower_bound(config)
    yield Finding((level.index,), "variance at its bound", f"log s² = {log_variance:.2f}", cause, settings)
