"""Trains any list of tokenizers on one data set under one budget, and writes their table and plots.

    python benchmarks/compare_tokenizers.py benchmarks/cifar10.yaml --data.path FOLDER
    python benchmarks/compare_tokenizers.py benchmarks/cifar10.yaml --data.path FOLDER --only "SQ-VAE I,VQ-VAE (EMA)"
    python benchmarks/compare_tokenizers.py benchmarks/cifar10.yaml --data.path FOLDER --report_only true
    python benchmarks/compare_tokenizers.py benchmarks/cifar10.yaml --data.path FOLDER --report_dir runs/report

Every system and seed trains in its own folder below `output_dir` and ends as a small JSON record in
`report_dir`/`name`. What has a record is not done again, and an interrupted run continues at its last checkpoint, so
that a comparison of many hours can be made in pieces, in several processes (`--only`), or on several machines. The
table and the plots are made from whatever records there are; the table shows the error of each seed.

With a section `prior`, which holds options of train-prior, every tokenizer's codes are encoded and the same prior is
trained on them: the page then leads with the plane that a two-stage model lives on, errors over bits under that prior.
With `metrics.features` samples of both stages are compared with held-out images, with `metrics.lpips` reconstructions.

    python benchmarks/compare_tokenizers.py benchmarks/cifar10_plane.yaml --data.path FOLDER

The records of the published runs lie in docs/results, the default `report_dir`: to repeat a run, or to have its trained
tokenizer, give another one, as in the last line.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

import torch
from courses import CAPTION as COURSE_CAPTION
from courses import course_table
from pairs import CAPTION as PAIRS_CAPTION
from pairs import pairs_table, unknown_names
from plane import CAPTION, plane_table, plot_plane
from plots import colors, log_scale, new_figure
from records import (
    Record,
    check_names,
    data_description,
    is_deterministic,
    level_means,
    level_usage,
    read_record,
    slug,
    write_record,
)
from second_stage import SampleComparison, prior_config, two_stage_figures
from transformers import AutoModel

from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.sound import SoundRows, model_inputs
from hq_tokenizers.evaluation.networks import as_rgb, build_feature_network, build_lpips, finish
from hq_tokenizers.evaluation.references import data_identity, evaluated_split
from hq_tokenizers.evaluation.sound import squared_error
from hq_tokenizers.metrics.lpips import LPIPS
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import MetricConfig
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.reports import changes, read_report
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.continuation import check_run
from hq_tokenizers.training.model_options import (
    build_tokenizer_config,
    describe_model,
    earlier_settings,
    settings_of,
    sound_config,
)
from hq_tokenizers.training.tokenizer import train_tokenizer
from hq_tokenizers.training.tokenizer_setup import Rows, check_model, load_splits

Run = Record
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
    prior: Annotated[
        dict[str, Any],
        "options of train-prior for the codes of every tokenizer, as {max_steps: 1000, model: {hidden_size: 128}}; {} "
        "trains no prior",
    ] = field(default_factory=dict)
    metrics: MetricConfig = field(default_factory=lambda: MetricConfig(features=None, lpips=None))
    num_samples: Annotated[int, "samples to compare with held-out images, with metrics.features"] = 5000
    output_dir: Annotated[str, "where the runs go"] = "runs/compare"
    report_dir: Annotated[str, "where the table and the plots go"] = "docs/results"
    pairs: Annotated[
        dict[str, list[str]],
        "name of a system: those that the page puts it beside, as {SQ-VAE: [VQ-VAE, robust VQ-VAE]}",
    ] = field(default_factory=dict)
    name: Annotated[str, "name of the table and the plots"] = "comparison"
    only: Annotated[str | None, "names of systems to train, separated by commas; null trains all"] = None
    report_only: Annotated[bool, "train nothing, report what is finished"] = False


SPEEDS = "images/s are those of each run's machine, and of what else it did: they do not compare systems."


@errors_as_messages()
def main() -> None:
    config = script_options(Comparison, __doc__)
    if not config.systems:
        raise SystemExit("error: there are no systems to compare; benchmarks/cifar10.yaml is an example of a list.")
    check_names(config.systems)
    if unpaired := unknown_names(config.pairs, config.systems):
        raise SystemExit(f"error: pairs has {unpaired}; the systems are {', '.join(config.systems)}.")
    if config.data.label_map_classes is not None:
        raise SystemExit("error: the comparison is of images; data.label_map_classes has to be null.")
    chosen = list(config.systems) if config.only is None else [name.strip() for name in config.only.split(",")]
    unknown = [name for name in chosen if name not in config.systems]
    if unknown:
        raise SystemExit(f"error: --only names {unknown}; the systems are {', '.join(config.systems)}.")
    if not config.report_only:
        runs = [(name, seed) for seed in config.seeds for name in chosen]
        check_systems(config, runs)
        compare = None
        if config.metrics.features is not None:
            compare = SampleComparison(config.data, config.metrics, config.num_samples, create_accelerator())
        for name, seed in runs:
            with errors_as_messages(f"system {name!r}: "):
                run_system(config, name, seed, compare)
    write_results(config)


def check_systems(config: Comparison, runs: list[tuple[str, int]]) -> None:
    """Reads all records and builds what will be trained: the last system's mistake must not wait for the first to end.

    Raises:
        SystemExit: If a record or a run is of something else, or a system, the budget or the data are not acceptable.
    """
    finished = {name: finished_runs(config, name) for name in config.systems}
    missing = [(name, seed) for name, seed in runs if seed not in [run["seed"] for run in finished[name]]]
    for index, (name, seed) in enumerate(missing):
        with errors_as_messages(f"system {name!r}: "):
            training = _training_config(config, name, seed)
            if index == 0:
                train, _, test = load_splits(training)
            check_model(training, train)
            check_run(training, len(train) // training.batch_size)
    if missing:
        _check_judges(config, test)


def _check_judges(config: Comparison, rows: ImageRows) -> None:
    """Refuses what would be found wrong only after the first tokenizer: the options of the prior, and the networks."""
    if config.prior:
        describe_model(prior_config(config.prior).model, "prior")
    elif config.metrics.features is not None:
        raise ValueError("metrics.features judges samples of a prior: set prior, or leave it out.")
    if config.metrics.features is not None:
        build_feature_network(config.metrics)
    _build_lpips(config, rows)


def run_system(config: Comparison, name: str, seed: int, compare: SampleComparison | None) -> None:
    """Trains one system with one seed, and a prior, unless there is a record of it, and writes its record.

    Raises:
        SystemExit: If the record is of another model, budget or data than the configuration's, or its folder holds a
            longer run.
        ValueError: If its folder holds a run of other options.
    """
    if finished_run(config, name, seed):
        return
    print(f"== {name}, seed {seed}", flush=True)
    folder = run_folder(config, name, seed)
    training = _training_config(config, name, seed)
    report = train_tokenizer(training)
    if abs(report["epochs"] - config.epochs) * report["steps"] > report["epochs"]:
        raise SystemExit(f"error: {folder} holds a run of {report['epochs']:g} epochs: give another output_dir.")
    rows = _held_out(training)
    history = [record for record in read_history(folder) if record["split"] == "validation"]
    run = {
        "system": name,
        "seed": seed,
        **_description(config, name),
        **{figure: report[figure] for figure in _FIGURES},
        "versions": read_report(folder)["versions"],
        **judge_reconstructions(config, folder, rows),
        "settings": settings_of(_tokenizer_config(config.systems[name])),
        "history": history,
    }
    if config.prior and run["codebook_sizes"]:
        run |= two_stage_figures(folder, config.data, config.prior, seed, compare)
        run["prior_precision"] = prior_config(config.prior).mixed_precision
    write_record(record_path(config, name, seed), run)


def _held_out(training: TokenizerTrainingConfig) -> Rows:
    """The split that is judged."""
    if sound_config(training.model) is not None:
        return load_splits(training)[-1]
    return load_image_splits(training.data, "test_split" if training.data.test_split else "validation_split")[0]


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
    """The record of a run, or None.

    Raises:
        SystemExit: If it is of something else, or of a preset that has since changed.
    """
    path = record_path(config, name, seed)
    record = read_record(path, _description(config, name))
    if record is None or "settings" not in record:
        return record
    tokenizer = _tokenizer_config(config.systems[name])
    changed = changes(settings_of(tokenizer), earlier_settings(tokenizer, record["settings"]))
    if changed:
        raise SystemExit(
            f"error: {path} is of a run of {name!r} before its preset changed: {changed}. Delete the record and the "
            "run's folder to train anew."
        )
    return record


def _tokenizer_config(model: dict[str, Any]) -> Any:
    """A field that follows from one that the data decide is that of the network's usual images."""
    return build_tokenizer_config(TokenizerTrainingConfig(model=model).model, {})


