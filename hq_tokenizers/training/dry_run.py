"""What a run would take: its sizes without memory, and a few steps on made-up data to measure the rest."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.data.images import BatchSource
from hq_tokenizers.memory import machine_memory
from hq_tokenizers.options.training import LoopConfig
from hq_tokenizers.reporting.tables import print_figures
from hq_tokenizers.reporting.tracking import counting_bar

from .loop import TrainingLoop
from .optimization import precision_warning
from .peak_memory import PeakMemory
from .stage import Stage

_VALUES_AT_A_TIME = 2**17
"""Pixels or codes of a measured step: enough that a small model does more than wait for Python."""


def smaller_run(config: Any, values_per_image: int, num_processes: int = 1) -> Any:
    """The options of a measured step: a part of a batch, two images of 256 pixels or more of what is smaller.

    Args:
        config: Options of the run.
        values_per_image: Pixels of an image, values of a spectrogram, or codes.
        num_processes: Processes that share a batch.
    """
    part = config.batch_size // (config.gradient_accumulation * num_processes)
    images = max(1, min(part, max(2, _VALUES_AT_A_TIME // values_per_image)))
    changed = {"batch_size": images * num_processes, "gradient_accumulation": 1, "evaluation_steps": None}
    return dataclasses.replace(config, **changed)


def layout_in_words(layout: CodeLayout) -> str:
    """A row of the table."""
    return f"{layout} ({layout.bits_per_image:,.0f} bits)"


def dry_run(
    config: LoopConfig,
    smaller: LoopConfig,
    accelerator: Accelerator,
    model: nn.Module,
    prepare: Callable[[], tuple[Stage, BatchSource]],
    described: Mapping[str, str],
    items: str = "images",
) -> dict[str, Any]:
    """Measures and prints what a run would take. Writes nothing.

    Args:
        config: Options of the run.
        smaller: Those of a measured step, see `smaller_run`.
        accelerator: Whose device is measured.
        model: The model on the meta device.
        prepare: Builds stage and data of a measured step.
        described: First rows of the table: what is trained, in words.
        items: What a batch consists of, in words.

    Returns:
        "num_parameters"; bytes: "weights", "gradients", "optimizer", "moving_average", and "activations" of a part of a
        batch; "steps"; "seconds_per_step" and "seconds", of the whole run, on this machine; "images_measured". None for
        what is not known.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    found: dict[str, Any] = {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": weights,
        "gradients": gradients,
        "optimizer": 2 * gradients,  # Adam's two moments
        "moving_average": 0 if config.ema_decay is None else weights,
        "steps": config.max_steps,
    }
    needed = sum(found[name] for name in ("weights", "gradients", "optimizer", "moving_average"))
    part = config.batch_size // (config.gradient_accumulation * accelerator.num_processes)
    measured: dict[str, Any] = dict.fromkeys(("activations", "seconds_per_step", "seconds", "images_measured"))
    if accelerator.device.type != "cpu" or needed < 0.8 * machine_memory():
        with counting_bar("measuring", accelerator.is_main_process) as show:
            activations, seconds = _measure(smaller, accelerator, prepare, show)
        images = smaller.batch_size // accelerator.num_processes
        per_step = seconds / images * part * config.gradient_accumulation
        measured = {
            "activations": round(activations / images * part),
            "seconds_per_step": per_step,
            "seconds": None if config.max_steps is None else per_step * config.max_steps,
            "images_measured": images,
        }
    found |= measured
    if accelerator.is_main_process:
        rows, notes = _in_words(found, config, part, needed, accelerator.device, items)
        print_figures(f"dry run: {type(model).__name__}", {**described, **rows}, notes)
    return found


def _measure(
    config: LoopConfig,
    accelerator: Accelerator,
    prepare: Callable[[], tuple[Stage, BatchSource]],
    show: Callable[[int, int], None],
) -> tuple[float, float]:
    """Bytes that a step takes besides weights, gradients and optimiser, and its seconds; `show` hears of the steps."""
    stage, data = prepare()
    loop = TrainingLoop(config, accelerator, data, stage)
    wrapped = accelerator.prepare_model(loop.model)
    loop.model.train()

    def step() -> None:
        (batch,) = data.batches([torch.arange(len(data))[: config.batch_size]], accelerator.device)
        loop._optimize(wrapped, (batch,))
        stage.after_step()

    show(0, 3)
    step()  # The optimiser takes its memory, and the device warms up.
    show(1, 3)
    if accelerator.device.type == "cpu":
        known = [value for state in loop.optimizer.state.values() for value in state.values()]
        with PeakMemory(loop.model, [value for value in known if isinstance(value, torch.Tensor)]) as memory:
            step()
        activations = float(memory.peak)
    else:
        torch.accelerator.reset_peak_memory_stats()
        before = torch.accelerator.memory_allocated()
        step()
        activations = float(torch.accelerator.max_memory_allocated() - before)
    show(2, 3)
    start = time.perf_counter()
    step()
    if accelerator.device.type != "cpu":
        torch.accelerator.synchronize()
    seconds = time.perf_counter() - start
    show(3, 3)
    return activations, seconds


def _in_words(
    found: Mapping[str, Any], config: LoopConfig, part: int, needed: int, device: torch.device, items: str
) -> tuple[dict[str, str], list[str]]:
    """The rows of the table, and notes below it."""
    optimizer = {"adam": "Adam", "adamw": "AdamW"}[config.optimizer]
    rows = {
        "parameters": f"{found['num_parameters']:,}",
        "weights": _size(found["weights"]),
        f"gradients and {optimizer}": _size(found["gradients"] + found["optimizer"]),
    }
    if found["moving_average"]:
        rows["moving average"] = _size(found["moving_average"])
    notes = []
    steps = found["steps"]
    if steps is None:
        notes.append(f"The number of steps depends on the {items}, which are not read: give max_steps.")
    if found["images_measured"] is None:
        notes.append(
            f"No step was measured: the {_size(needed)} do not fit into this machine's {_size(machine_memory())}."
        )
    else:
        rows[f"activations of {_number_of(part, items)}"] = _size(found["activations"])
        rows["memory of a step"] = _size(needed + found["activations"])
        rows[f"seconds a step, on this {device.type}"] = f"{found['seconds_per_step']:.3g}"
        notes.append(
            "Activations and seconds are computed from those of a step of "
            f"{_number_of(found['images_measured'], f'made-up {items}')}, in proportion to the batch size."
        )
        if slow := precision_warning(config.mixed_precision, device):
            notes.append(f"Warning: {slow}")
        if config.compile:
            notes.append(
                "Measured without compile, which makes steps shorter and the first one a minute or more longer."
            )
        if steps is None:
            million = 1e6 / config.batch_size * found["seconds_per_step"]
            rows[f"a million {items}, on this {device.type}"] = _duration(million)
            notes.append(f"The run takes that time × epochs × {items} / 1,000,000.")
    rows["steps"] = "unknown" if steps is None else f"{steps:,}"
    if found["seconds"] is not None:
        rows[f"the run, on this {device.type}"] = _duration(found["seconds"])
    return rows, notes


def _number_of(number: int, items: str) -> str:
    """As "2 images" or "1 image"."""
    return f"{number:,} {items if number != 1 else items.removesuffix('s')}"


def _size(num_bytes: float) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log2(max(1, num_bytes)) // 10))
    return f"{num_bytes / 1024**power:,.4g} {units[power]}"


def _duration(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} seconds"
