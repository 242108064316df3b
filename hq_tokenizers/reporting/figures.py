"""Pictures of a run: image grids and training curves, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hq_tokenizers.files import replacing

from .tracking import Record

_SMALLEST_TILE = 64
_GAP = 2
_FONT_SIZE = 11
_TITLE_HEIGHT = 16
_COLUMNS = 4
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_LUMA = np.array([0.299, 0.587, 0.114])
_STYLES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 0.8},
    "validation": {"marker": ".", "linestyle": "--"},
    "evaluation": {"marker": "x", "linestyle": ":"},
}


def image_grid(images: torch.Tensor, columns: int, titles: Sequence[str] = ()) -> np.ndarray:
    """Images as one picture, row by row.

    Args:
        images: (N, C, H, W), floats, clamped to [0, 1]; C is 1 or 3. Or label maps (N, H, W), integers, shown in one
            colour per class. Small ones are enlarged by a whole factor, to 64 pixels at least.
        columns: Images per row.
        titles: What stands above the images, one for each of the first of them; "" for nothing. A title has room up to
            the next one in its row, and a row without any takes no space for them.

    Returns:
        uint8 (height, width, 3).
    """
    tiles = _tiles(images)
    number, height, width, _ = tiles.shape
    columns = min(columns, number)
    rows = []
    for first in range(0, number, columns):
        row_titles = titles[first : first + columns]
        if any(row_titles):
            rows.append(_title_strip(row_titles, width + _GAP, columns * (width + _GAP) + _GAP))
        row = np.full((height + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
        for place, tile in enumerate(tiles[first : first + columns]):
            left = place * (width + _GAP) + _GAP
            row[_GAP:, left : left + width] = tile
        rows.append(row)
    return np.pad(np.concatenate(rows), ((0, _GAP), (0, 0), (0, 0)), constant_values=255)


def reconstruction_grid(
    pictures: Mapping[str, torch.Tensor], columns: int = 8, blocks: Sequence[str] = ()
) -> np.ndarray:
    """Versions of images below each other, named; the next images below these, and so on.

    Args:
        pictures: The versions by name, the images themselves first: {"original": …, "reconstruction": …}, N images
            each, as `image_grid` takes them.
        columns: Images per row.
        blocks: What the first, second, … `columns` images have in common, for the titles of their rows.

    Returns:
        uint8 (height, width, 3).
    """
    number = len(next(iter(pictures.values())))
    columns = min(columns, number)
    rows, titles = [], []
    for block, first in enumerate(range(0, number, columns)):
        common = f", {blocks[block]}" if blocks else ""
        for name, images in pictures.items():
            shown = images[first : first + columns]
            white = images.new_ones(columns - len(shown), *images.shape[1:])
            rows.append(torch.cat([shown, white]))
            titles += [f"{name}{common}", *[""] * (columns - 1)]
    return image_grid(torch.cat(rows), columns, titles)


def magnified(image: Image.Image, side: int) -> Image.Image:
    """An image whose shorter side has `side` pixels at least, each pixel enlarged to a square by a whole factor."""
    factor = _whole_factor(image.size, side)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def code_grid_image(indices: torch.Tensor, num_codes: int, side: int = 256) -> np.ndarray:
    """Codes of a level as a picture: a square for every position, a colour for every code, its number where it fits.

    Args:
        indices: (h, w), integers in [0, K); of a `Codes` for one image, `codes.levels()[level][0]`.
        num_codes: K.
        side: Pixels that the shorter side has at least.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = indices.shape
    cell = _whole_factor((height, width), side)
    gap = 1 if cell >= 4 * _GAP else 0
    colours = _code_colours(num_codes)[indices.cpu().numpy()]
    picture = Image.fromarray(colours.repeat(cell, 0).repeat(cell, 1))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(max(_FONT_SIZE, cell // 3))
    numbers = font.getlength(str(num_codes - 1)) <= cell - 4 * _GAP
    for row, column in np.ndindex(height, width):
        left, top = column * cell, row * cell
        if gap:
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), outline="white", width=gap)
        if numbers:
            light = colours[row, column] @ _LUMA > 140
            centre = (left + cell / 2, top + cell / 2)
            draw.text(centre, str(int(indices[row, column])), "black" if light else "white", font, anchor="mm")
    return np.asarray(picture)


def _code_colours(num_codes: int) -> np.ndarray:
    """uint8 (K, 3): hues a golden ratio of the circle apart, so that numbers that follow each other look different."""
    from matplotlib.colors import hsv_to_rgb

    codes = np.arange(num_codes)
    hues = codes * _GOLDEN_RATIO % 1
    saturations, values = 0.45 + 0.2 * (codes % 3), 0.95 - 0.2 * (codes // 3 % 3)
    return (hsv_to_rgb(np.stack([hues, saturations, values], axis=1)) * 255).round().astype(np.uint8)


def _whole_factor(size: Sequence[int], side: int) -> int:
    """By how much an image is enlarged for its shorter side to have `side` pixels at least."""
    return math.ceil(side / min(size))


def _tiles(images: torch.Tensor) -> np.ndarray:
    """uint8 (N, height, width, 3), each side at least `_SMALLEST_TILE`."""
    if not images.is_floating_point():
        images = _coloured(images)
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().permute(0, 2, 3, 1).numpy()
    factor = _whole_factor(images.shape[-2:], _SMALLEST_TILE)
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3))


def _title_strip(titles: Sequence[str], step: int, width: int) -> np.ndarray:
    """Titles side by side, each `step` pixels from the one before: uint8 (_TITLE_HEIGHT, width, 3)."""
    strip = Image.new("RGB", (width, _TITLE_HEIGHT), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(_FONT_SIZE)
    places = [place for place, title in enumerate(titles) if title]
    for place, following in zip(places, [*places[1:], width // step], strict=True):
        text, room = titles[place], (following - place) * step - 2 * _GAP
        while font.getlength(text) > room and len(text) > 1:
            text = text[:-2] + "…"
        draw.text((place * step + _GAP, 1), text, "black", font)
    return np.asarray(strip)


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
                for level, steps, values in _lines(history, name, split):
                    # The title says what a single figure is.
                    words = [name.replace("_", " ")] if len(names) > 1 else []
                    axis.plot(steps, values, label=", ".join([*words, *level, split]), **style)
        axis.set_title(title)
        axis.set_xlabel("step")
        if title.startswith("MSE"):
            axis.set_yscale("log")
        many = len(axis.lines) > 8
        axis.legend(fontsize="xx-small" if many else "x-small", ncols=2 if many else 1)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=100, format="png")


def _lines(history: Sequence[Record], name: str, split: str) -> list[tuple[list[str], list[int], list[float]]]:
    """A figure of a split, per level where it has several: the level, in words, steps and values."""
    records = [record for record in history if record["split"] == split and name in record]
    if not records:
        return []
    steps = [record["step"] for record in records]
    values = np.asarray([record[name] for record in records], dtype=float)
    if values.ndim == 1:
        return [([], steps, values.tolist())]
    levels = [[f"level {level}"] if values.shape[1] > 1 else [] for level in range(1, values.shape[1] + 1)]
    return [(level, steps, column.tolist()) for level, column in zip(levels, values.T, strict=True)]
