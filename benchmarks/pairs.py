"""Systems beside those that they are an answer to: by how much they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from plane import Runs, bits_under_prior
from records import Record, level_means, level_usage

CAPTION = (
    "Each system beside one it is an answer to, over the seeds that both have: by how much its mean is above (+) or "
    "below (−) that of the other, and in parentheses seed by seed. The error is the MSE, bits are those under the same "
    "prior (* where the priors of the two learned in different precisions); usage is perplexity / K of the least used "
    "level."
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
                rows.append(f"| {' | '.join([first, second, *_cells(ours, theirs)])} |")
    if not rows:
        return ""
    head = "| system | beside | error | LPIPS | bits | usage | usage of the other |"
    return "\n".join([head, "|---" * 7 + "|", *rows])


def _of_common_seeds(first: Runs, second: Runs) -> tuple[Runs, Runs]:
    """The runs of both, in the same order."""
    ours, theirs = ({run["seed"]: run for run in runs} for runs in (first, second))
    common = sorted(ours.keys() & theirs.keys())
    return [ours[seed] for seed in common], [theirs[seed] for seed in common]


def _cells(ours: Runs, theirs: Runs) -> list[str]:
    precisions = {run.get("prior_precision") for run in (*ours, *theirs)}
    bits = _change(ours, theirs, bits_under_prior, lambda run: "under_prior" in run)
    return [
        _change(ours, theirs, lambda run: run["test"]["mse"]),
        _change(ours, theirs, lambda run: run["lpips"], lambda run: "lpips" in run),
        bits if bits == "–" or len(precisions) == 1 else f"{bits} *",
        *(_least_usage(runs) for runs in (ours, theirs)),
    ]


def _change(
    ours: Runs,
    theirs: Runs,
    figure: Callable[[Record], float],
    present: Callable[[Record], bool] = lambda run: True,
) -> str:
    """By how much the first are above the second; "–" where a run lacks the figure."""
    if not all(map(present, [*ours, *theirs])):
        return "–"
    total = _percent(mean(map(figure, ours)) / mean(map(figure, theirs)))
    each = [_percent(figure(our) / figure(their)) for our, their in zip(ours, theirs, strict=True)]
    return total if len(each) == 1 else f"{total} ({', '.join(each)})"


def _percent(ratio: float) -> str:
    return f"{ratio - 1:+.1%}".replace("-", "−")


def _least_usage(runs: Runs) -> str:
    usage = level_means(list(map(level_usage, runs)))
    return f"{min(usage):.0%}" if usage else "–"
