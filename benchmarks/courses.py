"""How systems got to their errors, and what their codes leave over."""

from __future__ import annotations

from collections.abc import Mapping

from records import Record, level_usage

CAPTION = (
    "Seed {seed}: held-out MSE × 10³ after every epoch (until its codebooks are estimated, a robustly trained "
    "tokenizer decodes codes that mean nothing), and what the levels of a grid, one after the other, leave over of the "
    "energy of its latents at the end: 0 % where these are at their codes."
)


def course_table(finished: Mapping[str, list[Record]], seed: int) -> str:
    """A row for every system that has codes and a run with this seed; "" if there is none."""
    chosen = {name: run for name, runs in finished.items() for run in runs if run["seed"] == seed and level_usage(run)}
    if not chosen:
        return ""
    lines = ["| system | MSE ×10³ | left over |", "|---|---|---|"]
    for name, run in chosen.items():
        errors = ", ".join(f"{1e3 * each['mse']:.2f}" for each in run["history"])
        left_over = " / ".join(f"{share:.1%}" for share in left_over_shares(run)) or "–"
        lines.append(f"| {name} | {errors} | {left_over} |")
    return "\n".join(lines)


def left_over_shares(run: Record) -> list[float]:
    """‖ẑ − Σ_{l' ≤ l} z_{l'}‖² / ‖ẑ‖² of every level, ẑ the latents of its grid; none of older records."""
    left, whole = (run["test"].get(name, []) for name in ("residual_energy", "latent_energy"))
    return [part / energy for part, energy in zip(left, whole, strict=True)]