def record_path(config: Comparison, name: str, seed: int) -> Path:
    return Path(config.report_dir) / config.name / f"{slug(name)}-seed{seed}.json"


def _description(config: Comparison, name: str) -> dict[str, Any]:
    """What makes two runs comparable."""
    described = {"model": config.systems[name], "budget": _budget(config), "data": data_description(config.data)}
    if config.prior:
        # What a prior computes in is a question of the machine: it is recorded, and may differ.
        described["prior"] = {key: value for key, value in config.prior.items() if key != "mixed_precision"}
    judges = {key: value for key, value in asdict(config.metrics).items() if value and not key.endswith("_weights")}
    if judges:
        described["metrics"] = judges
    if config.metrics.features is not None:
        described["num_samples"] = config.num_samples
    return described


def _budget(config: Comparison) -> dict[str, Any]:
    names = ("epochs", "batch_size", "schedule", "learning_rate", "ema_decay")
    return {name: getattr(config, name) for name in names}


@torch.no_grad()
def judge_reconstructions(config: Comparison, folder: Path, rows: Rows) -> Record:
    """Figures of reconstructions that the report of the training lacks.

    Returns:
        "partial_mse", the mean squared error per pixel, or per value of a spectrogram, of the decodes from the first
        1, …, L levels; of tokenizers of images with codes, where there is a network, also "lpips", of all levels.
    """
    model = AutoModel.from_pretrained(folder).eval()
    if not model.config.has_codes:
        return {"partial_mse": []}
    lpips = None if isinstance(rows, SoundRows) else _build_lpips(config, rows)
    num_levels = model.code_layout().num_levels
    sums, number = [0.0] * num_levels, 0.0
    for batch in rows.batches(torch.arange(len(rows)).split(500), model.device):
        inputs = model_inputs(batch)
        pixel_values, speakers = inputs["pixel_values"], inputs.pop("speaker_ids", None)
        codes = model.encode(**inputs)
        mask = {name: inputs[name] for name in ("attention_mask",) if name in inputs}
        everything = {"pixel_values": pixel_values, "attention_mask": torch.ones_like(pixel_values[:, 0, 0])} | mask
        spoken = mask if speakers is None else {**mask, "speaker_ids": speakers}
        for level in range(num_levels):
            decoded = model.decode(codes, level + 1, **spoken)
            error, values = squared_error(decoded, everything)
            sums[level] += error.item()
        number += values.item()
        if lpips is not None:
            lpips.add_batch(predictions=as_rgb(decoded), references=as_rgb(pixel_values))
    figures: Record = {"partial_mse": [total / number for total in sums]}
    return figures if lpips is None else {**figures, "lpips": finish(lpips)["lpips"]}


