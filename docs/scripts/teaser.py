"""The teaser, docs/figures/teaser.png: images, their codes, reconstructions level by level, and samples of every class.

    python docs/scripts/teaser.py --data.name parquet --data.path FOLDER \
        --data.files '{train: fashion_mnist-train.parquet, test: fashion_mnist-test.parquet}'

The images are of the test split. Each code of a grid has its own colour: codes whose vectors are near each other have
similar ones. A reconstruction says how far it is from the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from hq_tokenizers import Codes, HQGeneratorModel, pretrained
from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.metrics.psnr import psnr
from hq_tokenizers.options.data import DataConfig

HEADING: dict[str, Any] = {"x": 0.006, "ha": "left", "fontsize": 14, "fontweight": "bold", "color": "#222222"}
TITLE: dict[str, Any] = {"fontsize": 12.5, "color": "#222222"}
NOTE: dict[str, Any] = {"fontsize": 10.5, "color": "#777777"}
FRAME = "#cccccc"


@dataclass(kw_only=True)
class Options:
    """Options of the script."""

    generator: Annotated[str | None, "folder of the generator; null takes pretrained('fashion-mnist')"] = None
    data: DataConfig = field(default_factory=DataConfig)
    images: Annotated[list[int], "numbers of the test images that are encoded"] = field(default_factory=lambda: [7, 82])
    samples_per_class: Annotated[int, "rows of samples"] = 3
    seed: Annotated[int, "sample i has the noise of seed + i"] = 0
    output: Annotated[str, "PNG to write"] = "docs/figures/teaser.png"


def code_colours(codebook: torch.Tensor) -> torch.Tensor:
    """A colour (K, 3) for every code: the ranks of its vector along the codebook's three principal axes."""
    centred = codebook - codebook.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    ranks = (centred @ axes.T).argsort(0).argsort(0) / (len(codebook) - 1)
    return 0.12 + 0.83 * ranks


def show(axes: Axes, picture: torch.Tensor, title: str = "", note: str = "") -> None:
    """Draws (H, W) in [0, 1] as grey, with white where it is 0, or (H, W, 3) in colour."""
    grey: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}
    axes.imshow(picture.clamp(0, 1).numpy(), interpolation="nearest", **grey)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
    if title:
        axes.set_title(title, pad=6, **TITLE)
    if note:
        axes.set_xlabel(note, labelpad=4, **NOTE)


def draw_codes(figure: SubFigure, model: HQGeneratorModel, images: torch.Tensor) -> None:
    """A row per image: the image, the codes of every level, and what the first levels decode to."""
    tokenizer = model.image_tokenizer
    codes: Codes = tokenizer.encode(images)
    colours = [code_colours(codebook) for codebook in tokenizer.codebooks()]
    levels = range(1, codes.layout.num_levels + 1)
    decoded = {level: tokenizer.decode(codes, num_levels=level) for level in levels}
    grid = codes.groups[0]
    gap, columns = 0.42, len(colours)
    widths = [1, gap, *[1] * columns, gap, *[1] * columns]
    axes = figure.subplots(len(images), len(widths), squeeze=False, width_ratios=widths)
    for row, image in enumerate(images):
        first = row == 0
        show(axes[row, 0], image[0], "image" if first else "", "784 pixels")
        for gap_place in (1, 2 + columns):
            axes[row, gap_place].axis("off")
            arrow = {"arrowstyle": "-|>", "color": "#888888", "linewidth": 1.6, "mutation_scale": 16}
            axes[row, gap_place].annotate("", (1.05, 0.5), (-0.05, 0.5), "axes fraction", arrowprops=arrow)
            word = "encode" if gap_place == 1 else "decode"
            axes[row, gap_place].annotate(word, (0.5, 0.56), xycoords="axes fraction", ha="center", **NOTE)
        for level in levels:
            picture = colours[level - 1][grid[row, :, :, level - 1]]
            bits = codes.layout.truncate(level).bits_per_image
            show(axes[row, 1 + level], picture, f"codes, level {level}" if first else "", "7 × 7 codes")
            shown = decoded[level][row]
            error = psnr((shown - image).square().mean()).item()
            title = ("level 1" if level == 1 else f"levels 1–{level}") if first else ""
            show(axes[row, 2 + columns + level], shown[0], title, f"{bits:.0f} bits, {error:.1f} dB")


def draw_samples(figure: SubFigure, model: HQGeneratorModel, rows: int, seed: int) -> None:
    """A column per class."""
    names = model.config.id2label
    labels = list(range(len(names))) * rows
    images = model.generate(labels, generator=seed).images
    axes = figure.subplots(rows, len(names), squeeze=False)
    for place, image in enumerate(images):
        row, label = divmod(place, len(names))
        show(axes[row, label], image[0], names[label] if row == 0 else "")


@torch.no_grad()
@errors_as_messages()
def main() -> None:
    """Draws the teaser."""
    options = script_options(Options, __doc__)
    (test,) = load_image_splits(options.data, "validation_split")
    (batch,) = test.batches([torch.tensor(options.images)], torch.device("cpu"))
    model = HQGeneratorModel.from_pretrained(options.generator or pretrained("fashion-mnist")).eval()
    encoded, rows = len(options.images), options.samples_per_class
    heights = [1.62 * encoded + 0.85, 1.2 * rows + 0.7]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    above, below = figure.subfigures(2, 1, height_ratios=heights, hspace=0.03)
    above.suptitle("An image becomes grids of codes, and comes back level by level", **HEADING)
    below.suptitle("A class name becomes images", **HEADING)
    draw_codes(above, model, batch["pixel_values"])
    draw_samples(below, model, rows, options.seed)
    path = Path(options.output)
    figure.savefig(path, dpi=150)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
