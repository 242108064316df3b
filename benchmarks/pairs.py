"""Systems beside those that they are an answer to: by how much they differ, and how each got there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from records import Record, level_usage

Runs = list[Record]
Figure = Callable[[Record], float]

CAPTION = (
    "Each system beside those it is an answer to, over the seeds that both have. Bits are those under the same prior; "
    "usage is that of the least used codebook of the first and of the second."
)
COURSE_CAPTION = (
    "Held-out error after every epoch (until its codebooks are estimated, a robustly trained tokenizer decodes codes "
    "that mean nothing), and what the levels of a grid, one after the other, leave over of the energy of its latents "
    "at the end: 0 % where these are at their codes. Seed {seed}."
)


def unknown_names(pairs: Mapping[str, Sequence[str]], systems: Mapping[str, object]) -> list[str]:
    """Names in pairs that no system has."""
    return [name for first, others in pairs.items() for name in (first, *others) if name not in systems]


def pairs_table(pairs: Mapping[str, Sequence[str]], finished: Mapping[str, Runs]) -> str:
    """One row per pair of which both are finished with a common seed; "" if there is none."""
    rows = []
    for first, others in pairs.items():
        for second in others:
            ours, theirs = _of_common_seeds(finished.get(first, []), finished.get(second, []))
            if ours:
                rows.append(f"| {' | '.join(_cells(first, second, ours, theirs))} |")
    if not rows:
        return ""
    head = "| system | beside | seeds | error | LPIPS | bits | usage | usage of the second |"
    return "\n".join([head, "|---" * 8 + "|", *rows])


def _of_common_seeds(first: Runs, second: Runs) -> tuple[Runs, Runs]:
    common = {run["seed"] for run in first} & {run["seed"] for run in second}
    return [run for run in first if run["seed"] in common], [run for run in second if run["seed"] in common]


def _cells(first: str, second: str, ours: Runs, theirs: Runs) -> list[str]:
    return [
        first,
        second,
        str(len(ours)),
        _change(ours, theirs, lambda run: run["test"]["mse"]),
        _change(ours, theirs, lambda run: run["lpips"], lambda run: "lpips" in run),
        _change(ours, theirs, lambda run: run["under_prior"]["bits_per_image"], lambda run: "under_prior" in run),
        *(f"{mean(min(level_usage(run)) for run in runs):.0%}" for runs in (ours, theirs)),
    ]


def _change(ours: Runs, theirs: Runs, figure: Figure, present: Callable[[Record], bool] = lambda run: True) -> str:
    """By how much the mean of the first is above that of the second; "–" where a run lacks the figure."""
    if not all(map(present, [*ours, *theirs])):
        return "–"
    return f"{mean(map(figure, ours)) / mean(map(figure, theirs)) - 1:+.1%}"


def course_table(finished: Mapping[str, Runs], seed: int) -> str:
    """Error after every epoch, and the energy that levels leave over, of every system with codes and this seed."""
    chosen = {name: run for name, runs in finished.items() for run in runs if run["seed"] == seed and level_usage(run)}
    if not chosen:
        return ""
    lines = ["| system | MSE ×10³ after each epoch | left over |", "|---|---|---|"]
    for name, run in chosen.items():
        errors = ", ".join(f"{1e3 * each['mse']:.2f}" for each in run["history"] if "mse" in each)
        left_over = " / ".join(f"{share:.1%}" for share in left_over_shares(run))
        lines.append(f"| {name} | {errors} | {left_over} |")
    return "\n".join(lines)


def left_over_shares(run: Record) -> list[float]:
    """‖ẑ − Σ_{l' ≤ l} z_{l'}‖² / ‖ẑ‖² of every level, ẑ the latents of its grid."""
    test = run["test"]
    return [left / whole for left, whole in zip(test["residual_energy"], test["latent_energy"], strict=True)]


def section(pairs: Mapping[str, Sequence[str]], finished: Mapping[str, Runs], seed: int) -> str:
    """Both tables with their captions, or "" without pairs."""
    table = pairs_table(pairs, finished)
    if not table:
        return ""
    return f"{CAPTION}\n\n{table}\n\n{COURSE_CAPTION.format(seed=seed)}\n\n{course_table(finished, seed)}"