def _build_lpips(config: Comparison, rows: ImageRows) -> LPIPS | None:
    if config.metrics.lpips is None:
        return None
    size = rows.image_format.height, rows.image_format.width
    return build_lpips(config.metrics, size, data_identity(config.data, evaluated_split(config.data)))


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
    table = f"{markdown_table(finished)}\n\n{SPEEDS}"
    on_plane = {name: runs for name, runs in finished.items() if all("under_prior" in run for run in runs)}
    if on_plane:
        plot = f"{config.name}_plane.png"
        plot_plane(on_plane, folder / plot)
        table = f"{CAPTION}\n\n{plane_table(on_plane)}\n\n![Error over bits under the prior]({plot})\n\n{table}"
    if beside := pairs_table(config.pairs, finished):
        table = f"{table}\n\n{PAIRS_CAPTION}\n\n{beside}"
    seed = min(run["seed"] for runs in finished.values() for run in runs)
    if courses := course_table(finished, seed):
        table = f"{table}\n\n{COURSE_CAPTION.format(seed=seed)}\n\n{courses}"
    print(table)
    for title, name, plot in (
        ("Error over bits", "rate_distortion", plot_rate_distortion),
        ("Usage of the codebooks", "usage", plot_usage),
        ("Error over the steps", "training", plot_histories),
    ):
        plot(finished, folder / f"{config.name}_{name}.png")
        table += f"\n\n![{title}]({config.name}_{name}.png)"
    (folder / f"{config.name}.md").write_text(table + "\n", encoding="utf-8")


