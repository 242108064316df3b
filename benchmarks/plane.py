"""The plane that a two-stage model lives on: error of a tokenizer over the bits of its codes under the same prior."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from plots import log_scale, new_figure
from records import Record, is_deterministic, level_means, level_usage

MOST_CURVES = 8
"""Curves in one panel of the plot."""
_PRECISIONS = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
SMALL: dict[str, Any] = {"fillstyle": "none", "markersize": 4, "linewidth": 1}
CAPTION = (
    "Bits per image: K^L as they are stored, under the histogram of each level, and under the same prior, trained for "
    "the same number of steps on the codes of every tokenizer. **Bold**: the best mean over the seeds among systems "
    'that store as many bits. "prior in" is what the prior computed in while it learned.'
)

Runs = list[Record]


def _seeds(digits: int, values: Callable[[Record], float]) -> Callable[[Runs], str]:
    """The mean of a figure over the runs, with that of each seed."""

    def text(runs: Runs) -> str:
        found = [values(run) for run in runs]
        return f"{mean(found):.{digits}f} ({', '.join(f'{value:.{digits}f}' for value in found)})"

    return text


def bits_under_prior(run: Record) -> float:
    return run["under_prior"]["bits_per_image"]


def _error(run: Record) -> float:
    return 1e3 * run["test"]["mse"]


def _distance(run: Record) -> float:
    """Of samples: FID with Inception's features, else a Fréchet distance on others."""
    return run["samples"].get("fid", run["samples"].get("frechet_distance"))


class _Column:
    """A column of the table.

    Args:
        title: Its title.
        text: The cell of a system's runs.
        score: What is compared, less is better; None compares nothing.
        present: Whether a run has the figure.
    """

    def __init__(
        self,
        title: str,
        text: Callable[[Runs], str],
        score: Callable[[Record], float] | None = None,
        present: Callable[[Record], bool] = lambda run: True,
    ) -> None:
        self.title, self.text, self.score, self.present = title, text, score, present

    def cell(self, runs: Runs, rivals: list[Runs]) -> str:
        """The cell of a system, bold where its mean is the best of several."""
        if not all(map(self.present, runs)):
            return "–"
        rivals = [other for other in rivals if all(map(self.present, other))]
        score, text = self.score, self.text(runs)
        if score is None or len(rivals) < 2:
            return text
        best = min(mean(map(score, other)) for other in rivals)
        return f"**{text}**" if mean(map(score, runs)) <= best else text


_COLUMNS = [
    _Column("bits stored", lambda runs: f"{runs[0]['bits_per_image']:.0f}"),
    _Column("under histograms", lambda runs: f"{mean(r['under_prior']['histogram_bits_per_image'] for r in runs):.0f}"),
    _Column("under the prior (each seed)", _seeds(0, bits_under_prior), bits_under_prior),
    _Column("MSE ×10³ (each seed)", _seeds(2, _error), _error),
    _Column(
        "PSNR (dB)", lambda runs: f"{mean(run['test']['psnr'] for run in runs):.2f}", lambda run: -run["test"]["psnr"]
    ),
    _Column(
        "LPIPS",
        lambda runs: f"{mean(run['lpips'] for run in runs):.4f}",
        lambda run: run["lpips"],
        lambda run: "lpips" in run,
    ),
    _Column(
        "Fréchet distance of samples",
        lambda runs: f"{mean(map(_distance, runs)):.1f}" + ("" if "fid" in runs[0]["samples"] else " (not FID)"),
        _distance,
        lambda run: "samples" in run,
    ),
    _Column(
        "usage per level",
        lambda runs: " / ".join(f"{value:.0%}" for value in level_means([level_usage(run) for run in runs])),
        lambda run: -min(level_usage(run)),
    ),
    _Column(
        "prior in",
        lambda runs: " / ".join(sorted({_PRECISIONS[run["prior_precision"]] for run in runs})),
        present=lambda run: "prior_precision" in run,
    ),
    _Column("images/s", lambda runs: f"{mean(run['images_per_second'] for run in runs):.0f}"),
]


def plane_table(finished: dict[str, Runs]) -> str:
    """One row per system, and the columns for which there are figures; winners are bold, whoever they are."""
    every = [run for runs in finished.values() for run in runs]
    columns = [column for column in _COLUMNS if any(map(column.present, every))]
    lines = [f"| system | {' | '.join(c.title for c in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, runs in finished.items():
        stored = round(runs[0]["bits_per_image"])
        rivals = [other for other in finished.values() if round(other[0]["bits_per_image"]) == stored]
        lines.append(f"| {name} | {' | '.join(column.cell(runs, rivals) for column in columns)} |")
    return "\n".join(lines)


def families(finished: dict[str, Runs]) -> dict[str, dict[str, Runs]]:
    """Systems whose names differ in their number of levels only ("RQ-VAE L=4"), by what they have in common."""
    found: dict[str, dict[str, Runs]] = {}
    for name, runs in finished.items():
        levels = re.search(r"\s*\b(L=\d+)\b", name)
        family = name if levels is None else name.replace(levels[0], "").strip()
        found.setdefault(family, {})["" if levels is None else levels[1]] = runs
    return found


def partial_points(run: Record) -> list[tuple[float, float]]:
    """Bits under the prior and MSE × 10³ of the first level, the first two, …, of a system with several on one grid."""
    by_level = run["under_prior"]["bits_per_code_by_level"]
    if len(by_level) < 2 or "+" in run["code_layout"]:
        return []
    positions = bits_under_prior(run) / sum(by_level)
    bits = accumulate(positions * level for level in by_level)
    return list(zip(bits, (1e3 * error for error in run["partial_mse"]), strict=True))


def plot_plane(finished: dict[str, Runs], path: Path) -> None:
    """Error over bits under the prior: a curve per family through the means, small points for the seeds.

    Dotted, what the first levels of a system decode to.
    """
    curves = list(families(finished).items())
    panels = math.ceil(len(curves) / MOST_CURVES)
    figure, axes = new_figure(len(curves), columns=panels, squeeze=False)
    share = math.ceil(len(curves) / panels)
    for panel, axis in enumerate(axes[0]):
        part = curves[panel * share : (panel + 1) * share]
        for index, (family, systems) in enumerate(part):
            _plot_curve(axis, family, systems, f"C{index}")
        log_scale(axis)
        axis.set(xlabel="bits per image under the prior (squares: deterministic codes; dotted: first levels)")
        axis.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2)
    axes[0][0].set(ylabel="MSE × 10³")
    figure.savefig(path, dpi=110)


def _plot_curve(axis: Any, family: str, systems: dict[str, Runs], color: Any) -> None:
    points = sorted(
        (mean(map(bits_under_prior, runs)), mean(map(_error, runs)), levels) for levels, runs in systems.items()
    )
    runs = [run for group in systems.values() for run in group]
    marker = "s" if is_deterministic(runs) else "o"
    axis.plot([p[0] for p in points], [p[1] for p in points], f"{marker}-", color=color, markersize=5, label=family)
    axis.plot([bits_under_prior(run) for run in runs], [_error(run) for run in runs], ".", color=color, markersize=3)
    for run in runs:
        partial = partial_points(run)
        axis.plot([bits for bits, _ in partial], [error for _, error in partial], f"{marker}:", color=color, **SMALL)
    for bits, error, levels in points:
        axis.annotate(levels, (bits, error), (4, 4), textcoords="offset points", fontsize="xx-small", color=color)
