"""What an evaluation leaves: a table on the screen, report.json, and the rows for a model card."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hq_tokenizers.files import write_text
from hq_tokenizers.reporting.reports import REPORT, changes, check_same_call, read_report, write_report

CARD_ROW = "model_card_row.md"
_LABELS = {
    "mse": "MSE",
    "rmse": "RMSE",
    "mse_db2": "MSE (dB²)",
    "rmse_db": "RMSE (dB)",
    "psnr": "mean PSNR of images (dB)",
    "psnr_of_mse": "PSNR of the MSE (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "rfid": "rFID",
    "fid": "FID",
    "frechet_distance": "Fréchet distance",
    "kid_mean": "KID",
    "kernel_distance_mean": "kernel distance",
    "inception_score_mean": "Inception Score",
    "classifier_score_mean": "classifier score",
    "precision": "precision",
    "recall": "recall",
    "perplexity": "perplexity by level",
    "active_codes": "active codes by level",
    "nmi_classes": "NMI of codes and classes by level",
    "nmi_speakers": "NMI of codes and speakers by level",
    "frechet_audio_distance": "Fréchet distance of sounds",
    "pixel_accuracy": "pixel accuracy",
    "mean_iou": "mean IoU",
}
Row = tuple[str, str, str]


def check_output_dir(output_dir: Path, subject: Mapping[str, str]) -> None:
    """Checks that no report of another command or subject would be overwritten.

    Args:
        output_dir: Where the report will go.
        subject: The option that names the subject, with its value: {"tokenizer": "runs/tokenizer"}.

    Raises:
        ValueError: If one would.
    """
    if not (output_dir / REPORT).is_file():
        return
    earlier = read_report(output_dir)
    given = {name: value for name, value in earlier.get("options", {}).items() if name in subject}
    of_a_training = "" if "subject" in earlier else "it is not of an evaluation"
    check_same_call("output_dir", output_dir, "the report", of_a_training or changes(subject, given), remedy="")


def write_evaluation(output_dir: Path, report: dict[str, Any]) -> None:
    """Writes report.json and the model card's rows, and prints the table.

    Args:
        output_dir: Where to.
        report: "subject", a description; "results", by metric its figures with their "provenance"; "left_out", why a
            metric has none; "options".
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    write_report(output_dir, report)
    rows = list(table_rows(report["results"]))
    if (width := report["subject"].get("beam_width", 1)) > 1:
        rows = [(label, value, f"{conditions}, beam width {width}") for label, value, conditions in rows]
    measures = {", ".join(part for part in (label, conditions) if part): value for label, value, conditions in rows}
    write_text(output_dir / CARD_ROW, metrics_table(measures) + "\n")
    print_table(f"{report['subject']['kind']} {report['subject']['path']}", rows, report["left_out"])
    print(f"Report and model card rows are in {output_dir}.")


def print_table(title: str, rows: list[Row], left_out: dict[str, str]) -> None:
    """Prints the figures, and what was left out and why."""
    from rich.console import Console
    from rich.table import Table

    conditions = {on for _, _, on in rows}
    # What all figures were measured on is said once.
    common = conditions.pop() if len(conditions) == 1 else None
    table = Table("measure", title=title, caption=common)
    table.add_column("value", justify="right")
    if common is None:
        table.add_column("on")
    for row in rows:
        table.add_row(*row[: len(table.columns)])
    console = Console()
    console.print(table, markup=False)
    for name, reason in left_out.items():
        console.print(f"left out: {name}: {reason}", markup=False, highlight=False, soft_wrap=True)


def print_figures(title: str, figures: Mapping[str, str], notes: Sequence[str] = ()) -> None:
    """Prints a table of figures in words, a row each, and notes below it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, value)
    console = Console()
    console.print(table, markup=False)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def table_rows(results: dict[str, dict[str, Any]]) -> Iterator[Row]:
    """(label, value, conditions) of every figure that a reader looks for; lists have one entry per level."""
    for metric, figures in results.items():
        if metric == "partial":
            continue
        conditions = _conditions(figures["provenance"])
        network = figures["provenance"].get("feature_network", {}).get("name")
        for name, value in figures.items():
            if name in _LABELS:
                # FID is one network's by its name; LPIPS's network says what it is.
                note = f" ({network})" if network and name not in ("fid", "rfid", "lpips") else ""
                label = network if name == "lpips" else f"{_LABELS[name]}{note}"
                yield label, _text(value), conditions
    for name, values in results.get("partial", {}).items():
        yield f"{_LABELS[name]} of the first 1, 2, … levels", _text(values), conditions


def _conditions(provenance: dict[str, Any]) -> str:
    reference = provenance["reference"]
    name = f"{reference['name']} {reference['split']}"
    number, references = provenance["num_images"], reference["num_images"]
    return f"{name}, {number:,} {provenance.get('kind', 'images')}" + (
        f" against {references:,}" if references != number else ""
    )


def _text(value: Any) -> str:
    """Four digits, which is more than a figure of an evaluation is sure of; whole numbers as they are."""
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if float(value).is_integer() or 1000 <= abs(value) < math.inf else f"{value:.4g}"


def _cell(text: str) -> str:
    """A text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def metrics_table(metrics: Mapping[str, float | str]) -> str:
    """The Markdown table of a card's `metrics`: a row for each measure, with its value."""
    rows = [f"| {_cell(name)} | {_cell(_text(value))} |" for name, value in metrics.items()]
    return "\n".join(["| measure | value |", "|---|---|", *rows])