def finished_runs(config: Comparison, name: str) -> list[Run]:
    records = [finished_run(config, name, seed) for seed in config.seeds]
    return [record for record in records if record]


def markdown_table(finished: dict[str, list[Run]]) -> str:
    """One row per system; figures are means over the seeds, errors with the figure of each seed.

    The KL is what the bound charges for the codes, with a uniform prior N log K less the entropy of P̂, or for the
    latents of a VAE.
    """
    of_sounds = "rmse_db" in next(iter(finished.values()))[0]["test"]
    quality = "RMSE (dB), MSE (dB²)" if of_sounds else "PSNR (dB)"
    lines = [
        f"| system | parameters | bits/image | KL (bits) | MSE ×10³ (each seed) | {quality} | perplexity per level |"
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
            "–" if is_deterministic(runs) else f"{_charged_bits(runs):.0f}",
            f"{mean(errors):.2f} ({', '.join(f'{error:.2f}' for error in errors)})",
            ", ".join(
                f"{mean(test[figure] for test in tests):.2f}"
                for figure in (("rmse_db", "mse_db2") if of_sounds else ("psnr",))
            ),
            " / ".join(f"{value:.0f}" for value in perplexities) or "–",
            " / ".join(f"{value / size:.0%}" for value, size in zip(perplexities, sizes, strict=True)) or "–",
            " → ".join(f"{value:.2f}" for value in partial) if len(partial) > 1 else "–",
            f"{mean(run['images_per_second'] for run in runs):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_rate_distortion(finished: dict[str, list[Run]], path: Path) -> None:
    """Error over the bits of a uniform prior; hollow, and joined to it, over those that the bound charges."""
    figure, axis = new_figure(len(finished))
    for (name, runs), color in zip(finished.items(), colors(), strict=False):
        error, bits = 1e3 * mean(run["test"]["mse"] for run in runs), runs[0]["bits_per_image"]
        if not is_deterministic(runs):
            charged = _charged_bits(runs)
            axis.plot([charged, charged if bits is None else bits], [error, error], ":", color=color, linewidth=1)
            axis.plot(charged, error, "o", color=color, fillstyle="none", label=name if bits is None else None)
        if bits is not None:
            axis.plot(bits, error, "s" if is_deterministic(runs) else "o", color=color, label=name)
    axis.set(xlabel="bits per image (hollow: KL, squares: deterministic codes)", ylabel="MSE × 10³")
    log_scale(axis)
    axis.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def plot_usage(finished: dict[str, list[Run]], path: Path) -> None:
    figure, axis = new_figure(len(finished))
    position, ticks, labels = 0.0, [], []
    for (name, runs), color in zip(finished.items(), colors(), strict=False):
        usage = level_means(list(map(level_usage, runs)))
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
    figure, axes = new_figure(len(finished), columns=2)
    for (name, runs), color in zip(finished.items(), colors(), strict=False):
        records = runs[0]["history"]
        epochs = [record["epoch"] for record in records]
        errors = [1e3 * record["mse"] for record in records]
        line = "s--" if is_deterministic(runs) else "o-"
        axes[0].plot(epochs, errors, line, color=color, markersize=3, label=name)
        if "discrete" in runs[0]["test"]:
            axes[1].plot(epochs, [mean(record["entropy"]) for record in records], line, color=color, markersize=3)
    axes[0].set(xlabel="epoch of the first seed", ylabel="validation MSE × 10³ (dashed: deterministic codes)")
    log_scale(axes[0])
    axes[1].set(xlabel="epoch of the first seed", ylabel="entropy of P̂, mean over levels (nats)")
    figure.legend(fontsize="x-small", loc="outside right upper")
    figure.savefig(path, dpi=110)


def _charged_bits(runs: list[Run]) -> float:
    """KL divergence per image that the bound charges for codes, or of a VAE for latents."""
    return mean(run["test"].get("discrete", run["test"].get("kl")) for run in runs) / math.log(2)


if __name__ == "__main__":
    main()
