"""Images per second that `RQPriorModel` samples on a CPU, against the naive loop and the bandwidth of the memory.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --threads 1 --repeats 3 --output sampling.json

The model has random weights: 8 spatial and 2 depth layers of width 256 with 4 heads, over 8×8 positions of 4 codes from
512. For every batch size it prints

* images per second with the static and with the dynamic cache, medians of runs that take turns;
* the same of the naive loop, which makes a whole forward pass for every code. It is measured at a few codes spread over
  the image, and extrapolated: a pass costs the same whichever code is asked for;
* the memory floor: the time to read, once for each code step that uses them, the weights of that step, at the bandwidth
  of a large copy measured in the same run. Weights that stay in the processor's cache can be faster than that;
* where the time goes: the parts of the model, measured by hooks, and the operators, measured by torch.profiler.

Numbers of a machine that does other work too mean little; ratios within one run mean more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.priors import RQPriorConfig, RQPriorModel

LAYOUT = CodeLayout((CodeGroup(8, 8, (512,) * 4),))
COPY_BYTES = 2**28


@dataclass(kw_only=True)
class Options:
    """Options of the benchmark."""

    threads: Annotated[int, "CPU threads"] = 2
    batch_sizes: Annotated[list[int], "images at a time"] = field(default_factory=lambda: [1, 16])
    repeats: Annotated[int, "timed runs, after one that is not timed"] = 5
    naive_steps: Annotated[int, "codes at which the naive loop is measured, of 256"] = 4
    output: Annotated[str | None, "JSON file of the figures"] = None


@errors_as_messages()
def main() -> None:
    options = script_options(Options, __doc__)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = RQPriorModel(RQPriorConfig(code_layout=LAYOUT.to_dict())).eval()
    bandwidth = copy_bandwidth()
    report: dict[str, Any] = {
        "threads": options.threads,
        "torch": torch.__version__,
        "num_parameters": model.num_parameters(),
        "copy_gigabytes_per_second": bandwidth / 1e9,
        "weight_gigabytes_per_batch": weight_bytes(model) / 1e9,
        "batches": [measure(model, size, options, weight_bytes(model) / bandwidth) for size in options.batch_sizes],
    }
    print(f"{model.num_parameters() / 1e6:.1f} M parameters, {LAYOUT}, {options.threads} threads")
    print(f"copy: {bandwidth / 1e9:.1f} GB/s; weights read per batch: {weight_bytes(model) / 1e9:.2f} GB")
    for batch in report["batches"]:
        print_batch(batch)
    if options.output is not None:
        Path(options.output).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def measure(model: RQPriorModel, batch_size: int, options: Options, floor: float) -> dict[str, Any]:
    """All figures of one batch size; `floor` in seconds per batch."""
    caches = {
        cache: lambda cache=cache: model.generate(num_images=batch_size, generator=0, cache_implementation=cache)
        for cache in ("static", "dynamic")
    }
    if caches["static"]() != caches["dynamic"]():
        raise RuntimeError("The two caches gave different codes.")
    seconds = interleaved_medians(caches, options.repeats)
    naive = naive_seconds(model, batch_size, options.naive_steps)
    return {
        "batch_size": batch_size,
        "images_per_second": {cache: batch_size / value for cache, value in seconds.items()},
        "naive_images_per_second": batch_size / naive,
        "naive_steps_measured": options.naive_steps,
        "times_as_fast_as_naive": naive / seconds["static"],
        "memory_floor_seconds": floor,
        "memory_floor_share": floor / seconds["static"],
        "parts": part_shares(model, caches["static"]),
        "operators": operator_shares(caches["static"]),
    }


def interleaved_medians(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of each run, the runs taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(seconds_of(run))
    return {name: median(values) for name, values in times.items()}


def seconds_of(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@torch.no_grad()
def naive_seconds(model: RQPriorModel, batch_size: int, num_steps: int) -> float:
    """Seconds per batch of the loop without a cache, extrapolated from `num_steps` codes."""
    flat, depth = torch.zeros(batch_size, LAYOUT.num_codes, dtype=torch.long), LAYOUT.num_levels

    def step(index: int) -> None:
        position, level = divmod(index, depth)
        logits = model(LAYOUT.unflatten(flat)).logits[level][:, position]
        flat[:, index] = torch.multinomial(logits.softmax(-1), 1)[:, 0]

    step(0)
    indices = [i * (LAYOUT.num_codes - 1) // max(num_steps - 1, 1) for i in range(num_steps)]
    return median(seconds_of(lambda index=index: step(index)) for index in indices) * LAYOUT.num_codes


def copy_bandwidth() -> float:
    """Bytes per second of a copy that no cache holds, counting what is read and what is written."""
    source = torch.zeros(COPY_BYTES // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * COPY_BYTES / min(seconds_of(lambda: target.copy_(source)) for _ in range(5))


def weight_bytes(model: RQPriorModel) -> int:
    """Bytes of the weights that sampling one batch reads: the spatial body per position, the others per code."""

    def size(module: nn.Module) -> int:
        return sum(p.numel() * p.element_size() for p in module.parameters())

    per_code = size(model.depth_transformer) * LAYOUT.num_levels + size(model.heads)
    return LAYOUT.num_positions * (size(model.spatial_transformer) + per_code)


def part_shares(model: RQPriorModel, run: Callable[[], Any]) -> dict[str, float]:
    """Share of the time that each part takes; what is left is sampling: noise, filters, embeddings, the loop."""
    parts = {"spatial transformer": [model.spatial_transformer], "depth transformer": [model.depth_transformer]}
    groups: dict[str, list[nn.Module]] = {**parts, "heads": list(model.heads)}
    spent, started = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)
    hooks = []
    for name, modules in groups.items():

        def start(*_: Any, name: str = name) -> None:
            started[name] = time.perf_counter()

        def stop(*_: Any, name: str = name) -> None:
            spent[name] += time.perf_counter() - started[name]

        for module in modules:
            hooks += [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
    total = seconds_of(run)
    for hook in hooks:
        hook.remove()
    return {name: value / total for name, value in {**spent, "sampling": total - sum(spent.values())}.items()}


def operator_shares(run: Callable[[], Any], number: int = 6) -> dict[str, float]:
    """Share of the operators' own time, for those that take most of it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    averages = sorted(profiler.key_averages(), key=lambda item: -item.self_cpu_time_total)
    total = sum(item.self_cpu_time_total for item in averages)
    return {item.key: item.self_cpu_time_total / total for item in averages[:number]}


def print_batch(batch: dict[str, Any]) -> None:
    speeds = batch["images_per_second"]
    print(f"\nbatch {batch['batch_size']}")
    print(f"  static cache {speeds['static']:.2f} images/s, dynamic cache {speeds['dynamic']:.2f} images/s")
    steps = f"extrapolated from {batch['naive_steps_measured']} of {LAYOUT.num_codes} codes"
    print(f"  naive loop {batch['naive_images_per_second']:.3f} images/s ({steps})")
    print(f"  ratio {batch['times_as_fast_as_naive']:.1f}")
    floor = f"{batch['memory_floor_seconds']:.3f} s per batch, {batch['memory_floor_share']:.0%} of the time"
    print(f"  memory floor {floor}")
    for title in ("parts", "operators"):
        print(f"  {title}: " + ", ".join(f"{name} {share:.0%}" for name, share in batch[title].items()))


if __name__ == "__main__":
    main()
