"""Pictures of a run: image grids and training curves, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hq_tokenizers.files import replacing

from .tracking import Record

_SMALLEST_TILE = 48
_COLUMNS = 4
_STYLES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 0.8},
    "validation": {"marker": ".", "linestyle": "--"},
    "evaluation": {"marker": "x", "linestyle": ":"},
}


def image_grid(images: torch.Tensor, columns: int) -> np.ndarray:
    """Images as one picture, row by row.

    Args:
        images: (N, C, H, W), floats, clamped to [0, 1]; C is 1 or 3. Or label maps (N, H, W), integers, shown in one
            colour per class. Small ones are enlarged by a whole factor.
        columns: Images per row.

    Returns:
        uint8 (height, width, 3).
    """
    if not images.is_floating_point():
        images = _coloured(images)
    number, channels, height, width = images.shape
    factor = max(1, _SMALLEST_TILE // min(height, width))
    gap = 2
    tile = height * factor + gap, width * factor + gap
    rows = -(-number // columns)
    canvas = np.full((rows * tile[0] + gap, min(columns, number) * tile[1] + gap, 3), 255, np.uint8)
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    for index, image in enumerate(pixels):
        top, left = index // columns * tile[0] + gap, index % columns * tile[1] + gap
        canvas[top : top + tile[0] - gap, left : left + tile[1] - gap] = image if channels == 3 else image[..., :1]
    return canvas


def reconstruction_grid(images: torch.Tensor, reconstructions: torch.Tensor, columns: int = 8) -> np.ndarray:
    """A row of images above the row of their reconstructions, and so on; arguments as for `image_grid`."""
    columns = min(columns, len(images))
    white = images.new_ones(-len(images) % columns, *images.shape[1:])
    padded = [torch.cat([part, white]).split(columns) for part in (images, reconstructions)]
    return image_grid(torch.cat([row for pair in zip(*padded, strict=True) for row in pair]), columns)


def _coloured(label_maps: torch.Tensor) -> torch.Tensor:
    """(N, H, W) classes → (N, 3, H, W) in [0, 1]; the colours of matplotlib's tab20, again from class 20 on."""
    from matplotlib import colormaps

    palette = torch.tensor(colormaps["tab20"](range(20)), dtype=torch.float32)[:, :3]
    return palette[label_maps.cpu() % len(palette)].movedim(-1, 1)


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Writes uint8 (height, width, 3)."""
    with replacing(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


def save_curves(history: Sequence[Record], panels: Mapping[str, Sequence[str]], path: Path) -> None:
    """Plots a history.

    Args:
        history: Records from `read_history`.
        panels: Panels by title, each with the names of figures to draw over the steps. A list-valued figure gives one
            line per level. Training figures are thin lines, validation figures have dots, evaluations crosses.
        path: PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = {
        title: names for title, names in panels.items() if any(_lines(history, n, s) for n in names for s in _STYLES)
    }
    if not shown:
        return
    columns = min(len(shown), _COLUMNS)
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, names) in enumerate(shown.items(), start=1):
        axis = figure.add_subplot(rows, columns, place)
        for name in names:
            for split, style in _STYLES.items():
                for label, steps, values in _lines(history, name, split):
                    axis.plot(steps, values, label=f"{label}, {split}", **style)
        axis.set_title(title)
        axis.set_xlabel("step")
        if title.startswith("MSE"):
            axis.set_yscale("log")
        many = len(axis.lines) > 8
        axis.legend(fontsize="xx-small" if many else "x-small", ncols=2 if many else 1)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format="png")


def _lines(history: Sequence[Record], name: str, split: str) -> list[tuple[str, list[int], list[float]]]:
    records = [record for record in history if record["split"] == split and name in record]
    if not records:
        return []
    steps = [record["step"] for record in records]
    values = np.asarray([record[name] for record in records], dtype=float)
    if values.ndim == 1:
        return [(name, steps, values.tolist())]
    labels = [name if values.shape[1] == 1 else f"{name} {level}" for level in range(values.shape[1])]
    return [(label, steps, column.tolist()) for label, column in zip(labels, values.T, strict=True)]
