"""Telling the caller how far sampling is, and showing the codes there are so far.

Shape legend: B samples, h_g × w_g grid and D_g depth of group g.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from hq_tokenizers.codes import CodeLayout, Codes

ProgressLike = bool | Callable[[int, int], None] | None


@dataclass(frozen=True)
class PartialCodes:
    """Codes in the middle of sampling, for previews: `tokenizer.decode(partial.codes, num_levels=…)`.

    Args:
        codes: B images; 0 where there is no code yet. A masked prior gives its present guess for all codes of the
            level it works on, a contextual one its draft of the group it works on and the likeliest codes elsewhere.
        final: Per group a BoolTensor (B, h_g, w_g, D_g), True where the code will not change any more.
        num_finished_levels: Leading levels whose codes are all final.
        num_preview_levels: Leading levels that have a code, final or guessed, at every position; the levels that a
            preview can be decoded from.
    """

    codes: Codes
    final: tuple[torch.Tensor, ...]
    num_finished_levels: int
    num_preview_levels: int


StepCallback = Callable[[int, int, PartialCodes], None]
# Called by a sampler after each step with the number of steps done and a function that gives the codes so far.
OnStep = Callable[[int, Callable[[], PartialCodes]], None]


def partial_codes(
    layout: CodeLayout, codes: list[torch.Tensor], final: list[torch.Tensor], num_finished: int, num_preview: int
) -> PartialCodes:
    """Copies a sampler's state; `codes` and `final` hold one tensor (B, P_g, D_g) per group."""
    grids, known = ([tensor.clone() for tensor in as_grids(layout, tensors)] for tensors in (codes, final))
    return PartialCodes(Codes(tuple(grids), layout), tuple(known), num_finished, num_preview)


def as_grids(layout: CodeLayout, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """One tensor (B, P_g, D_g) per group → (B, h_g, w_g, D_g)."""
    pairs = zip(tensors, layout.groups, strict=True)
    return tuple(tensor.unflatten(1, (group.height, group.width)) for tensor, group in pairs)


@contextmanager
def report_progress(
    progress: ProgressLike, callback: StepCallback | None, total: int
) -> Iterator[Callable[[int, Callable[[], PartialCodes]], None]]:
    """Yields a function to call after each step with the number of steps done and a function giving the codes so far.

    Args:
        progress: True shows a bar; a function is called with (steps done, total); None or False stays silent.
        callback: Called with (steps done, total, `PartialCodes`).
        total: Number of steps.
    """
    with show_progress(progress, total, "Sampling codes", "step") as show:

        def on_step(done: int, partial: Callable[[], PartialCodes]) -> None:
            show(done)
            if callback is not None:
                callback(done, total, partial())

        yield on_step


@contextmanager
def show_progress(progress: ProgressLike, total: int, title: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with how much is done.

    Args:
        progress: True shows a bar; a function is called with (done, total); None or False stays silent.
        total: How much there is.
        title: What the bar says.
        unit: What is counted.
    """
    if callable(progress):
        yield lambda done: progress(done, total)
    elif progress:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=title, unit=unit) as bar:
            yield lambda done: bar.update(done - bar.n)
    else:
        yield lambda done: None
