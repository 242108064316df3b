"""Trains any list of tokenizers on one data set under one budget, and writes their table and plots.

    python benchmarks/compare_tokenizers.py benchmarks/cifar10.yaml --data.path FOLDER
    python benchmarks/compare_tokenizers.py benchmarks/cifar10.yaml --data.path FOLDER --only "SQ-VAE I,VQ-VAE (EMA)"
    python benchmarks/compare_tokenizers.py benchmarks/cifar10.yaml --data.path FOLDER --report_only true
    python benchmarks/compare_tokenizers.py benchmarks/cifar10.yaml --data.path FOLDER --report_dir runs/report

Every system and seed trains in its own folder below `output_dir` and ends as a small JSON record in
`report_dir`/`name`. What has a record is not done again, and an interrupted run continues at its last checkpoint, so
that a comparison of many hours can be made in pieces, in several processes (`--only`), or on several machines. The
table and the plots are made from whatever records there are; the table shows the error of each seed.

The records of the published runs lie in docs/results, the default `report_dir`: to repeat a run, or to have its trained
tokenizer, give another one, as in the last line.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

import torch
from records import check_names, data_description, read_record, slug, write_record
from transformers import AutoModel

from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.tokenizer import check_model, load_splits, train_tokenizer

Run = dict[str, Any]
_FIGURES = ("num_parameters", "code_layout", "codebook_sizes", "bits_per_image", "steps", "images_per_second", "test")


@dataclass(kw_only=True)
class Comparison:
    """Options of the comparison."""

    systems: Annotated[dict[str, Any], "name of each system: its `model` section, as in train-tokenizer"] = field(
        default_factory=dict
    )
    data: DataConfig = field(default_factory=DataConfig)
    epochs: Annotated[float, "passes over the training images, the same for all"] = 5.0
    batch_size: Annotated[int, "images per step"] = 32
    schedule: Annotated[
        Literal["plateau", "constant", "cosine"],
        "learning rate schedule; a falling rate also slows the variances' annealing",
    ] = "constant"
    learning_rate: Annotated[float, "Adam's learning rate"] = 1e-3
    ema_decay: Annotated[float | None, "moving average of the weights that is judged; null judges the last ones"] = None
    seeds: Annotated[list[int], "every system is trained once with each"] = field(default_factory=lambda: [0, 1])
    output_dir: Annotated[str, "where the runs go"] = "runs/compare"
    report_dir: Annotated[str, "where the table and the plots go"] = "docs/results"
    name: Annotated[str, "name of the table and the plots"] = "comparison"
    only: Annotated[str | None, "names of systems to train, separated by commas; null trains all"] = None
    report_only: Annotated[bool, "train nothing, report what is finished"] = False


def main() -> None:
    config = script_options(Comparison, __doc__)
    if not config.systems:
        raise SystemExit("error: there are no systems to compare; benchmarks/cifar10.yaml is an example of a list.")
    check_names(config.systems)
    if config.data.label_map_classes is not None:
        raise SystemExit("error: the comparison is of images; data.label_map_classes has to be null.")
    chosen = list(config.systems) if config.only is None else [name.strip() for name in config.only.split(",")]
    unknown = [name for name in chosen if name not in config.systems]
    if unknown:
        raise SystemExit(f"error: --only names {unknown}; the systems are {', '.join(config.systems)}.")
    if not config.report_only:
        runs = [(name, seed) for seed in config.seeds for name in chosen]
        check_systems(config, runs)
        for name, seed in runs:
            run_system(config, name, seed)
    write_results(config)


def check_systems(config: Comparison, runs: list[tuple[str, int]]) -> None:
    """Reads all records and builds what will be trained: the last system's mistake must not wait for the first to end.

    Raises:
        SystemExit: If a record is of something else, or a system, the budget or the data are not acceptable.
    """
    finished = {name: finished_runs(config, name) for name in config.systems}
    missing = [(name, seed) for name, seed in runs if seed not in [run["seed"] for run in finished[name]]]
    for index, (name, seed) in enumerate(missing):
        try:
            training = _training_config(config, name, seed)
            if index == 0:
                train, _, _ = load_splits(training)
            check_model(training, train)
        except (ValueError, TypeError, OSError) as error:
            raise SystemExit(f"error: system {name!r}: {error}") from error


def run_system(config: Comparison, name: str, seed: int) -> None:
    """Trains one system with one seed, unless there is a record of it, and writes its record.

    Raises:
        SystemExit: If the record is of another model, budget or data than the configuration's, or its folder holds a
            longer run.
    """
    if finished_run(config, name, seed):
        return
    print(f"== {name}, seed {seed}", flush=True)
    folder = run_folder(config, name, seed)
    report = train_tokenizer(_training_config(config, name, seed))
    if abs(report["epochs"] - config.epochs) * report["steps"] > report["epochs"]:
        raise SystemExit(f"error: {folder} holds a run of {report['epochs']:g} epochs: give another output_dir.")
    (rows,) = load_image_splits(config.data, "test_split" if config.data.test_split else "validation_split")
    history = [record for record in read_history(folder) if record["split"] == "validation"]
    run = {
        "system": name,
        "seed": seed,
        **_description(config, name),
        **{figure: report[figure] for figure in _FIGURES},
        "partial_mse": partial_mse(folder, rows),
        "history": history,
    }
    write_record(record_path(config, name, seed), run)


def _training_config(config: Comparison, name: str, seed: int) -> TokenizerTrainingConfig:
    return TokenizerTrainingConfig(
        output_dir=str(run_folder(config, name, seed)),
        seed=seed,
        data=config.data,
        model=config.systems[name],
        keep_checkpoints=1,
        **_budget(config),
    )


def finished_run(config: Comparison, name: str, seed: int) -> Run | None:
    return read_record(record_path(config, name, seed), _description(config, name))


def record_path(config: Comparison, name: str, seed: int) -> Path:
    return Path(config.report_dir) / config.name / f"{slug(name)}-seed{seed}.json"


def _description(config: Comparison, name: str) -> dict[str, Any]:
    """What makes two runs comparable."""
    return {"model": config.systems[name], "budget": _budget(config), "data": data_description(config.data)}


def _budget(config: Comparison) -> dict[str, Any]:
    names = ("epochs", "batch_size", "schedule", "learning_rate", "ema_decay")
    return {name: getattr(config, name) for name in names}


@torch.no_grad()
def partial_mse(folder: Path, rows: ImageRows) -> list[float]:
    """Mean squared error per pixel of the decodes from the first 1, …, L levels."""
    model = AutoModel.from_pretrained(folder).eval()
    if not model.config.has_codes:
        return []
    num_levels = model.code_layout().num_levels
    sums = [0.0] * num_levels
    for batch in rows.batches(torch.arange(len(rows)).split(500), model.device):
        pixel_values = batch["pixel_values"]
        codes = model.encode(pixel_values)
        for level in range(num_levels):
            sums[level] += (model.decode(codes, level + 1) - pixel_values).square().flatten(1).mean(1).sum().item()
    return [total / len(rows) for total in sums]


def run_folder(config: Comparison, name: str, seed: int) -> Path:
    return Path(config.output_dir) / slug(name) / f"seed{seed}"


def write_results(config: Comparison) -> None:
    """The table and the plots of everything that is finished."""
    finished = {name: finished_runs(config, name) for name in config.systems}
    finished = {name: runs for name, runs in finished.items() if runs}
    if not finished:
        print("Nothing is finished yet.")
        return
    folder = Path(config.report_dir)
    folder.mkdir(parents=True, exist_ok=True)
    table = markdown_table(finished)
    (folder / f"{config.name}.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    plot_rate_distortion(finished, folder / f"{config.name}_rate_distortion.png")
    plot_usage(finished, folder / f"{config.name}_usage.png")
    plot_histories(finished, folder / f"{config.name}_training.png")


def finished_runs(config: Comparison, name: str) -> list[Run]:
    records = [finished_run(config, name, seed) for seed in config.seeds]
    return [record for record in records if record]


def markdown_table(finished: dict[str, list[Run]]) -> str:
    """One row per system; figures are means over the seeds, errors with the figure of each seed.

    The KL is what the bound charges for the codes, with a uniform prior N log K less the entropy of P̂, or for the
    latents of a VAE.
    """
    lines = [
        "| system | parameters | bits/image | KL (bits) | MSE ×10³ (each seed) | PSNR (dB) | perplexity per level |"
        " usage per level | MSE ×10³ of partial decodes | images/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in finished.items():
        tests = [run["test"] for run in runs]
        errors = [1e3 * test["mse"] for test in tests]
        partial = [1e3 * value for value in level_means([run["partial_mse"] for run in runs])]
        perplexities = level_means([test.get("perplexity", []) for test in tests])
        sizes = runs[0]["codebook_sizes"]
        bits = runs[0]["bits_per_image"]
        cells = [
            name,
            f"{runs[0]['num_parameters']:,}",
            "–" if bits is None else f"{bits:.0f}",
            "–" if _deterministic(runs) else f"{_charged_bits(runs):.0f}",
            f"{mean(errors):.2f} ({', '.join(f'{error:.2f}' for error in errors)})",
            f"{mean(test['psnr'] for test in tests):.2f}",
            " / ".join(f"{value:.0f}" for value in perplexities) or "–",
            " / ".join(f"{value / size:.0%}" for value, size in zip(perplexities, sizes, strict=True)) or "–",
            " → ".join(f"{value:.2f}" for value in partial) if len(partial) > 1 else "–",
            f"{mean(run['images_per_second'] for run in runs):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def level_means(rows: list[list[float]]) -> list[float]:
    return [mean(column) for column in zip(*rows, strict=True)]


def plot_rate_distortion(finished: dict[str, list[Run]], path: Path) -> None:
    """Error over the bits of a uniform prior; hollow, and joined to it, over those that the bound charges."""
    figure, axis = _figure(len(finished))
    for (name, runs), color in zip(finished.items(), _colors(), strict=False):
        error, bits = 1e3 * mean(run["test"]["mse"] for run in runs), runs[0]["bits_per_image"]
        if not _deterministic(runs):
            charged = _charged_bits(runs)
            axis.plot([charged, charged if bits is None else bits], [error, error], ":", color=color, linewidth=1)
            axis.plot(charged, error, "o", color=color, fillstyle="none", label=name if bits is None else None)
        if bits is not None:
            axis.plot(bits, error, "s" if _deterministic(runs) else "o", color=color, label=name)
    axis.set(xlabel="bits per image (hollow: KL, squares: deterministic codes)", ylabel="MSE × 10³")
    _log_scale(axis)
    axis.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def plot_usage(finished: dict[str, list[Run]], path: Path) -> None:
    figure, axis = _figure(len(finished))
    position, ticks, labels = 0.0, [], []
    for (name, runs), color in zip(finished.items(), _colors(), strict=False):
        perplexities = level_means([run["test"].get("perplexity", []) for run in runs])
        usage = [value / size for value, size in zip(perplexities, runs[0]["codebook_sizes"], strict=True)]
        if not usage:
            continue
        axis.bar([position + level for level in range(len(usage))], usage, width=0.9, color=color)
        ticks.append(position + (len(usage) - 1) / 2)
        labels.append(name)
        position += len(usage) + 1
    axis.set_xticks(ticks, labels, rotation=60, ha="right", fontsize="x-small")
    axis.set(ylabel="perplexity / K per level", ylim=(0, 1))
    figure.savefig(path, dpi=110)


def plot_histories(finished: dict[str, list[Run]], path: Path) -> None:
    """Validation error, and the mean entropy of P̂ in nats, over the epochs of the first finished seed."""
    figure, axes = _figure(len(finished), columns=2)
    for (name, runs), color in zip(finished.items(), _colors(), strict=False):
        records = runs[0]["history"]
        epochs = [record["epoch"] for record in records]
        errors = [1e3 * record["mse"] for record in records]
        line = "s--" if _deterministic(runs) else "o-"
        axes[0].plot(epochs, errors, line, color=color, markersize=3, label=name)
        if "discrete" in runs[0]["test"]:
            axes[1].plot(epochs, [mean(record["entropy"]) for record in records], line, color=color, markersize=3)
    axes[0].set(xlabel="epoch of the first seed", ylabel="validation MSE × 10³ (dashed: deterministic codes)")
    _log_scale(axes[0])
    axes[1].set(xlabel="epoch of the first seed", ylabel="entropy of P̂, mean over levels (nats)")
    figure.legend(fontsize="x-small", loc="outside right upper")
    figure.savefig(path, dpi=110)


def _charged_bits(runs: list[Run]) -> float:
    """KL divergence per image that the bound charges for codes, or of a VAE for latents."""
    return mean(run["test"].get("discrete", run["test"].get("kl")) for run in runs) / math.log(2)


def _colors() -> Iterator[Any]:
    """A colour per system, the same in every plot: more than the ten of the default, then again from the first."""
    from matplotlib import colormaps

    return itertools.cycle([*colormaps["tab20"](range(20)), *colormaps["Dark2"](range(8))])


def _deterministic(runs: list[Run]) -> bool:
    return not {"discrete", "kl"} & set(runs[0]["test"])


def _log_scale(axis: Any) -> None:
    """A logarithmic vertical axis with plain numbers that do not overlap."""
    from matplotlib.ticker import LogLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")


def _figure(num_names: int, columns: int = 1) -> tuple[Any, Any]:
    """Axes in a row, high enough for a legend of all names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * columns + 3.5, max(4.5, 0.19 * num_names)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


if __name__ == "__main__":
    main()
